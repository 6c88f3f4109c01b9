"""Augmentation in batches gives what torchvision and Pillow give image by image, for the same parameters."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from btm_core.config import InputConfig
from btm_core.data import resampling
from btm_core.data.images import LooseImages
from btm_core.data.resampling import resized_crops
from btm_core.data.shares import Share
from btm_core.data.transforms import augment, random_resized_boxes
from btm_core.losses import mixup
from btm_core.seeding import torch_generator

CPU = torch.device("cpu")
RGB = InputConfig(size=16, augmentation="none", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def noise(count: int, channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, side, side), generator=torch_generator("n"), dtype=torch.uint8)


def photograph(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    """Smooth shapes and sharp edges."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    planes = [127 + 90 * np.sin(x * (c + 1) + y) + 30 * ((x + c) % 2 > 1) for c in range(channels)]
    image = np.stack(planes, 2).clip(0, 255).astype(np.uint8)
    return image[:, :, 0] if channels == 1 else image


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_and_flips_are_torchvisions(channels: int) -> None:
    pixels = noise(32, channels)
    view = RGB.model_copy(update={"augmentation": "crop-flip", "crop_padding": 3})
    out = augment(pixels, view, torch_generator("c"))
    draws = torch_generator("c")
    top, left = (torch.randint(7, (32,), generator=draws) for _ in range(2))
    flipped = torch.rand(32, generator=draws) < 0.5
    for image, found, t, le, mirrored in zip(pixels, out, top.tolist(), left.tolist(), flipped.tolist(), strict=True):
        expected = tv.crop(tv.pad(image, [3]), t, le, 16, 16)
        assert torch.equal(found, tv.horizontal_flip(expected) if mirrored else expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_is_torchvisions(channels: int) -> None:
    pixels = noise(16, channels)
    view = RGB.model_copy(update={"color_jitter": 0.6})
    out = augment(pixels, view, torch_generator("j"))
    factors = 0.4 + 1.2 * torch.rand(3, 16, generator=torch_generator("j"))
    for image, found, (brightness, contrast, saturation) in zip(pixels, out, factors.T.tolist(), strict=True):
        x = tv.adjust_contrast(tv.adjust_brightness(image / 255, brightness), contrast)
        expected = (255 * tv.adjust_saturation(x, saturation)).round()
        assert (found - expected).abs().max() <= 1  # torchvision's luma has coefficients of four digits


def test_mixup_is_torchvisions() -> None:
    """Torchvision mixes each image with its neighbour, and labels with them; the share is one a batch in both."""
    x, targets = torch.rand(8, 3, 4, 4), torch.arange(8) % 3
    mixed, partner, lam = mixup(x, 0.7, torch_generator("m"))
    assert sorted(partner.tolist()) == list(range(8))
    transform = v2.MixUp(alpha=0.7, num_classes=3)
    params = {"lam": lam, "labels": targets, "batch_size": 8}
    for number in range(8):
        pair = torch.stack([x[partner[number]], x[number]])
        both = params | {"labels": torch.stack([targets[partner[number]], targets[number]]), "batch_size": 2}
        torch.testing.assert_close(mixed[number], transform.transform(pair, both)[1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 224])
def test_scaled_crops_are_pillows_and_torchvisions(channels: int, size: int) -> None:
    shapes = [(500, 375), (64, 48), (33, 200), (300, 301)]
    images = [photograph(*shape, channels) for shape in shapes] * 4
    boxes = random_resized_boxes(torch.tensor(shapes * 4), torch_generator("b", size))
    out = resized_crops(images, boxes, size, CPU)
    assert out.dtype == torch.uint8
    assert out.shape == (16, channels, size, size)
    for image, box, found in zip(images, boxes.tolist(), out, strict=True):
        pillow = np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))
        expected = torch.from_numpy(pillow.reshape(size, size, channels)).permute(2, 0, 1).int()
        assert (found.int() - expected).abs().max() <= 1
        # torchvision cuts before it scales; here a pixel beyond the box counts, too, for what it is next to.
        left, top, right, bottom = map(int, box)
        whole = torch.from_numpy(image.reshape(*image.shape[:2], channels)).permute(2, 0, 1)
        cut = tv.resized_crop(whole, top, left, bottom - top, right - left, [size, size], antialias=True)
        down, across = math.ceil(size / (bottom - top)) + 1, math.ceil(size / (right - left)) + 1
        inner = (slice(None), slice(down, -down), slice(across, -across))
        assert (found.int() - cut.int())[inner].abs().max() <= 2


def test_large_images_are_scaled_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(500, 375), (64, 48), (33, 200), (300, 301)]
    images = [photograph(*shape) for shape in shapes]
    boxes = random_resized_boxes(torch.tensor(shapes), torch_generator("b"))
    whole = resized_crops(images, boxes, 32, CPU)
    for bound in (1, 50_000):
        monkeypatch.setattr(resampling, "PART_BYTES", bound)
        torch.testing.assert_close(resized_crops(images, boxes, 32, CPU), whole, rtol=0, atol=1)
    assert len(whole) == 4


def test_a_share_of_a_batch_is_cut_as_in_the_whole() -> None:
    shapes = [(50, 40), (20, 60), (33, 33), (44, 21)]
    view = InputConfig(size=8)
    images = LooseImages(tuple("abcd"), tuple(photograph(*shape) for shape in shapes))
    whole = images.batch(view, torch_generator("s"))
    share = Share(1, 3, 4, 2)
    part = images.take(torch.tensor([1, 2])).batch(view, torch_generator("s"), share)
    assert torch.equal(part, whole[1:3])

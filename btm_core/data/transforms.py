"""Augmentation of batches of pixels, and normalisation, on the device where the pixels are.

Every draw comes from a CPU generator that the caller seeds, so a GPU shows each image as a CPU does.

B images, K channels, H x W pixels.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from btm_core.config import InputConfig
from btm_core.data.shares import Share

__all__ = ["augment", "normalise", "random_resized_boxes"]


def augment(pixels: Tensor, config: InputConfig, generator: torch.Generator, share: Share | None = None) -> Tensor:
    """Augment pixels (B, K, H, W) uint8 as `config.augmentation` says; returns the same shape and type.

    random-resized-crop is cut while decoding (`random_resized_boxes`), so only its flip and colours are done here.

    Arguments:
    - share: which images of a batch these are; default: all.
    """
    share = share or Share.everything(len(pixels))
    if config.augmentation in ("crop", "crop-flip") and config.crop_padding:
        pixels = _random_crop(pixels, config.crop_padding, generator, share)
    if config.augmentation in ("crop-flip", "random-resized-crop"):
        flipped = (share.rows(torch.rand(share.whole, generator=generator)) < 0.5).to(pixels.device, non_blocking=True)
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
    if config.color_jitter:
        pixels = _color_jitter(pixels, config.color_jitter, generator, share)
    return pixels


def normalise(pixels: Tensor, config: InputConfig) -> Tensor:
    """Return (pixels / 255 - mean) / std as float32, (B, K, H, W), on the device of `pixels`."""
    mean, std = _constant(config.mean, pixels.device), _constant(config.std, pixels.device)
    return (pixels.float() / 255 - mean) / std


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one value a channel, (1, K, 1, 1); kept, for sending it to a GPU makes the CPU wait for that."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def _random_crop(pixels: Tensor, padding: int, generator: torch.Generator, share: Share) -> Tensor:
    """Pad with zeros and cut a window of the old size, at an offset of its own for each image."""
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (padding, padding, padding, padding))
    top = share.rows(torch.randint(2 * padding + 1, (share.whole,), generator=generator))
    left = share.rows(torch.randint(2 * padding + 1, (share.whole,), generator=generator))
    corner = torch.stack([top, left]).to(pixels.device, non_blocking=True)
    down, right, channels, images = (
        torch.arange(length, device=pixels.device) for length in (height, width, pixels.shape[1], len(pixels))
    )
    rows = (corner[0, :, None] + down)[:, None, :, None]
    columns = (corner[1, :, None] + right)[:, None, None, :]
    return padded[images[:, None, None, None], channels[None, :, None, None], rows, columns]


def _color_jitter(pixels: Tensor, strength: float, generator: torch.Generator, share: Share) -> Tensor:
    """Brightness, then contrast, then saturation, each by a factor in [1 - strength, 1 + strength] an image."""
    x = pixels.float()
    draws = share.rows(torch.rand(3, share.whole, 1, 1, 1, generator=generator), dim=1)
    factors = (1 + strength * (2 * draws - 1)).to(pixels.device, non_blocking=True)
    x = (x * factors[0]).clamp(0, 255)
    x = (factors[1] * x + (1 - factors[1]) * _grey(x).mean((1, 2, 3), keepdim=True)).clamp(0, 255)
    x = (factors[2] * x + (1 - factors[2]) * _grey(x)).clamp(0, 255)
    return x.round().to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    """Luma of ITU-R 601, (B, 1, H, W); a grey image is its own."""
    if x.shape[1] == 1:
        return x
    weights = _constant((0.299, 0.587, 0.114), x.device)
    return (x * weights).sum(1, keepdim=True)


def random_resized_boxes(
    sizes: Tensor, generator: torch.Generator, tries: int = 10, share: Share | None = None
) -> Tensor:
    """Draw one crop box an image: area 8..100 %, aspect 3/4..4/3, as torchvision's RandomResizedCrop does.

    Arguments:
    - sizes: (B, 2) width and height in pixels.
    - share: which images of a batch these are; default: all.

    Returns (B, 4) boxes left, top, right, bottom in pixels; the largest central box of allowed aspect if no draw fits.
    """
    width, height = sizes[:, 0:1].double(), sizes[:, 1:2].double()
    share = share or Share.everything(len(sizes))
    count = share.whole
    area = width * height * (0.08 + 0.92 * share.rows(torch.rand(count, tries, generator=generator)).double())
    log_low, log_high = math.log(3 / 4), math.log(4 / 3)
    draws = share.rows(torch.rand(count, tries, generator=generator)).double()
    aspect = torch.exp(log_low + (log_high - log_low) * draws)
    w, h = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    w, h = w.gather(1, first), h.gather(1, first)
    fallback_w = torch.minimum(width, (height * 4 / 3).round())
    fallback_h = torch.minimum(height, (width * 4 / 3).round())
    found = fits.any(1, keepdim=True)
    w, h = torch.where(found, w, fallback_w), torch.where(found, h, fallback_h)
    corner = share.rows(torch.rand(count, 2, generator=generator)).double()
    left = torch.where(found, (corner[:, 0:1] * (width - w + 1)).floor(), ((width - w) / 2).floor())
    top = torch.where(found, (corner[:, 1:2] * (height - h + 1)).floor(), ((height - h) / 2).floor())
    return torch.cat([left, top, left + w, top + h], 1)

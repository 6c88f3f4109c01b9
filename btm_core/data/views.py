"""Views: how an image is shown in training.

"standard" is the data set's own augmentation. The stronger ones come on top of it, those of the published recipes, by
torchvision's transforms, one draw an image:
- randaugment: RandAugment of 2 operations, magnitude 10 (Cubuk et al., CVPRW 2020), as PaCo and GPaCo on 224 pixels.
- autoaugment: AutoAugment's CIFAR-10 policy (Cubuk et al., CVPR 2019), cutout of half the side, as PaCo on CIFAR.
- simclr: random resized crop (on images packed at their final size), flip, colour jitter, grey, and from 64 pixels on a
  blur (Chen et al., ICML 2020).

B images a batch, K channels, S pixels a side.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from btm_core.config import InputConfig
from btm_core.data.shares import Share
from btm_core.data.transforms import augment

__all__ = ["VIEWS", "show"]

VIEWS = ("standard", "randaugment", "autoaugment", "simclr")


def show(
    view: str, pixels: Tensor, config: InputConfig, generator: torch.Generator, share: Share | None = None
) -> Tensor:
    """Return pixels (B, K, S, S) uint8 as a view shows them: same shape and type.

    `share` says which images of a batch these are. Only "standard" knows how to show a part of a batch as it would
    show it in the whole; no method that trains on several GPUs needs another view.
    """
    if view == "standard":
        return augment(pixels, config, generator, share)
    assert share is None or share.whole == len(pixels)
    if view != "simclr" or not config.decode_once:  # simclr cuts its own crops, unless decoding did
        pixels = augment(pixels, config, generator)
    policy = _policy(view, config.size, config.decode_once)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    # torchvision draws from the global generator; nothing else here does, and it is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([policy(image) for image in pixels])


@cache
def _policy(view: str, size: int, own_crop: bool) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    stages: list[Any]
    if view == "randaugment":
        stages = [v2.RandAugment(num_ops=2, magnitude=10)]
    elif view == "autoaugment":
        half = 0.25  # of the area: a square of half the side
        cutout = v2.RandomErasing(p=1.0, scale=(half, half), ratio=(1.0, 1.0), value=0)
        stages = [v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), cutout]
    elif view == "simclr":
        crop = v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True)
        stages = [crop, v2.RandomHorizontalFlip()] if own_crop else []
        stages += [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(p=0.2)]
        if size >= 64:
            stages.append(v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1, sigma=(0.1, 2.0))], p=0.5))
    else:
        raise ValueError(f"unknown view {view!r}, known are {', '.join(VIEWS)}")
    policy: Callable[[Tensor], Tensor] = v2.Compose(stages)
    return policy

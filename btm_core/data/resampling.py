"""Random resized crops of images of many sizes as two matrix products, for GPUs.

B images, K channels, S pixels a side.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["resized_crops"]


def resized_crops(images: Sequence[NDArray[np.uint8]], boxes: Tensor, size: int, device: torch.device) -> Tensor:
    """Cut a box out of each image and scale it to `size` a side, bilinear and antialiased.

    Scaling is separable and linear: rows @ image @ columns^T, with one row of weights an output pixel. The weights are
    those of Pillow's `resize(..., BILINEAR, box=box)`. That rounds to whole levels after each of its two passes, so
    results differ from it by one level of 255 at most.

    Arguments:
    - images: B arrays (H, W) or (H, W, 3) uint8.
    - boxes: (B, 4) left, top, right, bottom in pixels.

    Returns (B, K, S, S) uint8 on `device`.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    channels = 1 if images[0].ndim == 2 else images[0].shape[2]
    padded = torch.zeros(len(images), height, width, channels, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for place, image in zip(padded.numpy(), images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image.reshape(*image.shape[:2], channels)
    # Whole numbers up to 255 are exact in half precision, and products are summed in single.
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    pixels = padded.to(device, non_blocking=True).permute(0, 3, 1, 2).to(dtype)
    left, top, right, bottom = boxes.to(device, torch.float32).unbind(1)
    extent = torch.tensor([image.shape[:2] for image in images], device=device)
    rows = _weights(top, bottom, extent[:, 0], height, size).to(dtype)
    columns = _weights(left, right, extent[:, 1], width, size).to(dtype)
    scaled = rows[:, None] @ pixels @ columns[:, None].transpose(2, 3)
    return scaled.float().round_().clamp_(0, 255).to(torch.uint8)


def _weights(first: Tensor, last: Tensor, extent: Tensor, length: int, size: int) -> Tensor:
    """Return (B, S, length): how much each of `length` pixels counts for each of S; those beyond `extent` do not.

    A triangle around the centre of each output pixel, as wide as the scale, at least one pixel to each side.
    """
    scale = ((last - first) / size)[:, None, None]
    centre = first[:, None, None] + (torch.arange(size, device=first.device)[None, :, None] + 0.5) * scale
    pixel = torch.arange(length, device=first.device)[None, None, :]
    weight = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weight = torch.where(pixel < extent[:, None, None], weight, 0)
    return weight / weight.sum(2, keepdim=True)

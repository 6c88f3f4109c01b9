"""Random resized crops of images of many sizes as two matrix products, for GPUs.

B images, K channels, S pixels a side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["resized_crops"]

PART_BYTES = 128 * 2**20
"""Pixels scaled at once, twice as many bytes in half precision."""


def resized_crops(images: Sequence[NDArray[np.uint8]], boxes: Tensor, size: int, device: torch.device) -> Tensor:
    """Cut a box out of each image and scale it to `size` a side, bilinear and antialiased.

    Scaling is separable and linear: rows @ image @ columns^T, with one row of weights an output pixel. The weights are
    those of Pillow's `resize(..., BILINEAR, box=box)`. That rounds to whole levels after each of its two passes, so
    results differ from it by one level of 255 at most.

    Arguments:
    - images: B arrays (H, W) or (H, W, 3) uint8.
    - boxes: (B, 4) left, top, right, bottom in pixels, within the images.

    Returns (B, K, S, S) uint8 on `device`.
    """
    windows = [_window(image, box, size) for image, box in zip(images, boxes.tolist(), strict=True)]
    parts, part = [], _Part(windows[:1])
    for window in windows[1:]:
        if part.bytes_with(window) > PART_BYTES:
            parts.append(part.scaled(size, device))
            part = _Part([])
        part.windows.append(window)
    return torch.cat([*parts, part.scaled(size, device)])


@dataclass(frozen=True)
class _Window:
    """The pixels (H, W, K) of an image that count for a box, and the box (left, top, right, bottom) within them."""

    pixels: NDArray[np.uint8]
    box: tuple[float, float, float, float]


def _window(image: NDArray[np.uint8], box: Sequence[float], size: int) -> _Window:
    """Cut out a box with as much around it as the outermost triangles reach; a large image need not travel whole."""
    left, top, right, bottom = box
    margins = [math.ceil(max((last - first) / size, 1)) for first, last in ((left, right), (top, bottom))]
    x, y = max(int(left) - margins[0], 0), max(int(top) - margins[1], 0)
    pixels = image[y : math.ceil(bottom) + margins[1], x : math.ceil(right) + margins[0]]
    return _Window(pixels.reshape(*pixels.shape[:2], -1), (left - x, top - y, right - x, bottom - y))


@dataclass
class _Part:
    """Windows that are scaled at once, each padded to the largest height and width among them."""

    windows: list[_Window]

    def bytes_with(self, other: _Window) -> int:
        """Return how many bytes of pixels there would be with one more."""
        height, width, channels = self._extent([*self.windows, other])
        return (len(self.windows) + 1) * height * width * channels

    def scaled(self, size: int, device: torch.device) -> Tensor:
        """Return (B, K, S, S) uint8."""
        height, width, channels = self._extent(self.windows)
        on_gpu = device.type == "cuda"
        padded = torch.zeros(len(self.windows), height, width, channels, dtype=torch.uint8, pin_memory=on_gpu)
        for place, window in zip(padded.numpy(), self.windows, strict=True):
            place[: window.pixels.shape[0], : window.pixels.shape[1]] = window.pixels
        # Whole numbers up to 255 are exact in half precision, and products are summed in single.
        dtype = torch.float16 if on_gpu else torch.float32
        pixels = padded.to(device, non_blocking=True).permute(0, 3, 1, 2).to(dtype)
        left, top, right, bottom = (
            torch.tensor([window.box for window in self.windows]).to(device, non_blocking=True).unbind(1)
        )
        extent = torch.tensor([window.pixels.shape[:2] for window in self.windows]).to(device, non_blocking=True)
        rows = _weights(top, bottom, extent[:, 0], height, size).to(dtype)
        columns = _weights(left, right, extent[:, 1], width, size).to(dtype)
        scaled = rows[:, None] @ pixels @ columns[:, None].transpose(2, 3)
        return scaled.float().round_().clamp_(0, 255).to(torch.uint8)

    @staticmethod
    def _extent(windows: Sequence[_Window]) -> tuple[int, int, int]:
        height, width, channels = (max(window.pixels.shape[axis] for window in windows) for axis in range(3))
        return height, width, channels


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

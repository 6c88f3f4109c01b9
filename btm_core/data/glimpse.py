"""A look at a few images, by which input size, channels and normalisation are chosen."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btm_core.data.catalog import Catalog
from btm_core.data.decoding import decode_image
from btm_core.data.reader import ImageReader
from btm_core.errors import DataError
from btm_core.seeding import numpy_generator

__all__ = ["Glimpse", "glimpse"]

SAMPLE = 200
GREY_WITHIN = 3
"""Levels of 255 by which the channels of a grey picture may differ, as JPEG has it."""


@dataclass(frozen=True)
class Glimpse:
    """What a sample of training images shows.

    Fields:
    - images, unreadable: looked at, and how many of them could not be decoded.
    - shorter: shorter side in pixels, 1st, 50th and 99th percentile.
    - grey: whether none has colours.
    - mean, std: per channel (one if grey, else three), of pixels in [0, 1].
    """

    images: int
    unreadable: int
    shorter: tuple[int, int, int]
    grey: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


def glimpse(catalog: Catalog, seed: int = 0) -> Glimpse:
    """Look at up to SAMPLE training images. Raises DataError if none of them is an image."""
    split = catalog.train
    chosen = np.sort(numpy_generator("glimpse", seed).permutation(len(split))[:SAMPLE])
    shorter: list[int] = []
    moments, apart, problem = [], 0, ""
    for image in _images(catalog, chosen):
        if isinstance(image, str):
            problem = image
            continue
        shorter.append(min(image.size))
        pixels = np.asarray(image, np.float32) / 255
        moments.append((pixels.mean((0, 1)), (pixels**2).mean((0, 1))))
        small = np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.int16)
        apart = max(apart, int(np.ptp(small, axis=2).max()))
    if not shorter:
        raise DataError(
            f"none of {len(chosen)} training images can be decoded, so their size is not known; the last: {problem}"
        )
    mean, square = np.mean(np.asarray(moments), axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 1e-4))
    grey = apart <= GREY_WITHIN
    channels = slice(0, 1) if grey else slice(0, 3)
    low, middle, high = (int(np.percentile(shorter, q)) for q in (1, 50, 99))
    return Glimpse(
        images=len(chosen),
        unreadable=len(chosen) - len(shorter),
        shorter=(low, middle, high),
        grey=grey,
        mean=tuple(round(float(value), 3) for value in mean[channels]),
        std=tuple(round(float(value), 3) for value in std[channels]),
    )


def _images(catalog: Catalog, positions: NDArray[np.int64]) -> Iterator[Image.Image | str]:
    """Yield images in mode RGB, or why there is none."""
    split = catalog.train
    if split.paths is None:
        assert split.pixels is not None
        for pixels in split.pixels[positions]:
            whole = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
            yield Image.fromarray(whole).convert("RGB")
        return
    assert catalog.root is not None
    paths = [split.paths[i] for i in positions.tolist()]
    position = iter(paths)
    for chunk in ImageReader(catalog.root).attempts(paths):
        for answer in chunk:
            path = next(position)
            if isinstance(answer, Exception):
                yield f"{path}: {answer}"
                continue
            try:
                yield decode_image(answer[0], 3)
            except DataError as error:
                yield f"{path}: {error}"

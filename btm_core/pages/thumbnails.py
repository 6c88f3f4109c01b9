"""Small pictures of a report: which images show what is wrong with a class, and how they get into a page.

N training images, M test images, C classes.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from btm_core.pages import data_url

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CAP_KB", "SIDE", "Sample", "Thumbnail", "choose_samples", "thumbnails"]

SIDE = 64
"""Pixels of the longer side."""
CAP_KB = 600
"""Kilobytes that all thumbnails of a page may take; those of the last classes are left out."""


@dataclass(frozen=True)
class Sample:
    """An image to show: split and position in it; `predicted` is the wrong class, for a test image."""

    split: str
    position: int
    predicted: int | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as a data URL; `small` if the image itself is no larger, and may be shown enlarged."""

    sample: Sample
    url: str
    small: bool


def choose_samples(
    classes: Sequence[int],
    train_labels: NDArray[np.int64],
    targets: NDArray[np.int64],
    predictions: NDArray[np.int64],
    confidences: NDArray[np.float32] | None,
    count: int,
) -> dict[int, list[Sample]]:
    """Return for each class at most `count` training images, and as many misclassified test images.

    Training images are spread over all of the class. Of mistakes those come first of which the model is surest, for
    they teach most.

    Arguments:
    - train_labels: (N,); targets, predictions, confidences: (M,).
    """
    sure = np.zeros(len(targets), np.float32) if confidences is None else confidences
    chosen = {}
    for c in classes:
        own = np.flatnonzero(train_labels == c)
        spread = own[np.unique(np.linspace(0, len(own) - 1, min(count, len(own))).astype(int))] if len(own) else own
        wrong = np.flatnonzero((targets == c) & (predictions != c))
        wrong = wrong[np.argsort(-sure[wrong], kind="stable")][:count]
        mistakes = [
            Sample("test", int(i), int(predictions[i]), None if confidences is None else float(sure[i])) for i in wrong
        ]
        chosen[int(c)] = [*(Sample("train", int(i)) for i in spread), *mistakes]
    return chosen


def thumbnails(
    samples: Mapping[int, Sequence[Sample]],
    read: Callable[[Sequence[Sample]], Sequence["Image"]],
    cap_kb: int = CAP_KB,
) -> dict[int, list[Thumbnail]]:
    """Return the thumbnails of each class, as long as all together stay below `cap_kb`.

    Arguments:
    - samples: by class, in the order of the page.
    - read: returns the images of the samples of one class, decoded.
    """
    found: dict[int, list[Thumbnail]] = {}
    room = cap_kb * 1000
    for c, wanted in samples.items():
        made = [_thumbnail(sample, image) for sample, image in zip(wanted, read(wanted), strict=True)]
        room -= sum(len(one.url) for one in made)
        if room < 0:
            break
        found[c] = made
    return found


def _thumbnail(sample: Sample, image: "Image") -> Thumbnail:
    """Encode an image of any size: few pixels without loss, photographs as JPEG."""
    small = max(image.size) <= SIDE // 2
    image = image.convert("L" if image.mode in ("L", "1", "I;16") else "RGB")
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    kind = "png" if small else "jpeg"
    image.save(buffer, kind, **({"optimize": True} if small else {"quality": 82}))
    return Thumbnail(sample, data_url(f"image/{kind}", buffer.getvalue()), small)

"""Calibration: whether a model is right as often as it says it is.

N images, M bins.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from btm_core.errors import DataError

__all__ = ["BINS", "Calibration", "calibration"]

BINS = 15
"""Bins of equal width, as in Guo et al., section 4."""


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, and what it is made of: of each bin its images, mean confidence and accuracy.

    Confidence and accuracy of a bin without images are None.
    """

    error: float
    images: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def calibration(confidences: ArrayLike, right: ArrayLike, bins: int = BINS) -> Calibration:
    """Compute the expected calibration error (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, eq. 3).

    ECE = sum_m |B_m| / N * |accuracy(B_m) - confidence(B_m)|, where bin B_m holds the images whose confidence is in
    (m / M, (m + 1) / M]; a confidence of 0 is in the first.

    Arguments:
    - confidences: (N,) probability of the predicted class, in [0, 1].
    - right: (N,) whether the prediction is right.

    Raises DataError if the shapes differ, nothing is there, or a confidence is no probability.
    """
    p, hit = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=bool)
    if p.shape != hit.shape or p.ndim != 1 or not len(p):
        raise DataError(f"confidences and right must both be (N,), N > 0, found {p.shape} and {hit.shape}")
    if not ((p >= 0) & (p <= 1 + 1e-6)).all():  # NaN is neither
        raise DataError(f"confidences must be probabilities, found {p.min()}..{p.max()}")
    place = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    some = np.maximum(images, 1)
    confidence = np.bincount(place, p, minlength=bins) / some
    accuracy = np.bincount(place, hit, minlength=bins) / some
    error = float((images * np.abs(accuracy - confidence)).sum() / len(p))
    shown = [
        tuple(float(value) if count else None for value, count in zip(values, images, strict=True))
        for values in (confidence, accuracy)
    ]
    return Calibration(error, tuple(images.tolist()), *shown)

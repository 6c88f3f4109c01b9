"""Repetitions: mean and standard deviation over runs, and intervals over the images of the test split.

M models, N test images, C classes, R resamplings.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from btm_core.errors import DataError
from btm_core.seeding import numpy_generator

__all__ = ["Difference", "Spread", "paired_differences", "resampled_recall", "spread"]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1 in the denominator; None for one run) of n runs."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Mean difference over paired runs, and the 95 % interval of it over resampled test images."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return a JSON-ready dict."""
        return asdict(self)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return mean and standard deviation; None if the value is undefined in any run (an empty group)."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(len(known), float(np.mean(known)), std)


def resampled_recall(
    targets: ArrayLike, predictions: ArrayLike, resamplings: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Return recall (R, M, C) of M models on R bootstrap resamplings of the test images, the same for all models.

    Images are drawn with replacement within each class, so every class keeps its number of images. Of a class only the
    patterns (which models are right) matter, so the number of draws of each pattern is multinomial.

    Arguments:
    - targets: (N,) classes, each of 0 .. C - 1 present.
    - predictions: (M, N).
    """
    y, p = np.asarray(targets), np.atleast_2d(np.asarray(predictions))
    if p.shape[1:] != y.shape:
        raise DataError(f"predictions must be (M, N) for targets (N,), found {p.shape} and {y.shape}")
    random = numpy_generator("bootstrap", seed)
    classes = int(y.max()) + 1
    recall = np.empty((resamplings, len(p), classes))
    for c in range(classes):
        right = (p[:, y == c] == c).T
        patterns, counts = np.unique(right, axis=0, return_counts=True)
        total = counts.sum()
        if total == 0:
            raise DataError(f"class {c} has no test image")
        draws = random.multinomial(total, counts / total, resamplings)
        recall[:, :, c] = draws @ patterns / total
    return recall


def paired_differences(
    targets: ArrayLike, first: ArrayLike, second: ArrayLike, resamplings: int = 1000, seed: int = 0, floor: float = 1e-3
) -> dict[str, Difference]:
    """Compare two ways of training, run by run: second minus first, averaged over the runs, for each summary of recall.

    The interval is the central 95 % over resampled test images. It says how much of the difference the choice of test
    images may explain; that between runs is in `spread`.

    Arguments:
    - targets: (N,); first, second: predictions (S, N) of S runs each, paired by position.
    """
    a, b = np.atleast_2d(np.asarray(first)), np.atleast_2d(np.asarray(second))
    if a.shape != b.shape:
        raise DataError(f"runs are compared in pairs, found {a.shape} and {b.shape} predictions")
    y = np.asarray(targets)
    both = np.concatenate([a, b])
    seen = np.stack([[(row[y == c] == c).mean() for c in range(int(y.max()) + 1)] for row in both])
    measured = _summaries(seen[None], floor)
    drawn = _summaries(resampled_recall(y, both, resamplings, seed), floor)
    differences = {}
    for name, values in drawn.items():
        change = (values[:, len(a) :] - values[:, : len(a)]).mean(1)
        low, high = np.quantile(change, [0.025, 0.975])
        mean = (measured[name][:, len(a) :] - measured[name][:, : len(a)]).mean()
        differences[name] = Difference(float(mean), float(low), float(high))
    return differences


def _summaries(recall: NDArray[np.float64], floor: float) -> dict[str, NDArray[Any]]:
    """Return summaries (R, M) of recall (R, M, C); see `btm_core.metrics.recall_report`."""
    floored = np.where(recall == 0, floor, recall)
    return {
        "h_mean": recall.shape[-1] / (1 / floored).sum(-1),
        "g_mean": np.exp(np.log(floored).mean(-1)),
        "lowest_recall": recall.min(-1),
        "mean_recall": recall.mean(-1),
    }

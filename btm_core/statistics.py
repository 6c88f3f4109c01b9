"""Repetitions: mean and standard deviation over runs, and intervals over the images of the test split.

M models, N test images, C classes, R resamplings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from btm_core.errors import DataError
from btm_core.seeding import numpy_generator

__all__ = [
    "WORST_SHARE",
    "Difference",
    "Spread",
    "clearly_changed",
    "class_differences",
    "paired_differences",
    "resampled_recall",
    "sign_test",
    "spread",
    "worst_mean",
]

WORST_SHARE = 0.05
"""Of the classes, those with the lowest recall of a model: their mean is its `worst_mean`."""


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
    right = (p == y)[:, np.argsort(y, kind="stable")].T
    ends = np.cumsum(np.bincount(y))
    for c, (start, end) in enumerate(zip(np.concatenate([[0], ends]), ends, strict=False)):
        if start == end:
            raise DataError(f"class {c} has no test image to resample")
        patterns, counts = np.unique(right[start:end], axis=0, return_counts=True)
        draws = random.multinomial(end - start, counts / (end - start), resamplings)
        recall[:, :, c] = draws @ patterns / (end - start)
    return recall


def paired_differences(
    targets: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    resamplings: int = 1000,
    seed: int = 0,
    floor: float = 1e-3,
    confidence: float = 0.95,
    worst_share: float = WORST_SHARE,
    groups: Mapping[str, NDArray[np.bool_]] | None = None,
    drawn: NDArray[np.float64] | None = None,
) -> dict[str, Difference]:
    """Compare two ways of training, run by run: second minus first, averaged over the runs, for each summary of recall.

    The interval is the central one of `confidence` over resampled test images. It says how much of the difference the
    choice of test images may explain; that between runs is in `spread`. Besides the figures of
    `btm_core.metrics.RecallReport` there is `worst_mean`, the mean recall of each model's own worst classes.

    Arguments:
    - targets: (N,); first, second: predictions (S, N) of S runs each, paired by position.
    - worst_share: share of the classes that `worst_mean` is of, at least one class.
    - groups: masks (C,) of classes, by name: their mean recall is one more figure, unless there are none.
    - drawn: `resampled_recall` of first and second, (R, 2 S, C), by whoever has it already.
    """
    y, a, both = _paired(targets, first, second)
    weights = np.bincount(y) / len(y)
    members = {name: mask for name, mask in (groups or {}).items() if mask.any()}
    measured = _summaries(_recall(y, both)[None], weights, floor, worst_share, members)
    recall = resampled_recall(y, both, resamplings, seed) if drawn is None else drawn
    resampled = _summaries(recall, weights, floor, worst_share, members)
    return {
        name: _difference(
            (measured[name][0, len(a) :] - measured[name][0, : len(a)]).mean(),
            (values[:, len(a) :] - values[:, : len(a)]).mean(1),
            confidence,
        )
        for name, values in resampled.items()
    }


def class_differences(
    targets: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    resamplings: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    drawn: NDArray[np.float64] | None = None,
) -> list[Difference]:
    """Compare the recall of each class as `paired_differences` does; returns C differences, second minus first.

    With few images a class the intervals are wide, and some of C miss by chance: they inform, they prove little;
    `clearly_changed` asks for more.
    """
    y, a, both = _paired(targets, first, second)
    measured = _recall(y, both)
    recall = resampled_recall(y, both, resamplings, seed) if drawn is None else drawn
    mean = (measured[len(a) :] - measured[: len(a)]).mean(0)
    change = (recall[:, len(a) :] - recall[:, : len(a)]).mean(1)
    low, high = np.quantile(change, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Difference(*map(float, row)) for row in zip(mean, low, high, strict=True)]


def sign_test(targets: ArrayLike, first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Return for each class the two-sided p value (C,) that a model's recall is another's: McNemar's test, exact.

    Of a class's images only those count that one model gets right and the other does not, n = gained + lost. If nothing
    changed each of them is as likely gained as lost: p = 2 P(X <= min(gained, lost)) with X of Binomial(n, 1/2), at
    most 1. It holds for any number of images; fewer than six that all go one way never make p < 0.05.

    McNemar, Note on the sampling error of the difference between correlated proportions or percentages, Psychometrika
    12, 1947; for classifiers see Dietterich, Approximate Statistical Tests for Comparing Supervised Classification
    Learning Algorithms, Neural Computation 10, 1998.

    Arguments:
    - targets: (N,), each of 0 .. C - 1 present; first, second: predictions (N,) of two models.
    """
    from scipy.special import bdtr

    y = np.asarray(targets)
    a, b = np.asarray(first) == y, np.asarray(second) == y
    gained, lost = (np.bincount(y[chosen], minlength=y.max() + 1) for chosen in (b & ~a, a & ~b))
    p: NDArray[np.float64] = np.minimum(1.0, 2 * bdtr(np.minimum(gained, lost).astype(float), gained + lost, 0.5))
    return p


def clearly_changed(
    targets: ArrayLike, first: ArrayLike, second: ArrayLike, differences: Sequence[Difference], level: float = 0.05
) -> NDArray[np.bool_]:
    """Return which classes (C,) changed clearly: their interval is on one side of 0, and `sign_test` is below `level`.

    The interval alone is too narrow with few images: that of a class whose three images are all lost has no width.

    Arguments:
    - targets, first, second: as `sign_test` takes them.
    - differences: C, as `class_differences` returns them for the same.
    """
    beyond = np.array([one.low > 0 or one.high < 0 for one in differences], dtype=bool)
    return beyond & (sign_test(targets, first, second) < level)


def worst_mean(recall: NDArray[np.float64], share: float = WORST_SHARE) -> NDArray[np.float64]:
    """Return the mean (...) of the lowest of recalls (..., C): of a share of the classes, and of at least one."""
    worst = max(1, math.ceil(share * recall.shape[-1]))
    lowest: NDArray[np.float64] = np.partition(recall, worst - 1, axis=-1)[..., :worst].mean(-1)
    return lowest


def _paired(targets: ArrayLike, first: ArrayLike, second: ArrayLike) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return targets (N,), predictions (S, N) of the first way, and (2 S, N) of both."""
    a, b = np.atleast_2d(np.asarray(first)), np.atleast_2d(np.asarray(second))
    if a.shape != b.shape:
        raise DataError(f"runs are compared in pairs, found {a.shape} and {b.shape} predictions: give as many of each")
    return np.asarray(targets), a, np.concatenate([a, b])


def _recall(y: NDArray[Any], predictions: NDArray[Any]) -> NDArray[np.float64]:
    """Return recall (M, C) of predictions (M, N)."""
    return np.stack([np.bincount(y[row == y], minlength=y.max() + 1) / np.bincount(y) for row in predictions])


def _difference(mean: float, drawn: NDArray[np.float64], confidence: float) -> Difference:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(mean), float(low), float(high))


def _summaries(
    recall: NDArray[np.float64],
    weights: NDArray[np.float64],
    floor: float,
    worst_share: float,
    groups: Mapping[str, NDArray[np.bool_]],
) -> dict[str, NDArray[Any]]:
    """Return summaries (R, M) of recall (R, M, C), as `btm_core.metrics.recall_report`; weights (C,) make accuracy."""
    floored = np.where(recall == 0, floor, recall)
    return {
        "h_mean": recall.shape[-1] / (1 / floored).sum(-1),
        "g_mean": np.exp(np.log(floored).mean(-1)),
        "lowest_recall": recall.min(-1),
        "worst_mean": worst_mean(recall, worst_share),
        "mean_recall": recall.mean(-1),
        "accuracy": recall @ weights,
        **{name: recall[..., members].mean(-1) for name, members in groups.items()},
    }

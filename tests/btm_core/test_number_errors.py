"""What losses, metrics and statistics refuse, in words that name the argument, what is expected and what was found."""

from collections.abc import Callable

import numpy as np
import pytest

from btm_core import losses
from btm_core.errors import BTMError, ConfigError, DataError
from btm_core.metrics import recall_report
from btm_core.sampling import balanced_subset
from btm_core.soups import adaptive_weights, criterion
from btm_core.statistics import _paired, resampled_recall

Call = Callable[[], object]
CALLS: dict[str, tuple[type[BTMError], Call, str]] = {
    "counts": (
        ConfigError,
        lambda: losses.BalancedSoftmax([[3, 4]]),
        "class_counts must be (C,) training images a class, found shape (1, 2)",
    ),
    "empty class": (
        ConfigError,
        lambda: losses.BalancedSoftmax([3, 0]),
        "balanced softmax needs at least one training image a class",
    ),
    "power": (
        ConfigError,
        lambda: losses.GeometricMeanLoss([3, 4], p=0),
        "geometric mean loss: p must be above 0, found 0",
    ),
    "smoothing": (
        ConfigError,
        lambda: losses.LabelAwareSmoothing([3, 4], head=1.0, tail=0.1),
        "label-aware smoothing: head must be in [0, 1), found 1.0",
    ),
    "another power": (
        ConfigError,
        lambda: losses.LabelAwareSmoothing([3, 4], 0.3, 0.1, power=2.0),
        "label-aware smoothing: power belongs to the exponential shape, and to it alone",
    ),
    "shape": (
        ConfigError,
        lambda: losses.LabelAwareSmoothing([3, 4], 0.3, 0.1, shape="round"),  # type: ignore[arg-type]
        "label-aware smoothing: unknown shape 'round'; known are concave, linear, convex, exponential",
    ),
    "lengths": (
        DataError,
        lambda: recall_report([0, 1], [0], [5, 5]),
        "targets and predictions must both be (N,), found (2,) and (1,)",
    ),
    "no images": (
        DataError,
        lambda: recall_report(np.zeros(0, int), np.zeros(0, int), [5, 5]),
        "targets must be (N,) integers, N > 0, found int64 of shape (0,)",
    ),
    "probabilities": (
        DataError,
        lambda: recall_report([0, 1], [0.2, 0.7], [5, 5]),
        "predictions must be (N,) integers, N > 0, found float64 of shape (2,)",
    ),
    "labels from 1": (DataError, lambda: recall_report([1, 2], [1, 2], [5, 5]), "targets must be in 0..1, found 1..2"),
    "absent class": (
        DataError,
        lambda: recall_report([0, 0], [0, 1], [5, 5]),
        "1 of 2 classes have no test image, the first is class 1",
    ),
    "shots": (
        DataError,
        lambda: balanced_subset([0, 1], 0, 0, 0),
        "sampling.shots is images a class and at least 1, found 0",
    ),
    "empty split": (
        DataError,
        lambda: criterion([], [], "h_mean"),
        "a soup cannot be chosen on a split without images",
    ),
    "scores": (DataError, lambda: adaptive_weights([0.5, 0]), "scores must be (S,) and above 0, found [0.5, 0.0]"),
    "resampled class": (DataError, lambda: resampled_recall([0, 2], [[0, 2]]), "class 1 has no test image to resample"),
    "pairs": (
        DataError,
        lambda: _paired([0, 1], [[0, 1]], [[0, 1], [1, 1]]),
        "runs are compared in pairs, found (1, 2) and (2, 2) predictions: give as many of each",
    ),
    "models": (
        DataError,
        lambda: resampled_recall([0, 1], [[0, 1, 1]]),
        "predictions must be (M, N) for targets (N,), found (1, 3) and (2,)",
    ),
}


@pytest.mark.parametrize(("kind", "call", "message"), CALLS.values(), ids=CALLS)
def test_numbers(kind: type[BTMError], call: Call, message: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == message

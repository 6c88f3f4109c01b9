"""Per-class recall and its means, judged by the worst classes.

N images, C classes, r_c recall of class c, n_c training images of class c.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from btm_core.data.long_tail import FEW_BELOW, MANY_ABOVE
from btm_core.errors import DataError

__all__ = ["RecallReport", "confusions", "recall_report", "shot_groups"]


@dataclass(frozen=True, eq=False)
class RecallReport:
    """Recall of each class (C,) and its summaries; all are fractions in [0, 1]."""

    recall: NDArray[np.float64]
    h_mean: float
    g_mean: float
    lowest_recall: float
    accuracy: float
    mean_recall: float
    zero_recall_classes: int
    many: float | None
    medium: float | None
    few: float | None

    def summary(self) -> dict[str, Any]:
        """Return the scalar figures, JSON-ready."""
        return {name: value for name, value in vars(self).items() if name != "recall"}


def recall_report(
    targets: ArrayLike,
    predictions: ArrayLike,
    train_counts: ArrayLike,
    floor: float = 1e-3,
    absent: Literal["refuse", "skip"] = "refuse",
) -> RecallReport:
    """Compute per-class recall and its summaries (section 3.1, equation 1; section 4.2 for the floor).

    - h_mean = C / sum_c 1 / r'_c and g_mean = exp(mean_c ln r'_c), where r'_c = r_c, or `floor` if r_c = 0.
    - lowest_recall = min_c r_c and mean_recall = mean_c r_c, without the floor.
    - accuracy: share of right predictions over all images.
    - many, medium, few: mean recall of the classes with n_c > 100, 20 <= n_c <= 100, n_c < 20; None for an empty group.

    Arguments:
    - targets: (N,) true classes in [0, C).
    - predictions: (N,) predicted classes.
    - train_counts: (C,) training images a class, those before a validation split was carved from them.
    - absent: a class without a target is an error, or is left out of every mean: its recall is then NaN, C is the
        number of classes present. A validation split carved from few images may lack classes.

    Raises DataError if shapes differ, a target is out of range or a class has no target.
    """
    y, p, counts = np.asarray(targets), np.asarray(predictions), np.asarray(train_counts)
    if y.shape != p.shape or y.ndim != 1:
        raise DataError(f"targets and predictions must both be (N,), found {y.shape} and {p.shape}")
    for name, values in (("targets", y), ("predictions", p)):
        if not len(values) or not np.issubdtype(values.dtype, np.integer):
            raise DataError(f"{name} must be (N,) integers, N > 0, found {values.dtype} of shape {values.shape}")
    if y.min() < 0 or y.max() >= len(counts):
        raise DataError(f"targets must be in 0..{len(counts) - 1}, found {y.min()}..{y.max()}")
    total = np.bincount(y, minlength=len(counts))
    if (total == 0).any() and absent == "refuse":
        missing = np.flatnonzero(total == 0)
        raise DataError(f"{len(missing)} of {len(counts)} classes have no test image, the first is class {missing[0]}")
    everywhere = np.where(total > 0, np.bincount(y[y == p], minlength=len(counts)) / np.maximum(total, 1), np.nan)
    recall, counts = everywhere[total > 0], counts[total > 0]
    floored = np.where(recall == 0, floor, recall)

    groups = {
        name: float(recall[members].mean()) if members.any() else None for name, members in shot_groups(counts).items()
    }
    return RecallReport(
        recall=everywhere,
        h_mean=float(len(recall) / (1 / floored).sum()),
        g_mean=float(np.exp(np.log(floored).mean())),
        lowest_recall=float(recall.min()),
        accuracy=float((y == p).mean()),
        mean_recall=float(recall.mean()),
        zero_recall_classes=int((recall == 0).sum()),
        many=groups["many"],
        medium=groups["medium"],
        few=groups["few"],
    )


def shot_groups(train_counts: ArrayLike) -> dict[str, NDArray[np.bool_]]:
    """Return which classes are many, medium and few: masks (C,) of training counts (C,)."""
    counts = np.asarray(train_counts)
    many, few = counts > MANY_ABOVE, counts < FEW_BELOW
    return {"many": many, "medium": ~(many | few), "few": few}


def confusions(targets: ArrayLike, predictions: ArrayLike, true_class: int, top: int = 3) -> list[tuple[int, int]]:
    """Return the `top` wrong classes that images of `true_class` are taken for, as (class, images), largest first."""
    y, p = np.asarray(targets), np.asarray(predictions)
    classes, images = np.unique(p[(y == true_class) & (p != true_class)], return_counts=True)
    order = np.lexsort((classes, -images))[:top]
    return [(int(classes[i]), int(images[i])) for i in order]

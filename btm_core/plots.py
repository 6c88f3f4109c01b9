"""Figures: each function takes arrays and returns a matplotlib figure. Colours are of Okabe and Ito's colour-blind set.

C classes; recall (C,) in [0, 1], train_counts (C,).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["long_tail_profile", "recall_by_frequency", "running_mean"]

BEFORE, AFTER, COUNTS = "#D55E00", "#0072B2", "#999999"


def recall_by_frequency(
    before: ArrayLike, after: ArrayLike, train_counts: ArrayLike, before_name: str, after_name: str
) -> "Figure":
    """Draw per-class recall before and after, classes sorted by training frequency, counts behind (Figure 3).

    Arguments:
    - before, after: (C,) recall of two models.
    - train_counts: (C,) training images a class.

    Of more than 200 classes running means are drawn, too.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(train_counts)
    order = np.lexsort((np.arange(len(counts)), -counts))
    rank = np.arange(1, len(counts) + 1)
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    recall_axis = figure.add_subplot()
    count_axis = recall_axis.twinx()
    count_axis.fill_between(rank, counts[order], 1, step="mid", color=COUNTS, alpha=0.25, linewidth=0)
    count_axis.set_yscale("log")
    count_axis.set_ylabel("training images a class (grey)")
    recall_axis.set_zorder(count_axis.get_zorder() + 1)
    recall_axis.patch.set_visible(False)
    dots: dict[str, Any] = {"markersize": 5 if len(counts) <= 200 else 2, "linestyle": "none"}
    line = len(counts) <= 200
    if line:  # what happened to each class
        recall_axis.vlines(rank, np.asarray(before)[order], np.asarray(after)[order], color="#777777", linewidth=0.8)
    else:
        dots |= {"alpha": 0.25}  # they hide each other: what they say in the mean is drawn over them
        for values, color, style in ((before, BEFORE, "--"), (after, AFTER, "-")):
            recall_axis.plot(*running_mean(np.asarray(values)[order]), style, color=color, zorder=3)
    recall_axis.plot(rank, np.asarray(before)[order], "o", color=BEFORE, label=before_name, fillstyle="none", **dots)
    recall_axis.plot(rank, np.asarray(after)[order], "s", color=AFTER, label=after_name, **dots)
    recall_axis.set_ylim(-0.03, 1.03)
    recall_axis.set_xlim(0.5, len(counts) + 0.5)
    recall_axis.set_xlabel("class, from most to fewest training images")
    recall_axis.set_ylabel("recall on the test split")
    legend = recall_axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)
    for handle in legend.legend_handles:
        handle.set(alpha=1, markersize=5)  # type: ignore[union-attr]
    return figure


def running_mean(values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ranks and means of a window that moves over values (C,), about a fortieth of them wide."""
    width = len(values) // 40
    return np.arange(len(values) - width + 1) + (width + 1) / 2, np.convolve(values, np.full(width, 1 / width), "valid")


def long_tail_profile(train_counts: ArrayLike, test_counts: ArrayLike, many_above: int, few_below: int) -> "Figure":
    """Draw the images of each class on a log scale, classes sorted by training images, with many, medium and few.

    Arguments:
    - train_counts, test_counts: (C,) images a class; one without any is left out of the scale.
    - many_above, few_below: bounds of the groups, training images.
    """
    from matplotlib.figure import Figure

    train, test = np.asarray(train_counts), np.asarray(test_counts)
    order = np.lexsort((np.arange(len(train)), -train))
    edges = np.arange(len(train) + 1) + 0.5
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axis = figure.add_subplot()
    groups = (
        ("many", train > many_above, "#0072B2"),
        ("medium", (train >= few_below) & (train <= many_above), "#56B4E9"),
        ("few", train < few_below, "#E69F00"),
    )
    for name, members, color in groups:
        if members.any():
            shown = np.where(members[order], train[order], np.nan)
            label = f"{name} ({members.sum():,} classes)"
            axis.stairs(shown, edges, baseline=0.5, fill=True, color=color, label=label)
    axis.stairs(np.where(test[order] > 0, test[order], np.nan), edges, baseline=None, color="#000000", label="test")
    axis.set_yscale("log")
    axis.set_ylim(0.5, 2 * max(train.max(), test.max(), 1))
    axis.set_xlim(edges[0], edges[-1])
    axis.set_xlabel("class, from most to fewest training images")
    axis.set_ylabel("images a class")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=4, frameon=False)
    return figure

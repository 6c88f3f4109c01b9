"""Figures: each function takes arrays and returns a matplotlib figure. Colours are of Okabe and Ito's colour-blind set.

C classes; recall (C,) in [0, 1], train_counts (C,).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["interpolation_curves", "recall_by_frequency"]

BEFORE, AFTER, COUNTS = "#D55E00", "#0072B2", "#999999"


def recall_by_frequency(
    before: ArrayLike, after: ArrayLike, train_counts: ArrayLike, before_name: str, after_name: str
) -> "Figure":
    """Draw per-class recall before and after, classes sorted by training frequency, counts behind (Figure 3).

    Arguments:
    - before, after: (C,) recall of two models.
    - train_counts: (C,) training images a class.
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
    dots = {"markersize": 5 if len(counts) <= 200 else 2, "linestyle": "none"}
    line = len(counts) <= 200
    if line:  # what happened to each class
        recall_axis.vlines(rank, np.asarray(before)[order], np.asarray(after)[order], color="#777777", linewidth=0.8)
    recall_axis.plot(rank, np.asarray(before)[order], "o", color=BEFORE, label=before_name, fillstyle="none", **dots)  # type: ignore[arg-type]
    recall_axis.plot(rank, np.asarray(after)[order], "s", color=AFTER, label=after_name, **dots)  # type: ignore[arg-type]
    recall_axis.set_ylim(-0.03, 1.03)
    recall_axis.set_xlim(0.5, len(counts) + 0.5)
    recall_axis.set_xlabel("class, from most to fewest training images")
    recall_axis.set_ylabel("recall on the test split")
    recall_axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)
    return figure


def interpolation_curves(
    shares: Sequence[float],
    h_mean: Sequence[float],
    g_mean: Sequence[float],
    levels: tuple[float, float] | None = None,
) -> "Figure":
    """Draw the H-mean and the G-mean of models between two, side by side (Figures 1 and 2).

    Arguments:
    - shares: (P,) lambda, the second model's share of the weights.
    - h_mean, g_mean: (P,) fractions.
    - levels: H-mean and G-mean of a model to compare with, drawn as lines (the union of both subsets).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    axes = figure.subplots(1, 2)
    for number, (axis, values, name) in enumerate(zip(axes, (h_mean, g_mean), ("H-mean", "G-mean"), strict=True)):
        axis.plot(shares, [100 * value for value in values], "o-", color=AFTER, markersize=4, label="between the two")
        if levels is not None:
            axis.axhline(100 * levels[number], color=BEFORE, linestyle="--", label="trained on the union")
            axis.legend(frameon=False)
        axis.set_xlabel("lambda")
        axis.set_ylabel(f"{name} on the test split (%)")
    return figure

"""Figures: each function takes arrays and returns a matplotlib figure. Colours are of Okabe and Ito's colour-blind set.

C classes; recall (C,) in [0, 1], train_counts (C,).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from btm_core.seeding import numpy_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["interpolation_curves", "long_tail_profile", "recall_by_frequency", "recall_scatter"]

BEFORE, AFTER, COUNTS = "#D55E00", "#0072B2", "#999999"
SHAPES = {"many": "o", "medium": "s", "few": "^"}
LABEL_LENGTH = 24


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
            recall_axis.plot(*_running_mean(np.asarray(values)[order]), style, color=color, zorder=3)
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


def _running_mean(values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ranks and means of a window that moves over values (C,), about a fortieth of them wide."""
    width = len(values) // 40
    return np.arange(len(values) - width + 1) + (width + 1) / 2, np.convolve(values, np.full(width, 1 / width), "valid")


def recall_scatter(
    before: ArrayLike,
    after: ArrayLike,
    train_counts: ArrayLike,
    test_counts: ArrayLike,
    groups: Mapping[str, NDArray[np.bool_]],
    class_names: Sequence[str],
    before_name: str,
    after_name: str,
    labels: int = 8,
) -> "Figure":
    """Draw the recall of each class before against after, with the diagonal: below it are those that got worse.

    Recall is a multiple of 1 / test images, so many classes share a place: they are scattered around it by less than
    half of that, and so that none crosses the diagonal.

    Arguments:
    - before, after: (C,) recall of two models.
    - train_counts, test_counts: (C,) images a class.
    - groups: masks (C,) of many, medium and few (`btm_core.metrics.shot_groups`): the shapes, which show in grey too.
    - labels: so many of the most changed classes are named, where there is room.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    x, y, counts = np.asarray(before), np.asarray(after), np.asarray(train_counts)
    shift = _jitter(x != y, np.asarray(test_counts))
    figure = Figure(figsize=(6.6, 5.6), layout="constrained")
    axis = figure.add_subplot()
    ends = (-0.04 - np.abs(shift).max(), 1.04 + np.abs(shift).max())
    axis.plot(ends, ends, color="#777777", linewidth=0.8, zorder=1)
    norm = LogNorm(max(1, counts.min()), max(2, counts.max()))
    size, alpha = (36, 0.9) if len(x) <= 200 else (14, 0.7) if len(x) <= 2000 else (6, 0.5)
    for name, members in groups.items():
        if members.any():
            points = axis.scatter(
                (x + shift[0])[members],
                (y + shift[1])[members],
                c=counts[members],
                s=size,
                marker=SHAPES[name],
                alpha=alpha,
                norm=norm,
                cmap="cividis_r",
                linewidths=0.3,
                edgecolors="#333333",
                label=f"{name} ({members.sum():,})",
            )
    bar = figure.colorbar(points, ax=axis, label="training images a class")
    bar.solids.set_alpha(1)  # type: ignore[union-attr]
    axis.set_xlim(ends)
    axis.set_ylim(ends)
    axis.set_aspect("equal")
    axis.set_xlabel(f"recall, {before_name}")
    axis.set_ylabel(f"recall, {after_name}")
    legend = axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=3, frameon=False, handletextpad=0.2)
    for handle in legend.legend_handles:
        handle.set(sizes=[36], facecolor="#BBBBBB", alpha=1, array=None)  # type: ignore[union-attr]
    places = np.stack([x, y], 1) + shift.T
    named = _most_changed(np.abs(y - x), labels)
    _name_points(figure, places, {c: _drawable(class_names[c], c) for c in named})
    return figure


def _most_changed(change: NDArray[np.float64], most: int) -> list[int]:
    """Return at most so many classes, those that changed most; none of several that changed alike if not all fit."""
    order = np.lexsort((np.arange(len(change)), -change))
    limit = change[order[most]] if most < len(change) else 0.0
    return [int(c) for c in order[:most] if change[c] > limit]


def _jitter(changed: NDArray[np.bool_], test_counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return shifts (2, C), the same at every call: of classes that did not change, along the diagonal."""
    reach = 0.3 / np.maximum(test_counts, 3)
    shift = numpy_generator("jitter").uniform(-1, 1, (2, len(changed))) * reach
    return np.where(changed, shift, shift[:1])


def _name_points(figure: "Figure", places: NDArray[np.float64], names: Mapping[int, str]) -> None:
    """Write the names of classes beside their places (C, 2), each where it covers nothing, or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    axis = figure.axes[0]
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()  # the layout is settled by drawing
    taken = [Bbox([at - 3, at + 3]) for at in axis.transData.transform(places)] if len(places) <= 200 else []
    for c, name in names.items():
        for across, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)):
            text = axis.annotate(
                name,
                (places[c, 0], places[c, 1]),
                (6 * across, 6 * up),
                textcoords="offset points",
                ha=("center", "left", "right")[across],
                va=("center", "bottom", "top")[up],
                fontsize=8,
                parse_math=False,  # a name may hold a dollar
            )
            box = text.get_window_extent(renderer)
            inside = axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1)
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


def _drawable(name: str, number: int) -> str:
    """Return a name as it can be drawn; a class whose letters the font lacks goes by its number."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = get_font(findfont(FontProperties())).get_charmap()
    if any(ord(letter) not in letters for letter in name):
        return f"class {number}"
    return name if len(name) <= LABEL_LENGTH else f"{name[: LABEL_LENGTH - 1]}…"


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

"""Charts of a page about models, as SVG: each function takes arrays and returns what stands in the page.

C classes; recall (C,) in [0, 1], train_counts (C,). `btm_core.plots` has the same as pictures, for MLflow and papers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from btm_core.pages import interval, points, reliable
from btm_core.pages.svg import PERCENT, Plot
from btm_core.plots import running_mean
from btm_core.seeding import numpy_generator

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = [
    "change_chart",
    "frequency_chart",
    "interpolation_chart",
    "models_chart",
    "recall_histogram",
    "reliability_chart",
    "scatter_chart",
]

NAMED, NAME_LENGTH = 30, 18
"""Up to so many classes are named on the axis, by so many letters."""
SINGLY = 200
"""Up to so many classes each is a mark of its own, which says its name; more are dots."""
CROWD = 2000
"""Of more classes dots are fainter or left out, and none is named."""
SHAPES = {"many": "circle", "medium": "square", "few": "triangle"}
LABELS, LABEL_LENGTH, LETTER = 8, 24, 6.4
"""So many of the classes that changed most are named, by so many letters of about so many pixels."""
Box = tuple[float, float, float, float]


def frequency_chart(
    before: ArrayLike, after: ArrayLike, train_counts: ArrayLike, class_names: Sequence[str], label: str
) -> "Markup":
    """Draw per-class recall before and after, classes sorted by training images, whose number is the grey area.

    Up to 30 classes have their names below. Of more than 200 running means are drawn, too; of more than 2,000, whose
    dots would hide each other, alone.
    """
    counts, a, b = np.asarray(train_counts), np.asarray(before), np.asarray(after)
    order = np.lexsort((np.arange(len(counts)), -counts))
    ticks = _rank_ticks(len(counts))
    left, below, named = 46, 42, len(counts) <= NAMED
    if named:
        ticks = [(rank, _short(class_names[c], NAME_LENGTH)) for rank, c in enumerate(order, start=1)]
        left, below = 64, 40 + math.ceil(0.72 * LETTER * max(len(name) for _, name in ticks))
    plot = Plot(label, (900, 278 + below), (0.5, len(counts) + 0.5), (-0.03, 1.03), (left, 10, 54, below))
    top = max(1.0, math.log10(max(counts.max(), 10)))
    plot.axes("class, from most to fewest training images", "recall (%)", ticks, slanted=named)
    _count_area(plot, counts[order], top)
    for power in range(int(top) + 1):
        plot.text(plot.right + 5, plot.y(power / top) + 4, f"{10**power:,}", "start")
    plot.parts.append(
        f'<text transform="translate({plot.width - 8} {(plot.top + plot.bottom) / 2:.0f}) rotate(-90)" '
        'text-anchor="middle">training images (grey)</text>'
    )
    if len(counts) > SINGLY:
        ranks = range(1, len(counts) + 1)
        for values, kind in ((a, "before"), (b, "after")) if len(counts) <= CROWD else ():
            plot.dots(zip(ranks, values[order].tolist(), strict=True), f"{kind} {_crowd(a)}")
        for values, kind in ((a, "before"), (b, "after")):
            plot.line(_thinned(*running_mean(values[order])), f"line {kind}")
        return plot.svg()
    for rank, c in enumerate(order.tolist(), start=1):
        stem = f'<path class="stem" d="M{plot.x(rank):.1f} {plot.y(a[c]):.1f}V{plot.y(b[c]):.1f}"/>'
        said = f"{class_names[c]}: {100 * a[c]:.1f} % before, {100 * b[c]:.1f} % after; {counts[c]:,} training images"
        size = 4.0 if len(counts) <= 60 else 2.8
        marks = (
            plot.mark(rank, a[c], "hollow before", size=size),
            plot.mark(rank, b[c], "after", "square", size - 0.4),
        )
        plot.group(said, stem, *marks)
    return plot.svg()


def _crowd(classes: NDArray[Any]) -> str:
    """Return how dots of so many classes look: the more, the fainter."""
    return "faint" if len(classes) <= CROWD else "dense"


def _rank_ticks(classes: int) -> list[tuple[float, str]]:
    step = max(1, int(classes / 8))
    unit = 10 ** int(math.log10(step))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= step)
    return [(rank, f"{rank:,}") for rank in sorted({1, *range(step, classes + 1, step)}) if rank == 1 or rank >= step]


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _count_area(plot: Plot, counts: NDArray[Any], top: float) -> None:
    """Draw the logarithm of sorted counts as an area, a corner wherever it changes."""
    heights = np.log10(np.maximum(counts, 1)) / top
    corners = [f"M{plot.left} {plot.bottom}"]
    for start in [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist()]:
        corners.append(f"H{plot.x(start + 0.5):.1f}V{plot.y(heights[start]):.1f}")
    plot.parts.append(f'<path class="area" d="{"".join(corners)}H{plot.right}V{plot.bottom}z"/>')


def _thinned(ranks: NDArray[Any], means: NDArray[np.float64], most: int = 400) -> list[tuple[float, float]]:
    chosen = np.unique(np.linspace(0, len(ranks) - 1, min(most, len(ranks))).astype(int))
    return [(float(ranks[i]), float(means[i])) for i in chosen]


def scatter_chart(
    before: ArrayLike,
    after: ArrayLike,
    test_counts: ArrayLike,
    groups: Mapping[str, NDArray[np.bool_]],
    class_names: Sequence[str],
    label: str,
    axes: tuple[str, str] = ("recall before (%)", "recall after (%)"),
) -> "Markup":
    """Draw the recall of each class before against after; classes that share a place are set apart a little.

    Arguments:
    - test_counts: (C,) images a class: they bound by how much a class is moved.
    - groups: masks (C,) of many, medium and few: circles, squares and triangles.
    """
    a, b = np.asarray(before), np.asarray(after)
    shift = _jitter(a != b, np.asarray(test_counts))
    reach = 0.03 + float(np.abs(shift).max())
    plot = Plot(label, (420, 420), (-reach, 1 + reach), (-reach, 1 + reach))
    plot.axes(*axes)
    plot.line([(-reach, -reach), (1 + reach, 1 + reach)], "diagonal")
    for group, members in groups.items():
        chosen = np.flatnonzero(members)
        if len(a) > SINGLY:
            plot.dots(((a[c] + shift[0, c], b[c] + shift[1, c]) for c in chosen), f"{group} {_crowd(a)}")
            continue
        for c in chosen.tolist():
            mark = plot.mark(a[c] + shift[0, c], b[c] + shift[1, c], group, SHAPES[group])
            plot.group(f"{class_names[c]}: {100 * a[c]:.1f} % before, {100 * b[c]:.1f} % after", mark)
    named = {c: class_names[c] for c in _most_changed(np.abs(b - a), LABELS if len(a) <= CROWD else 0)}
    _name_points(plot, np.stack([a, b], 1) + shift.T, named)
    return plot.svg()


def _most_changed(change: NDArray[np.float64], most: int) -> list[int]:
    """Return at most so many classes, those that changed most; none of several that changed alike if not all fit."""
    order = np.lexsort((np.arange(len(change)), -change))
    limit = change[order[most]] if most < len(change) else 0.0
    return [int(c) for c in order[:most] if change[c] > limit]


def _jitter(changed: NDArray[np.bool_], test_counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return shifts (2, C), the same at every call: of classes that did not change, along the diagonal.

    Recall is a multiple of 1 / test images, so many classes share a place: they are scattered around it by less than
    half of that, and so that none crosses the diagonal.
    """
    reach = 0.3 / np.maximum(test_counts, 3)
    shift = numpy_generator("jitter").uniform(-1, 1, (2, len(changed))) * reach
    return np.where(changed, shift, shift[:1])


def _name_points(plot: Plot, places: NDArray[np.float64], names: Mapping[int, str]) -> None:
    """Write the names of classes beside their places (C, 2), each where it covers nothing, or not at all."""
    pixels = [(plot.x(a), plot.y(b)) for a, b in places.tolist()]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels] if len(pixels) <= SINGLY else []
    for c, name in names.items():
        text = _short(name, LABEL_LENGTH)
        width, (x, y) = LETTER * len(text) + 2, pixels[c]
        for anchor, left, up in (("start", 8.0, -4.0), ("end", -8 - width, -4.0), ("middle", -width / 2, 8.0)):
            box = (x + left, y - up - 11, x + left + width, y - up + 3)
            inside = plot.left <= box[0] and box[2] <= plot.width and plot.top <= box[1] and box[3] <= plot.bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                at = {"start": box[0], "end": box[2], "middle": x}[anchor]
                plot.text(at, y - up, text, anchor)
                break


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def recall_histogram(before: ArrayLike, after: ArrayLike, label: str) -> "Markup":
    """Draw how many classes have which recall, in steps of a tenth, before and after."""
    edges = np.linspace(0, 1, 11)
    counts = [np.histogram(np.asarray(values), edges)[0] for values in (before, after)]
    most = max(int(count.max()) for count in counts)
    plot = Plot(label, (420, 420), (0, 1), (0, 1.05 * most), (58, 10, 12, 42))
    plot.axes("recall (%)", "classes", PERCENT, _count_ticks(most))
    for left, *heights in zip(edges, *counts, strict=False):
        between = f"{100 * left:.0f} to {100 * left + 10:.0f} %"
        for number, (kind, height) in enumerate(zip(("before bar", "after bar"), heights, strict=True)):
            start = left + 0.01 + 0.04 * number
            plot.bar(start, start + 0.037, height, kind, f"{between} {kind.split()[0]}: {height:,} classes")
    return plot.svg()


def _count_ticks(most: int) -> list[tuple[float, str]]:
    unit = 10 ** int(math.log10(max(most, 1)))
    step = next(step for step in (unit // 5, unit // 2, unit, 2 * unit) if step and most / step <= 6)
    return [(value, f"{value:,}") for value in range(0, most + 1, step)]


def reliability_chart(before: Mapping[str, Any], after: Mapping[str, Any], label: str) -> "Markup":
    """Draw accuracy against confidence, bin by bin; each mark's area is its share of the images.

    Arguments:
    - before, after: `btm_core.calibration.Calibration.to_json` of two models.
    """
    plot = Plot(label, (420, 420), (0, 1.02), (0, 1.02))
    plot.axes("confidence (%)", "accuracy (%)")
    plot.line([(0, 0), (1, 1)], "diagonal")
    for kind, shape, found in (("hollow before", "circle", before), ("after", "square", after)):
        total = sum(found["images"])
        bins = zip(found["confidence"], found["accuracy"], found["images"], strict=True)
        points = [(p, hits, images) for p, hits, images in bins if images]
        plot.line([(p, hits) for p, hits, _ in points], f"line {kind.split()[-1]}")
        for p, hits, images in points:
            size = 2.5 + 9 * math.sqrt(images / total)
            said = f"{images:,} images: confidence {100 * p:.1f} %, accuracy {100 * hits:.1f} %"
            plot.group(said, plot.mark(p, hits, kind, shape, size if shape == "circle" else 0.88 * size))
    return plot.svg()


def change_chart(figures: Sequence[tuple[str, Mapping[str, float]]], label: str) -> "Markup":
    """Draw differences and their intervals, a line each, around 0.

    Arguments:
    - figures: heading and {difference, low, high}, fractions, of each; an interval that does not hold the difference is
        not drawn.
    """
    drawn = [[row["difference"], *((row["low"], row["high"]) if reliable(row) else ())] for _, row in figures]
    ends = [0.0, *(float(value) for values in drawn for value in values)]
    reach = max(0.01, max(ends) - min(ends))
    low, high = min(ends) - 0.06 * reach, max(ends) + 0.06 * reach
    plot = Plot(label, (440, 58 + 26 * len(figures)), (low, high), (len(figures) - 0.4, -0.6), (98, 4, 16, 42))
    plot.axes("change in points of percent", "", _nice_ticks(100 * low, 100 * high), ())
    plot.parts.append(f'<path class="zero" d="M{plot.x(0):.1f} {plot.top}V{plot.bottom}"/>')
    for place, (heading, row) in enumerate(figures):
        start, end, told, certain = row["low"], row["high"], interval(row), reliable(row)
        kind = "before" if certain and end < 0 else "after" if certain and start > 0 else "unclear"
        said = f"{heading}: {points(row['difference'])} ({told if certain else f'no interval: {told}'})"
        y = plot.y(place)
        plot.text(plot.left - 8, y + 4, heading, "end")
        bar = f'<path class="interval {kind}" d="M{plot.x(start):.1f} {y:.1f}H{plot.x(end):.1f}"/>'
        plot.group(said, *([bar] if certain else []), plot.mark(row["difference"], place, kind, "circle", 4.5))
    return plot.svg()


def _nice_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return about six round values between two, in percent, as fractions and texts."""
    rough = (high - low) / 6
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [(n * step / 100, f"{n * step:+g}" if n else "0") for n in numbers]


def models_chart(rows: Sequence[Mapping[str, Any]], figure: str, heading: str) -> "Markup":
    """Draw one figure of every model on the way; the ingredients of the soup share a line.

    Arguments:
    - rows: `name`, `stage` and figures of models, in order.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault("ingredients" if row["stage"] == "finetune" else row["name"], []).append(row)
    said = "; ".join(
        f"{name} {', '.join(f'{100 * row[figure]:.1f}' for row in found)}" for name, found in lines.items()
    )
    plot = Plot(
        f"{heading} in percent: {said[:900]}",
        (340, 62 + 26 * len(lines)), (-0.02, 1.02), (len(lines) - 0.4, -0.6), (132, 4, 12, 42),
    )  # fmt: skip
    plot.axes(f"{heading} (%)", "", PERCENT, ())
    for place, (name, found) in enumerate(lines.items()):
        y = plot.y(place)
        plot.parts.append(f'<path class="grid" d="M{plot.left} {y:.1f}H{plot.right}"/>')
        plot.text(plot.left - 8, y + 4, name if len(name) < 22 else name[:21] + "…", "end")
        stage, last = found[0]["stage"], place == len(lines) - 1
        kind = {"finetune": "faint after", "merge": "hollow after", "post_train": "after"}.get(stage, "before")
        kind, shape = ("after", "square") if last else (kind, "circle")
        for row in found:
            mark = plot.mark(row[figure], place, kind, shape, 4.5)
            plot.group(f"{row['name']}: {100 * row[figure]:.1f} %", mark)
    return plot.svg()


def interpolation_chart(
    shares: Sequence[float], values: Sequence[float], level: float | None, heading: str, label: str
) -> "Markup":
    """Draw a figure of models between two, by the second one's share of the weights (Figures 1 and 2).

    Arguments:
    - shares, values: (P,) lambda, and fractions.
    - level: the figure of a model to compare with, drawn as a line.
    """
    known = [*values, *([] if level is None else [level])]
    reach = max(0.01, max(known) - min(known))
    low, high = max(0.0, min(known) - 0.1 * reach), min(1.0, max(known) + 0.1 * reach)
    ticks = [(value, text.lstrip("+")) for value, text in _nice_ticks(100 * low, 100 * high)]
    plot = Plot(label, (420, 300), (-0.02, 1.02), (low, high))
    plot.axes("lambda", f"{heading} (%)", [(value / 5, f"{value / 5:g}") for value in range(6)], ticks)
    if level is not None:
        plot.line([(0, level), (1, level)], "line before")
    plot.line(zip(shares, values, strict=True), "line after")
    for share, value in zip(shares, values, strict=True):
        plot.group(f"lambda {share:g}: {100 * value:.1f} %", plot.mark(share, value, "after"))
    return plot.svg()

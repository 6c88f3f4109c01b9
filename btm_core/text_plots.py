"""Plots of letters, for terminals and logs."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["long_tail_plot"]

EIGHTHS = " ▁▂▃▄▅▆▇█"
BARS_UP_TO = 30
"""Classes that get a line each."""


Paint = Callable[[str, int], str]
"""Given letters, and the images of the class that they stand for."""


def long_tail_plot(
    counts: ArrayLike,
    names: Sequence[str],
    width: int = 80,
    height: int = 10,
    *,
    plain: bool = False,
    paint: Paint | None = None,
) -> str:
    """Draw how many images each class has, on a log scale, most first: a bar a class, or for many classes a curve.

    Arguments:
    - counts: (C,) images a class. A class without any has no bar.
    - width, height: characters.
    - plain: without letters beyond ASCII.
    - paint: returns the letters of bars in their colour.
    """
    n = np.asarray(counts, dtype=np.int64)
    order = np.lexsort((np.arange(len(n)), -n))
    if len(n) <= BARS_UP_TO:
        return _bars(n[order], [names[c] for c in order], width, plain, paint or _unpainted)
    return _curve(n[order], width, height, plain, paint or _unpainted)


def _unpainted(letters: str, count: int) -> str:
    return letters


def _bars(n: NDArray[np.int64], names: list[str], width: int, plain: bool, paint: Paint) -> str:
    longest = min(max(map(len, names)), 24)
    room = width - longest - len(f"{n.max():,}") - 3
    top = math.log1p(int(n.max())) or 1.0
    lines = []
    for count, name in zip(n.tolist(), names, strict=True):
        eighths = round(8 * room * math.log1p(count) / top)
        bar = "#" * (eighths // 8) if plain else "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        lines.append(f"{_short(name, longest, plain):<{longest}} {paint(bar, count)} {count:,}")
    return "\n".join(lines)


def _short(name: str, most: int, plain: bool) -> str:
    name = name.encode("ascii", "replace").decode() if plain else name
    return name if len(name) <= most else name[: most - 1] + ("~" if plain else "…")


def _curve(n: NDArray[np.int64], width: int, height: int, plain: bool, paint: Paint) -> str:
    """A column for one class or several (their median), with the counts at the left and the ranks below."""
    top = max(math.ceil(math.log10(max(int(n.max()), 2))), 1)
    margin = len(f"{10**top:,}")
    columns = min(width - margin - 2, len(n))
    parts = np.array_split(n, columns)
    # A class of one image still shows: log10(1) is 0.
    middles = [int(np.median(part)) for part in parts]
    shares = [0.0 if middle < 1 else (math.log10(middle) + 0.15) / (top + 0.15) for middle in middles]
    lines = []
    levels = {round((k + 0.15) / (top + 0.15) * height - 1): 10**k for k in range(1, top + 1)} | {0: 1}
    for row in range(height - 1, -1, -1):
        label = f"{levels[row]:,}" if row in levels else ""
        cells = [_cell(share * height - row, plain) for share in shares]
        cells = cells[: len("".join(cells).rstrip())]
        edge = ("+" if row in levels else "|") if plain else ("┤" if row in levels else "│")
        painted = "".join(paint(cell, middle) for cell, middle in zip(cells, middles, strict=False))
        lines.append(f"{label:>{margin}} {edge}{painted}")
    lines.append(" " * (margin + 1) + ("+" + "-" * columns if plain else "└" + "─" * columns))
    last = f"{len(n):,}"
    lines.append(" " * (margin + 2) + "1" + "class, from most to fewest images".center(columns - 1 - len(last)) + last)
    return "\n".join(lines)


def _cell(filled: float, plain: bool) -> str:
    if plain:
        return "#" if filled >= 0.5 else " "
    return EIGHTHS[max(0, min(8, round(8 * filled)))]

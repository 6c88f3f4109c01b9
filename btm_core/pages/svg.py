"""Charts as SVG inside a page: they take the page's colours, light or dark, and need no picture file.

Colours are the classes of `style.css` (`before`, `after`, `grid`, ...), never values: one drawing serves both schemes.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from markupsafe import escape

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["PERCENT", "Plot", "number"]

PERCENT = tuple((value / 100, f"{value}") for value in range(0, 101, 20))
"""Ticks of a recall axis: place and text."""
Ticks = Sequence[tuple[float, str]]


def number(value: float) -> str:
    """Return a coordinate with a tenth of a pixel, as short as it can be written."""
    return f"{value:.1f}".removesuffix(".0")


class Plot:
    """A chart under way: a frame of `width` x `height` pixels, with ranges of both axes, and what was drawn.

    Arguments:
    - label: what a screen reader says in place of the drawing.
    - margins: left, top, right, bottom.
    """

    def __init__(
        self,
        label: str,
        size: tuple[int, int],
        x: tuple[float, float],
        y: tuple[float, float],
        margins: tuple[int, int, int, int] = (46, 10, 12, 42),
    ):
        self.label, (self.width, self.height), self.xs, self.ys = label, size, x, y
        self.left, self.top, right, bottom = margins
        self.right, self.bottom = self.width - right, self.height - bottom
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        """Return where a value is across, in pixels."""
        return self.left + (value - self.xs[0]) / (self.xs[1] - self.xs[0]) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return where a value is up, in pixels from the top."""
        return self.bottom - (value - self.ys[0]) / (self.ys[1] - self.ys[0]) * (self.bottom - self.top)

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """Draw a line through points."""
        path = " ".join(f"{number(self.x(a))},{number(self.y(b))}" for a, b in points)
        self.parts.append(f'<polyline class="{kind}" points="{path}"/>')

    def dots(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """Draw many points as one path of round dots: ten bytes each."""
        path = "".join(f"M{number(self.x(a))} {number(self.y(b))}h0" for a, b in points)
        if path:
            self.parts.append(f'<path class="dots {kind}" d="{path}"/>')

    def mark(self, a: float, b: float, kind: str, shape: str = "circle", size: float = 3.5) -> str:
        """Return a mark at a point: circle, square or triangle."""
        x, y = self.x(a), self.y(b)
        if shape == "circle":
            return f'<circle class="{kind}" cx="{number(x)}" cy="{number(y)}" r="{number(size)}"/>'
        if shape == "square":
            corner = f'x="{number(x - size)}" y="{number(y - size)}"'
            return f'<rect class="{kind}" {corner} width="{number(2 * size)}" height="{number(2 * size)}"/>'
        path = f"M{number(x)} {number(y - 1.3 * size)}l{number(1.2 * size)} {number(2.1 * size)}h{number(-2.4 * size)}z"
        return f'<path class="{kind}" d="{path}"/>'

    def bar(self, left: float, right: float, top: float, kind: str, said: str = "") -> None:
        """Draw a bar from the lower axis up to `top`."""
        x, y = self.x(left), self.y(top)
        shape = (
            f'x="{number(x)}" y="{number(y)}" width="{number(self.x(right) - x)}" height="{number(self.bottom - y)}"'
        )
        self.parts.append(f'<rect class="{kind}" {shape}>{title(said)}</rect>')

    def group(self, said: str, *marks: str) -> None:
        """Draw marks that belong together; who points at them reads what is said of them."""
        self.parts.append(f"<g>{title(said)}{''.join(marks)}</g>")

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        """Write a text at a pixel: its start, middle or end."""
        place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
        self.parts.append(f"<text {place}>{escape(text)}</text>")

    def axes(
        self, x_label: str, y_label: str, x_ticks: Ticks = PERCENT, y_ticks: Ticks = PERCENT, slanted: bool = False
    ) -> None:
        """Draw the grid, the ticks and the names of both axes; call it first, so that it lies below.

        `slanted` texts of the lower axis rise to their tick: names, which are long.
        """
        for value, text in y_ticks:
            y = number(self.y(value))
            self.parts.append(f'<path class="grid" d="M{self.left} {y}H{self.right}"/>')
            self.parts.append(f'<text x="{self.left - 6}" y="{y}" dy=".32em" text-anchor="end">{escape(text)}</text>')
        for value, text in x_ticks:
            x = number(self.x(value))
            self.parts.append(f'<path class="grid" d="M{x} {self.top}V{self.bottom}"/>')
            place = f'x="{x}" y="{self.bottom + 16}" text-anchor="middle"'
            if slanted:
                place = f'transform="translate({x} {self.bottom + 14}) rotate(-50)" text-anchor="end"'
            self.parts.append(f"<text {place}>{escape(text)}</text>")
        middle = (self.left + self.right) / 2
        self.parts.append(
            f'<text x="{number(middle)}" y="{self.height - 7}" text-anchor="middle">{escape(x_label)}</text>'
        )
        height = (self.top + self.bottom) / 2
        if y_label:
            turned = f'transform="translate(12 {number(height)}) rotate(-90)"'
            self.parts.append(f'<text {turned} text-anchor="middle">{escape(y_label)}</text>')

    def svg(self) -> "Markup":
        """Return the drawing as it stands in a page."""
        from markupsafe import Markup

        view = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        return Markup(
            f'<svg class="chart" {view} role="img" aria-label="{escape(self.label)}">{"".join(self.parts)}</svg>'
        )


def title(said: str) -> str:
    """Return what shows when one points at a mark; nothing if there is nothing to say."""
    return f"<title>{escape(said)}</title>" if said else ""

"""HTML pages that need nothing beside them: templates of this package, with style and images inside."""

import base64
import hashlib
import io
import warnings
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

__all__ = ["data_url", "inline", "interval", "page_environment", "percent", "png", "points", "reliable", "render_page"]


def page_environment() -> "Environment":
    """Return jinja2's environment of this package's templates.

    Filters: `percent` of a fraction, `points` of a difference of fractions (with its sign), `interval` of what has
    `low` and `high`, all of them in percent, and n/a for None; `signed` of a difference of counts. The test `reliable`
    tells whether an interval holds the difference. `table_script` is
    the one script that pages run; they forbid any other, and every request.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("btm_core", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = files("btm_core.pages").joinpath("class_table.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"table_script": Markup(script), "script_hash": f"sha256-{digest}"}
    environment.filters |= {"percent": percent, "points": points, "interval": interval, "signed": signed}
    environment.tests["reliable"] = reliable
    return environment


def render_page(template: str, **values: Any) -> str:
    """Return a template of this package filled in."""
    return page_environment().get_template(template).render(**values)


def percent(value: float | None) -> str:
    """Return a fraction in percent."""
    return "n/a" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Return a difference of fractions in points of percent, with its sign."""
    text = "n/a" if value is None else f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def signed(count: int) -> str:
    """Return a difference of counts, with its sign."""
    return f"{count:+d}" if count else "0"


def reliable(row: Mapping[str, Any]) -> bool:
    """Return whether an interval, `low` to `high`, holds the `difference` (or `mean`) that it is of.

    With few test images a class that of H-mean and G-mean may not: more recalls are zero among resampled images than
    among all. Then it tells nothing.
    """
    found = row["mean"] if "mean" in row else row["difference"]
    return bool(row["low"] - 1e-9 <= found <= row["high"] + 1e-9)


def interval(difference: Mapping[str, Any]) -> str:
    """Return the interval of a difference in points of percent; why there is none, if it is not reliable."""
    if not reliable(difference):
        return "too few images"
    return f"{points(difference['low'])} to {points(difference['high'])}"


def png(figure: "Figure") -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a legend's name in letters that the font lacks
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def inline(image: bytes) -> str:
    """Return a PNG as a data URL."""
    return data_url("image/png", image)


def data_url(kind: str, content: bytes) -> str:
    """Return something as a data URL of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

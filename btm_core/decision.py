"""The page of a decision of the gate."""

from collections.abc import Mapping
from typing import Any

from btm_core.pages import render_page
from btm_core.side_by_side import pair_html

__all__ = ["decision_html"]


def decision_html(document: Mapping[str, Any]) -> str:
    """Return a decision as one HTML page that needs nothing beside it: rules, figures, and the classes that changed."""
    from markupsafe import Markup

    comparison = document["comparison"]
    pair = "" if comparison is None else Markup(pair_html(comparison))
    return render_page("decision.html.j2", document=document, pair=pair)

"""Pages of models side by side: what `btm_core.side_by_side` says of each pair, with charts and a table of classes."""

from typing import Any

import numpy as np
from markupsafe import Markup

from btm_core.pages import render_page
from btm_core.pages.charts import change_chart, frequency_chart, recall_histogram, scatter_chart
from btm_core.pages.class_table import ClassTable
from btm_core.side_by_side import FIGURES, cautions, changes, lettered, most_lost

__all__ = ["pair_html", "side_by_side_html"]

SHOWN = 50
"""Of the classes that lost most so many are listed on a page."""


def side_by_side_html(document: dict[str, Any], shown: int = SHOWN) -> str:
    """Return the document of `side_by_side` as one page that needs nothing beside it."""
    pairs = lettered(document)
    parts = {letter: (changes(pair, letter), Markup(pair_html(pair, letter, shown))) for letter, pair in pairs.items()}
    models = {"A": document["a"], **{letter: pair["b"] for letter, pair in pairs.items()}}
    images = sum(row["test_images"] for row in document["per_class"])
    return render_page("side_by_side.html.j2", document=document, models=models, parts=parts, images=images)


def pair_html(document: dict[str, Any], letter: str = "B", shown: int = SHOWN) -> str:
    """Return charts, tables and lists of one pair as a fragment of HTML, for a page that extends `page.html.j2`.

    The `shown` classes that lost most are listed; all classes are in a table to search.
    """
    rows = document["per_class"]
    return render_page(
        "pair.html.j2",
        document=document,
        headings=FIGURES,
        charts=_pair_charts(document, letter),
        letter=letter,
        cautions=cautions(document),
        lost=most_lost(document, shown),
        table=ClassTable(rows, "A", letter, f"{letter}-class"),
    )


def _pair_charts(document: dict[str, Any], letter: str) -> dict[str, Markup]:
    rows, summary = document["per_class"], document["summary"]
    column = {key: [row[key] for row in rows] for key in ("a", "b", "train_images", "test_images", "name")}
    both, recalls = f"of A and of {letter}", (column["a"], column["b"])
    return {
        "change": change_chart(
            [(heading, summary[name]) for name, heading in FIGURES.items() if name in summary],
            f"Changes from A to {letter} with their intervals; the table before it has the numbers",
        ),
        "by_frequency": frequency_chart(
            *recalls, column["train_images"], column["name"], f"Recall of each class {both}, by frequency"
        ),
        "scatter": scatter_chart(
            *recalls,
            column["test_images"],
            {name: np.array([row["group"] == name for row in rows]) for name in ("many", "medium", "few")},
            column["name"],
            f"Recall of each class: A across, {letter} up",
            ("recall of A (%)", f"recall of {letter} (%)"),
        ),
        "histogram": recall_histogram(*recalls, f"How many classes have which recall, {both}"),
    }

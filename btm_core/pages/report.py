"""The page of a run: one HTML file that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from btm_core.calibration import BINS
from btm_core.comparison import curve_charts
from btm_core.pages import data_url, interval, percent, points, reliable, render_page
from btm_core.pages.charts import (
    change_chart,
    frequency_chart,
    models_chart,
    recall_histogram,
    reliability_chart,
    scatter_chart,
)
from btm_core.pages.class_table import ClassTable
from btm_core.pages.thumbnails import Thumbnail
from btm_core.report import class_rows
from btm_core.side_by_side import FIGURES

__all__ = ["render_html"]

MOST_CHANGED = 10
"""Classes that are named of those that got better, and of those that got worse."""
LONG_NAME = 28
"""Letters of a class's name beyond which two tables do not fit side by side."""
LEAD = {"h_mean": "the H-mean", "lowest_recall": "the lowest recall", "accuracy": "accuracy"}
Thumbnails = Mapping[int, Sequence[Thumbnail]]


def render_html(report: dict[str, Any], thumbnails: Thumbnails | None = None, without: str = "") -> str:
    """Return the report as one HTML page.

    Arguments:
    - thumbnails: of classes, by their number.
    - without: why there are none, or not of all of the lowest classes.
    """
    import yaml

    rows = class_rows(report)
    summary = report["comparison"]["summary"]
    config = yaml.safe_dump(report["experiment"], sort_keys=False, default_flow_style=None, allow_unicode=True)
    return render_page(
        "report.html.j2",
        **{"elsewhere": [], **report},
        rows=rows,
        bins=BINS,
        curves=next((curve_charts(one["curves"]) for one in report.get("elsewhere", ()) if one["curves"]), {}),
        before=next(row for row in report["models"] if row["name"] == report["compared_with"]),
        headings={name: heading for name, heading in FIGURES.items() if name in summary},
        lead=lead(report),
        told=told(summary),
        most={side: [rows[row["class"]] for row in summary[side][:MOST_CHANGED]] for side in ("better", "worse")},
        clearly={side: sum(row["clear"] for row in summary[side]) for side in ("better", "worse")},
        charts=charts(report, rows),
        table=ClassTable(rows),
        long_names=max(len(row["name"]) for row in rows) > LONG_NAME,
        thumbnails=thumbnails or {},
        without=without,
        config=config,
        config_url=data_url("text/yaml", config.encode()),
    )


def lead(report: dict[str, Any]) -> str:
    """Say in one sentence what BTM did to the three figures that matter most, with intervals."""
    summary, parts = report["comparison"]["summary"], []
    unit, known = " points", "95 % interval "  # said once
    for name, words in LEAD.items():
        row = summary[name]
        if points(row["difference"]) == "0.0":
            parts.append(f"left {words} at {percent(row['b'])} %")
            continue
        verb = "raised" if row["difference"] > 0 else "lowered"
        told = f"{known}{interval(row)}" if reliable(row) else "no interval: too few test images a class"
        change = f"{points(row['difference'])}{unit}, {told}"
        parts.append(f"{verb} {words} from {percent(row['a'])} to {percent(row['b'])} % ({change})")
        unit, known = "", "" if reliable(row) else known
    text = f"Against {report['compared_with']}, BTM {', '.join(parts[:-1])}, and {parts[-1]}."
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def told(summary: Mapping[str, Any]) -> list[str]:
    """Say of those that changed whether the choice of test images explains it."""
    found: dict[str, list[str]] = {"beyond": [], "chance": [], "unreliable": []}
    for name, words in LEAD.items():
        row = summary[name]
        if points(row["difference"]) == "0.0":
            continue
        clear = row["low"] > 0 or row["high"] < 0
        found["unreliable" if not reliable(row) else "beyond" if clear else "chance"].append(words)
    texts = {
        "beyond": "Chance in the choice of test images does not explain what happened to {}.",
        "chance": "Chance in the choice of test images may explain what happened to {}.",
        "unreliable": "There are too few test images a class to tell change from chance in {}.",
    }
    return [text.format(_listed(found[key])) for key, text in texts.items() if found[key]]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def charts(report: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the drawings of the page."""
    column = {key: [row[key] for row in rows] for key in ("a", "b", "train_images", "test_images", "name")}
    groups = {name: np.array([row["group"] == name for row in rows]) for name in ("many", "medium", "few")}
    both = f"{report['compared_with']} and of the final model"
    soup = next(row["name"] for row in report["models"] if row["stage"] == "merge")
    first, recall = report["models"][0]["name"], report["classes"]["recall"]
    classes = (column["train_images"], column["name"])
    summary, found = report["comparison"]["summary"], report["calibration"]
    drawn = {
        "final": frequency_chart(column["a"], column["b"], *classes, f"Recall of each class of {both}, by frequency"),
        "balanced_training": frequency_chart(
            recall[first], recall[soup], *classes, f"Recall of each class of {first} and of the soup, by frequency"
        ),
        "scatter": scatter_chart(
            column["a"], column["b"], column["test_images"], groups, column["name"],
            "Recall of each class before against after; above the diagonal it got better",
        ),
        "histogram": recall_histogram(column["a"], column["b"], f"How many classes have which recall, of {both}"),
        "change": change_chart(
            [(heading, summary[name]) for name, heading in FIGURES.items() if name in summary],
            "Changes of the figures with their intervals; the table before it has the numbers",
        ),
        "models": [
            (heading, models_chart(report["models"], name, heading))
            for name, heading in (("h_mean", "H-mean"), ("lowest_recall", "Lowest recall"), ("accuracy", "Accuracy"))
        ],
    }  # fmt: skip
    before, after = found[report["compared_with"]], found[report["models"][-1]["name"]]
    if before is not None and after is not None:
        drawn["reliability"] = [
            (name, reliability_chart(before[name], after[name], f"Accuracy by confidence, {name}; of {both}"))
            for name in ("overall", "few")
            if before[name] is not None
        ]
    return drawn

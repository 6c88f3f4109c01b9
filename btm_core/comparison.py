"""Tables that compare models over runs: one JSON document, and Markdown and HTML made from it.

`btm_core.side_by_side` compares two models image by image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from btm_core.pages import page_environment, reliable
from btm_core.statistics import spread
from btm_core.text import printable

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["FIGURES", "Row", "cell", "comparison", "comparison_html", "comparison_markdown", "curve_charts"]

FIGURES = {
    "h_mean": "H-mean",
    "g_mean": "G-mean",
    "lowest_recall": "Lowest recall",
    "accuracy": "Accuracy",
    "many": "Many",
    "medium": "Medium",
    "few": "Few",
    "zero_recall_classes": "Zero-recall classes",
}
"""The figures of a model, fractions but for the last, and their headings."""


@dataclass(frozen=True)
class Row:
    """A line: what it is, by column, and the figures of each run."""

    labels: dict[str, str]
    runs: list[dict[str, Any]] = field(default_factory=list)


def comparison(title: str, rows: Sequence[Row], *, validation: Sequence[Row] = (), **facts: Any) -> dict[str, Any]:
    """Return the JSON-ready document: for each row its labels, each run's figures, and mean and std of each figure.

    `validation` are rows of the validation split, if there is one: a table of its own.
    """
    document = {"title": title, "rows": _summarised(rows), "validation": None, **facts}
    if validation:
        first = validation[0].runs[0]
        names = {"split": first["split"], "split_hash": first["split_hash"]}
        document["validation"] = {**names, "rows": _summarised(validation)}
    return document


def _summarised(rows: Sequence[Row]) -> list[dict[str, Any]]:
    lines = []
    for row in rows:
        means = {name: spread([run[name] for run in row.runs]) for name in FIGURES}
        lines.append(
            {
                "labels": row.labels,
                "n": len(row.runs),
                "summary": {name: None if value is None else asdict(value) for name, value in means.items()},
                "runs": row.runs,
            }
        )
    return lines


def comparison_markdown(document: dict[str, Any]) -> str:
    """Return the table as Markdown, in percent, mean ± std where there are several runs."""
    lines = [f"### {document['title']}", "", *_table(document)]
    if document.get("validation"):
        lines += ["", *_table(document["validation"])]
    for difference in document.get("differences", []):
        parts = [
            f"{FIGURES.get(name, name.replace('_', ' '))} {100 * value['mean']:+.1f} "
            + (f"[{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]" if reliable(value) else "[too few images]")
            for name, value in difference["figures"].items()
        ]
        lines.append(f"{difference['second']} minus {difference['first']}, 95 % over test images: {'; '.join(parts)}.")
    lines += [f"**Warning:** {warning}." for warning in document.get("warnings", [])]
    return printable("\n".join(lines) + "\n", lines=True)


def _table(part: dict[str, Any]) -> list[str]:
    """Return the lines of one split's table, and what they are of."""
    columns = list(part["rows"][0]["labels"])
    lines = ["| " + " | ".join([*columns, *FIGURES.values()]) + " |", "|" + "---|" * (len(columns) + len(FIGURES))]
    for row in part["rows"]:
        cells = [row["labels"][column] for column in columns]
        cells += [cell(name, row["summary"][name]) for name in FIGURES]
        lines.append("| " + " | ".join(cells) + " |")
    runs = ", ".join(map(str, sorted({row["n"] for row in part["rows"]})))
    return [*lines, "", f"Percent, of the {part['split']} split ({part['split_hash'][:12]}); n = {runs}."]


def comparison_html(
    document: dict[str, Any], charts: "Mapping[str, Sequence[Markup]] | None" = None, note: str = ""
) -> str:
    """Return the table as one HTML page.

    Arguments:
    - charts: drawings of `btm_core.pages.charts`, by caption; `note` says how to read them.
    """
    environment = page_environment()
    environment.filters["cell"] = lambda summary, name: cell(name, summary[name])
    template = environment.get_template("comparison.html.j2")
    return template.render(document=document, headings=FIGURES, charts=charts or {}, note=note)


def curve_charts(curves: "Mapping[str, Mapping[str, Any]]") -> "dict[str, list[Markup]]":
    """Draw H-mean and G-mean along paths between two models in weight space, by the path's name.

    Arguments:
    - curves: of each path `lambda` (the second model's share), `h_mean` and `g_mean` along it, fractions, and `level`:
        both of the model to compare it with, or None.
    """
    from btm_core.pages.charts import interpolation_chart

    return {
        path: [
            interpolation_chart(
                curve["lambda"],
                curve[name],
                curve["level"] and curve["level"][name],
                heading,
                f"{heading} of models between the two, {path}",
            )
            for name, heading in (("h_mean", "H-mean"), ("g_mean", "G-mean"))
        ]
        for path, curve in curves.items()
    }


def cell(name: str, summary: dict[str, Any] | None) -> str:
    """Return mean, and ± std if there is one, in percent (zero-recall classes: as they are)."""
    if summary is None:
        return "n/a"
    scale = 1 if name == "zero_recall_classes" else 100
    text = f"{scale * summary['mean']:.1f}"
    return text if summary["std"] is None else f"{text} ± {scale * summary['std']:.1f}"

"""Tables that compare models over runs: one JSON document, and Markdown and HTML made from it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

from btm_core.statistics import spread

__all__ = ["FIGURES", "Row", "cell", "comparison", "comparison_html", "comparison_markdown"]

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


def comparison(title: str, rows: Sequence[Row], **facts: Any) -> dict[str, Any]:
    """Return the JSON-ready document: for each row its labels, each run's figures, and mean and std of each figure."""
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
    return {"title": title, "rows": lines, **facts}


def comparison_markdown(document: dict[str, Any]) -> str:
    """Return the table as Markdown, in percent, mean ± std where there are several runs."""
    columns = list(document["rows"][0]["labels"])
    lines = [f"### {document['title']}", ""]
    lines.append("| " + " | ".join([*columns, *FIGURES.values()]) + " |")
    lines.append("|" + "---|" * (len(columns) + len(FIGURES)))
    for row in document["rows"]:
        cells = [row["labels"][column] for column in columns]
        cells += [cell(name, row["summary"][name]) for name in FIGURES]
        lines.append("| " + " | ".join(cells) + " |")
    runs = sorted({row["n"] for row in document["rows"]})
    lines += ["", f"Percent, of the {document['split']} split; n = {', '.join(map(str, runs))}."]
    for difference in document.get("differences", []):
        parts = [
            f"{FIGURES.get(name, name.replace('_', ' '))} {100 * value['mean']:+.1f} "
            f"[{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"
            for name, value in difference["figures"].items()
        ]
        lines.append(f"{difference['second']} minus {difference['first']}, 95 % over test images: {'; '.join(parts)}.")
    lines += [f"**Warning:** {warning}." for warning in document.get("warnings", [])]
    return "\n".join(lines) + "\n"


def comparison_html(document: dict[str, Any], figures: dict[str, str] | None = None) -> str:
    """Return the table as one HTML page; `figures` are data URLs of images, by caption."""
    from jinja2 import Environment, StrictUndefined

    template = (resources.files("btm_core") / "comparison.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = lambda summary, name: cell(name, summary[name])
    headings = FIGURES
    return environment.from_string(template).render(
        document=document, headings=headings, figures=figures or {}, percent=lambda value: f"{100 * value:+.1f}"
    )


def cell(name: str, summary: dict[str, Any] | None) -> str:
    """Return mean, and ± std if there is one, in percent (zero-recall classes: as they are)."""
    if summary is None:
        return "n/a"
    scale = 1 if name == "zero_recall_classes" else 100
    text = f"{scale * summary['mean']:.1f}"
    return text if summary["std"] is None else f"{text} ± {scale * summary['std']:.1f}"

"""How figures are called in MLflow, once and for all, and what the page of a run says. See docs/tracking.md."""

from collections.abc import Iterable, Mapping
from typing import Any

from btm_core.text import printable

__all__ = ["PER_CLASS", "run_note", "split_metrics"]

PER_CLASS = "per_class_recall.json"
"""The table of every class and every model."""
FIGURES = ("h_mean", "g_mean", "lowest_recall", "accuracy", "mean_recall", "zero_recall_classes")
GROUPS = ("many", "medium", "few")


def split_metrics(split: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Name the figures of a model on a split; groups without classes are left out."""
    named = {f"{split}/{key}": float(row[key]) for key in FIGURES}
    return named | {f"{split}/recall_{key}": float(row[key]) for key in GROUPS if row[key] is not None}


def run_note(models: Iterable[Mapping[str, Any]], links: Mapping[str, str], caption: str = "") -> str:
    """Return the description of a run in Markdown: its models, the final one first, and where else to look."""
    *before, final = models
    lines = [
        "| model | H-mean | G-mean | lowest recall | accuracy | zero-recall classes |",
        "|---|---|---|---|---|---|",
    ]
    for row in (final, *before):  # MLflow's page shows the first lines alone
        cells = [f"{100 * row[key]:.1f}" for key in ("h_mean", "g_mean", "lowest_recall", "accuracy")]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['zero_recall_classes']} |")
    lines += ["", f"Percent, of the test split. {caption}".strip(), ""]
    for name, url in links.items():
        lines.append(f"- {name}: [{url}]({url})" if url.startswith("http") else f"- {name}: `{url}`")
    return printable("\n".join(lines), lines=True)

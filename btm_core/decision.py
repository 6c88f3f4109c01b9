"""The page of a decision of the gate, and the same in short."""

from collections.abc import Mapping
from typing import Any

from btm_core.pages import render_page
from btm_core.pages.class_table import ClassTable
from btm_core.pages.pairs import pair_html
from btm_core.side_by_side import FIGURES, pair_markdown, single_markdown
from btm_core.text import plain_markdown, printable

__all__ = ["decision_html", "decision_markdown"]


def decision_html(document: Mapping[str, Any]) -> str:
    """Return a decision as one HTML page that needs nothing beside it: rules, figures, and every class.

    That is before and after where the document has a `comparison` of two models, or of the `candidate` alone.
    """
    from markupsafe import Markup

    comparison, candidate = document["comparison"], document["candidate"]
    return render_page(
        "decision.html.j2",
        document=document,
        pair="" if comparison is None else Markup(pair_html(comparison)),
        headings=FIGURES,
        table=None if candidate is None else ClassTable(candidate["per_class"], None, "Recall"),
    )


def decision_markdown(document: Mapping[str, Any], shown: int = 10) -> str:
    """Return a decision as Markdown: what, why, every check, and the `shown` classes that matter most on each side."""
    before = document["champion_before"]
    title = f"{document['model']} version {document['version']}: {document['decision'].replace('_', ' ')}"
    champion = f"champion before: version {before['version']}." if before else "there was no champion before."
    lines = [
        f"## {plain_markdown(title)}",
        "",
        f"By {plain_markdown(document['by'])}, {document['at']}; {champion}",
        "",
    ]
    lines += [f"- {plain_markdown(reason)}" for reason in document["reasons"]]
    if document["checks"]:
        lines += ["", "| rule | | |", "|---|---|---|"]
    for check in document["checks"]:
        verdict = "passed" if check["passed"] else "**failed**"
        lines.append(f"| {plain_markdown(check['rule'])} | {verdict} | {plain_markdown(check['text'])} |")
    if document["comparison"] is not None:
        lines += [
            "",
            "### Champion before (A) and this version (B)",
            "",
            pair_markdown(document["comparison"], shown=shown),
        ]
    elif document["candidate"] is not None:
        lines += ["", "### This version", "", single_markdown(document["candidate"], shown)]
    where = document["report"] or "among the artifacts of the version's run in MLflow, promotion/"
    lines += ["", f"Report, with every class: {where}"]
    return printable("\n".join(lines) + "\n", lines=True)

"""Models side by side on the same images: figures and classes with intervals, as a document and as Markdown.

A is the reference ("before"), B what is compared with it. `btm_core.comparison` has the other tables: of models over
several runs, `btm_core.pages.pairs` the same as HTML. C classes.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btm_core.evidence import Evidence, require_comparable
from btm_core.metrics import recall_report, shot_groups
from btm_core.pages import interval, percent, points, reliable, signed
from btm_core.statistics import (
    Difference,
    class_differences,
    clearly_changed,
    paired_differences,
    resampled_recall,
    worst_mean,
)
from btm_core.text import plain_markdown, printable

__all__ = [
    "FIGURES",
    "Evaluated",
    "cautions",
    "cells",
    "changes",
    "lettered",
    "most_lost",
    "pair_document",
    "pair_markdown",
    "side_by_side",
    "single_document",
    "single_markdown",
]

FIGURES = {
    "h_mean": "H-mean",
    "g_mean": "G-mean",
    "lowest_recall": "Lowest recall",
    "worst_mean": "Worst 5 %",
    "accuracy": "Accuracy",
    "mean_recall": "Mean recall",
    "many": "Many",
    "medium": "Medium",
    "few": "Few",
}
"""The figures of a summary, fractions, and their headings."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model and what it predicted.

    - name: what to call it.
    - kind: run, version or checkpoint.
    - spec: how the user named it.
    """

    name: str
    evidence: Evidence
    kind: str = "model"
    spec: str = ""

    def facts(self, group_counts: NDArray[np.int64]) -> dict[str, Any]:
        """Return what it is, and its figures; `group_counts` (C,) say what is many, medium and few."""
        one = self.evidence
        report = recall_report(one.targets, one.predictions, group_counts)
        figures = {**report.summary(), "worst_mean": float(worst_mean(report.recall))}
        names = {"spec": self.spec or self.name, "kind": self.kind, "name": self.name}
        return {**names, **figures, "split": one.split, "split_hash": one.split_hash}


def side_by_side(models: Sequence[Evaluated]) -> dict[str, Any]:
    """Return the document of two or more models, each compared with the first.

    It is that of the first two, and `others` holds those of the first with each further one. Raises DataError if two
    cannot be compared.
    """
    require_comparable([model.evidence for model in models], [model.spec or model.name for model in models])
    first, second, *rest = models
    return {**pair_document(first, second), "others": [pair_document(first, other) for other in rest]}


def lettered(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pairs of a document of `side_by_side` by what the model is called that is compared with A.

    That is B to Z, then AA, AB and so on, like the columns of a spreadsheet.
    """
    pairs = [document, *document["others"]]
    words = (itertools.product(ascii_uppercase, repeat=length) for length in itertools.count(1))
    names = map("".join, itertools.chain.from_iterable(words))
    return dict(zip(itertools.islice(names, 1, len(pairs) + 1), pairs, strict=True))


def pair_document(first: Evaluated, second: Evaluated) -> dict[str, Any]:
    """Return two models of one split side by side, JSON-ready: {a, b, per_class, summary}.

    - a, b: what each is, and its figures.
    - per_class: for each class in order its images, both recalls, the difference b - a with its 95 % interval, and
        whether it is `clear`: the whole interval is on one side of 0, and so many images went one way that an exact
        McNemar test has p < 0.05 (`btm_core.statistics.clearly_changed`); with under six test images none is.
    - summary: a, b, difference and interval of each figure, groups that are empty left out; `worse` and `better`, the
        classes whose recall fell and rose, most first, and whether it is `clear`; `new_zero_recall_classes` and
        `resolved_zero_recall_classes`.

    Training images, and with them many, medium and few, are those of the first. Raises DataError if the two cannot be
    compared.
    """
    require_comparable([first.evidence, second.evidence], [first.spec or first.name, second.spec or second.name])
    one, two = first.evidence, second.evidence
    a, b = first.facts(one.group_counts), second.facts(one.group_counts)
    pair = (one.targets, one.predictions, two.predictions)
    drawn = resampled_recall(pair[0], np.stack(pair[1:]))  # once, for all figures and all classes
    found = paired_differences(*pair, groups=shot_groups(one.group_counts), drawn=drawn)
    figures = {name: {"a": a[name], "b": b[name], **_json(found[name])} for name in FIGURES if name in found}
    changes = class_differences(*pair, drawn=drawn)
    rows = _classes(one, two, changes, clearly_changed(*pair, changes))
    same = np.array_equal(one.train_counts, two.train_counts)
    return {
        "a": a,
        "b": b,
        "same_training_counts": same,
        "per_class": rows,
        "summary": figures | _changed(rows),
    }


def single_document(model: Evaluated) -> dict[str, Any]:
    """Return one model alone, JSON-ready: what it is, its figures, and `per_class`, the recall of each class."""
    one = model.evidence
    rows = [
        {**facts, "recall": recall} for facts, recall in zip(one.classes(), one.report.recall.tolist(), strict=True)
    ]
    return {**model.facts(one.group_counts), "per_class": rows}


def _classes(
    one: Evidence, two: Evidence, differences: Sequence[Difference], clear: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    recalls = zip(one.report.recall.tolist(), two.report.recall.tolist(), strict=True)
    return [
        {**facts, "a": before, "b": after, **_json(difference), "clear": changed}
        for facts, (before, after), difference, changed in zip(
            one.classes(), recalls, differences, clear.tolist(), strict=True
        )
    ]


def _json(difference: Difference) -> dict[str, float]:
    return {"difference": difference.mean, "low": difference.low, "high": difference.high}


def _changed(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return which classes changed, those that changed most first."""

    def told(row: dict[str, Any], *more: str) -> dict[str, Any]:
        return {key: row[key] for key in ("class", "name", "difference", *more)}

    falling = sorted(rows, key=lambda row: (row["difference"], row["high"]))
    rising = sorted(rows, key=lambda row: (-row["difference"], -row["low"]))
    return {
        "worse": [told(row, "clear") for row in falling if row["difference"] < 0],
        "better": [told(row, "clear") for row in rising if row["difference"] > 0],
        "new_zero_recall_classes": [told(row) for row in rows if row["b"] == 0 < row["a"]],
        "resolved_zero_recall_classes": [told(row) for row in rows if row["a"] == 0 < row["b"]],
    }


def pair_markdown(document: dict[str, Any], letter: str = "B", shown: int = 10) -> str:
    """Return the figures of a pair, and the classes that lost and gained most, as Markdown."""
    a, b, summary = document["a"], document["b"], document["summary"]
    lines = [
        f"**A** {plain_markdown(a['name'])} ({a['kind']}), **{letter}** {plain_markdown(b['name'])} ({b['kind']})",
        "",
    ]
    lines += [f"| | A | {letter} | {letter} - A | 95 % interval |", "|---|--:|--:|--:|--:|"]
    for name, heading in FIGURES.items():
        if name in summary:
            lines.append(f"| {heading} | {' | '.join(cells(summary[name]))} |")
    zero = (a["zero_recall_classes"], b["zero_recall_classes"])
    lines.append(f"| Zero-recall classes | {zero[0]} | {zero[1]} | {signed(zero[1] - zero[0])} | |")
    lines += [
        "",
        f"{plain_markdown(changes(document, letter))} Percent, of the {a['split']} split ({a['split_hash'][:12]}).",
    ]
    lines += [f"\n**{caution}**" for caution in cautions(document)]
    headings = ["A", letter, f"{letter} - A", "95 % interval"]
    for side, verb in (("worse", "lost"), ("better", "gained")):
        rows = [document["per_class"][row["class"]] for row in summary[side][:shown]]
        lines += _class_lines(rows, f"{verb.capitalize()} most", headings, cells)
        if len(summary[side]) > shown:
            lines += ["", f"... and {len(summary[side]) - shown:,} more that {verb}."]
    return printable("\n".join(lines) + "\n", lines=True)


def single_markdown(document: dict[str, Any], shown: int = 10) -> str:
    """Return the figures of `single_document`, and its lowest classes, as Markdown."""
    lines = [f"| {plain_markdown(document['name'])} | |", "|---|--:|"]
    lines += [
        f"| {heading} | {percent(document[name])} |" for name, heading in FIGURES.items() if document[name] is not None
    ]
    lines.append(f"| Zero-recall classes | {document['zero_recall_classes']} |")
    lines += ["", f"Percent, of the {document['split']} split ({document['split_hash'][:12]})."]
    rows = sorted(document["per_class"], key=lambda row: (row["recall"], row["class"]))
    lines += _class_lines(rows[:shown], "Lowest classes", ["Recall"], lambda row: [percent(row["recall"])])
    if len(rows) > shown:
        lines += ["", f"... and {len(rows) - shown:,} more classes."]
    return printable("\n".join(lines) + "\n", lines=True)


def _class_lines(
    rows: Sequence[dict[str, Any]],
    title: str,
    headings: Sequence[str],
    figures: Callable[[dict[str, Any]], Sequence[str]],
) -> list[str]:
    """Return a table of classes as lines of Markdown; none without rows."""
    if not rows:
        return []
    lines = ["", f"| {title} | Training images | Test images | {' | '.join(headings)} |"]
    lines.append("|---|" + "--:|" * (2 + len(headings)))
    for row in rows:
        images = f"{row['train_images']} | {row['test_images']}"
        lines.append(f"| {plain_markdown(row['name'])} | {images} | {' | '.join(figures(row))} |")
    return lines


def most_lost(document: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the rows of the classes that lost most, of those that lost."""
    return [document["per_class"][lost["class"]] for lost in document["summary"]["worse"][:count]]


def cautions(document: dict[str, Any]) -> list[str]:
    """Return what a reader of a pair's figures has to know beside them."""
    summary, found = document["summary"], []
    missed = [heading for name, heading in FIGURES.items() if name in summary and not reliable(summary[name])]
    if missed:
        found.append(
            f"No interval of {', '.join(missed)} is shown, for it does not hold the difference itself: with few test "
            "images a class, more recalls are zero among resampled images than among all."
        )
    if not document["same_training_counts"]:
        found.append(
            "The two were trained on other numbers of images: training images, many, medium and few are those of A."
        )
    return found


def cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return the figures of a row as they are shown: A, B, difference, interval."""
    return percent(row["a"]), percent(row["b"]), points(row["difference"]), interval(row)


def changes(document: dict[str, Any], letter: str = "B") -> str:
    """Say in one or two sentences how many classes changed, and which way."""
    summary = document["summary"]
    worse, better = ([row["clear"] for row in summary[side]] for side in ("worse", "better"))
    same = len(document["per_class"]) - len(worse) - len(better)
    text = (
        f"Of {len(document['per_class']):,} classes, {letter} has a lower recall in {len(worse):,} "
        f"({sum(worse):,} clearly), a higher one in {len(better):,} ({sum(better):,} clearly), the same in {same:,}."
    )
    for key, verb in (("new_zero_recall_classes", "fell to"), ("resolved_zero_recall_classes", "rose from")):
        if summary[key]:
            names = ", ".join(row["name"] for row in summary[key][:5])
            more = f" and {len(summary[key]) - 5:,} more" if len(summary[key]) > 5 else ""
            text += f" {len(summary[key]):,} {verb} zero: {names}{more}."
    return text

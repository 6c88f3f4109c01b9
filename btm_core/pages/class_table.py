"""The table of all classes of a page: searched, sorted, filtered and paged where it is read, however many there are.

Its rows are a JSON document inside the page; `class_table.js` shows a page of them at a time. Without scripts the first
page stands there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["PAGE", "ClassTable"]

PAGE = 50
"""Rows that are shown at a time."""

Cell = str | int | float | None


@dataclass(frozen=True)
class ClassTable:
    """Classes with their recall before and after, or of one model alone.

    - rows: as `per_class` of `btm_core.side_by_side.pair_document`; of one model, of `single_document`.
    - before, after: what the two models are called in the headings; of one model, `before` is None.
    - prefix: of the ids of this table; two tables of one page need two.
    """

    rows: Sequence[dict[str, Any]]
    before: str | None = "Before"
    after: str = "After"
    prefix: str = "class"

    @property
    def columns(self) -> list[dict[str, str]]:
        """Key, heading and kind of each column."""
        facts = [
            {"key": "name", "title": "Class", "kind": "text"},
            {"key": "group", "title": "Group", "kind": "text"},
            {"key": "train", "title": "Training images", "kind": "count"},
            {"key": "test", "title": "Test images", "kind": "count"},
        ]
        after = {"key": "after", "title": self.after, "kind": "percent"}
        if self.before is None:
            return [*facts, after]
        return [
            *facts,
            {"key": "before", "title": self.before, "kind": "percent"},
            after,
            {"key": "change", "title": "Change", "kind": "points"},
            {"key": "interval", "title": "95 % interval", "kind": "interval"},
        ]

    @property
    def document(self) -> dict[str, Any]:
        """What the script reads: columns, and of each class its number and the cells of its row; `csv` heads a file."""
        facts = ["class", "name", "group", "training images", "test images"]
        return {
            "columns": self.columns,
            "csv": facts
            + (["recall"] if self.before is None else ["before", "after", "change", "low", "high", "clear"]),
            "prefix": self.prefix,
            "page": PAGE,
            "rows": [self._cells(row) for row in self.rows],
        }

    @property
    def first(self) -> list[dict[str, Any]]:
        """The rows of the first page, the lowest first, as the script sorts them, too."""
        recall = "recall" if self.before is None else "b"
        return sorted(self.rows, key=lambda row: (_tenth(row[recall]), row["class"]))[:PAGE]

    def _cells(self, row: dict[str, Any]) -> list[Cell]:
        """Return the cells of a class: of each column one, of the interval both ends; and whether it changed clearly.

        Recalls are in percent, with one digit: that is what the table shows.
        """
        facts = [row[key] for key in ("class", "name", "group", "train_images", "test_images")]
        if self.before is None:
            return [*facts, _tenth(row["recall"])]
        return [*facts, *(_tenth(row[key]) for key in ("a", "b", "difference", "low", "high")), int(row["clear"])]


def _tenth(value: float) -> float:
    found = round(100 * value, 1)
    return int(found) if found == int(found) else found  # 100, not 100.0: it is a third of the page's bytes

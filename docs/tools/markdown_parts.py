"""Markdown from the code: tables, paragraphs, anchors."""

import re
from collections.abc import Sequence

__all__ = ["anchor", "paragraph", "table"]


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    cells = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in cells)


def _cell(text: str) -> str:
    """Return text for a cell: `<home>` outside of code would be taken for HTML."""
    parts = re.split(r"(`[^`]*`)", text.replace("\n", " ").replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def paragraph(text: str) -> str:
    """Return text as one line."""
    return " ".join(text.split())


def anchor(heading: str) -> str:
    """Return how the site names a heading in links."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")

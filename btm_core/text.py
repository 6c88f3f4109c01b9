"""Text that is anybody's: names of classes and files, and what others' programs and servers say."""

import difflib
import re
from collections.abc import Iterable, Mapping

__all__ = ["choices_in", "did_you_mean", "plain_markdown", "printable"]

JOINERS = "\u200c\u200d"
"""Invisible, harmless, and part of how some languages are written."""


def printable(text: str, *, lines: bool = False) -> str:
    """Return a text with `?` for what steers a terminal or reverses what is read.

    That are control characters, line breaks (kept with `lines`), marks that change the direction of writing, and what
    is no character at all. Spaces of all kinds become spaces.
    """
    if text.isprintable():
        return text
    return "".join(_shown(letter, lines) for letter in text)


def _shown(letter: str, lines: bool) -> str:
    if letter.isprintable() or letter in JOINERS or (lines and letter == "\n"):
        return letter
    return " " if letter.isspace() and letter not in "\n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029" else "?"


def plain_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """Return the end of a message that names what is nearest to what was typed; nothing if nothing is near."""
    near = difflib.get_close_matches(typed, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def choices_in(context: Mapping[str, object]) -> list[str]:
    """Return the values that pydantic names in the context of an error as those that it expected."""
    return re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or ""))

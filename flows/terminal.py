"""Where text meets the terminal: nothing in it steers the terminal, all of it can be written, tables fit.

Everything that a command tells passes here; --json does not need to: it is ASCII, with escapes.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from btm_core.text import printable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Cell", "Formatter", "ready", "say", "say_error", "say_next", "shown", "table", "utf8", "width"]

PIPED = 120
"""Characters of a line where there is no terminal."""
LEAST = 12
"""Characters that a column of text keeps, if it has so many; where they are not there, a row becomes lines."""
PLAIN: dict[str, str | int | None] = {"±": "+-", "…": "..."}
"""What says the same in ASCII."""

Cell = str | tuple[str, str]
"""A text, or a text and how rich is to paint it."""


def ready() -> None:
    """Have both streams write whatever they are given: what an encoding lacks is written as \\u4e39."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def utf8(stream: TextIO | None = None) -> bool:
    """Whether a stream, or else standard output, takes letters of every kind."""
    return ((stream or sys.stdout).encoding or "ascii").lower().replace("_", "-").startswith("utf")


def width() -> int:
    """Return the characters of a line."""
    if sys.stdout.isatty():
        from rich.console import Console

        return Console().width
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) else PIPED


def shown(text: str, *, lines: bool = False) -> str:
    """Return a text as standard output can show it, and harmless: see `btm_core.text.printable`."""
    return _encodable(printable(text, lines=lines), sys.stdout)


def _encodable(text: str, stream: TextIO) -> str:
    if utf8(stream):
        return text
    encoding = stream.encoding or "ascii"
    if encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968"):
        text = text.translate(str.maketrans(PLAIN))
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(text: str = "") -> None:
    """Print on standard output; line breaks stay."""
    print(shown(text, lines=True))


def say_error(text: str) -> None:
    """Print a message on standard error; line breaks stay."""
    print(_encodable(f"btm: {printable(text, lines=True)}", sys.stderr), file=sys.stderr)


class Formatter(logging.Formatter):
    """Writes a record of the log as `say_error` does."""

    def format(self, record: logging.LogRecord) -> str:
        """Return its text, harmless."""
        return printable(super().format(record), lines=True)


def say_next(commands: Sequence[tuple[str, str]]) -> None:
    """Print what to type next: commands, and what each is for, beside it if all fit into a line."""
    say("What to type next:")
    longest = max(len(command) for command, _ in commands)
    beside = all(longest + len(why) + 7 <= width() for _, why in commands)
    for command, why in commands:
        if why and not beside:
            say(f"  # {why}")
        say(f"  {command.ljust(longest)}   # {why}" if why and beside else f"  {command}")


def table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    styles: Sequence[str] = (),
    whole: bool = False,
) -> None:
    """Print a table no wider than the terminal: text is folded, numbers never are.

    Arguments:
    - headings: one that ends with > is that of a column of numbers, on the right.
    - styles: how rich is to paint each row.
    - whole: as wide as it is, for what is copied and searched: a line a row.
    """
    from rich import box
    from rich.console import Console

    names = [shown(heading.rstrip(">")) for heading in headings]
    numbers = [heading.endswith(">") for heading in headings]
    texts = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    cells = [[(shown(text), style) for text, style in row] for row in texts]
    room = 10**6 if whole else width()
    widths = _widths(names, [[text for text, _ in row] for row in cells], numbers, room)
    if widths is None:
        _stacked(shown(title), names, [[text for text, _ in row] for row in cells])
        return
    frame = box.SIMPLE_HEAD if utf8() else box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)
    made = _table(shown(title), names, numbers, widths, frame)
    for row, style in zip(cells, styles or [""] * len(cells), strict=True):
        _add(made, row, style)
    Console(width=max(room, 1), markup=False, highlight=False, emoji=False).print(made, crop=False)


def _table(title: str, names: Sequence[str], numbers: Sequence[bool], widths: Sequence[int], frame: object) -> "Table":
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title) if title else None, box=frame, padding=(0, 1, 0, 0), pad_edge=False)  # type: ignore[arg-type]
    for name, number, size in zip(names, numbers, widths, strict=True):
        made.add_column(Text(name), justify="right" if number else "left", width=size, overflow="fold")
    return made


def _add(made: "Table", row: Sequence[tuple[str, str]], style: str) -> None:
    from rich.text import Text

    made.add_row(*(Text(text, style=painted) for text, painted in row), style=style)


def _widths(
    names: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool], room: int
) -> list[int] | None:
    """Return how wide each column is, so that all fit; None if they cannot. Headings of numbers fold at spaces."""
    from rich.cells import cell_len

    columns = [[row[at] for row in rows] for at in range(len(names))]
    content = [max(map(cell_len, column), default=0) for column in columns]
    natural = [max(cell_len(name), size) for name, size in zip(names, content, strict=True)]
    room -= 2 * len(names)  # two spaces between, and the frame
    if sum(natural) <= room:
        return natural
    words = [max(map(cell_len, name.split()), default=0) for name in names]
    least = [
        max(word, size) if number else min(max(word, LEAST), whole)
        for word, size, number, whole in zip(words, content, numbers, natural, strict=True)
    ]
    if sum(least) > room:
        return None
    fitted = [low if number else whole for low, whole, number in zip(least, natural, numbers, strict=True)]
    while sum(fitted) > room:  # the widest text gives way
        widest = max((at for at in range(len(fitted)) if fitted[at] > least[at]), key=lambda at: fitted[at])
        fitted[widest] -= 1
    return fitted


def _stacked(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a line for each cell: for a terminal that is narrower than the numbers of a row."""
    if title:
        print(title)
    longest = max(map(len, names))
    for row in rows:
        print()
        for name, text in zip(names, row, strict=True):
            if text:
                print(f"  {name.ljust(longest)}  {text}")
    print()

"""Every error that a user can cause is read by a test.

What error classes are called with, and the ValueErrors that become messages, is found in the source. Of each, four
words in a row that no other message has must stand in a test. So whoever adds an error without a test that reads it
hears of it here. It is a check of texts: when an error is raised is for the tests that read it.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from btm_core import errors

ROOT = Path(__file__).parents[1]
WORDS = 4
"""So many words in a row have to be read: fewer stand in a test by chance."""
VALUE_ERRORS = ("btm_core/config/", "btm_core/tensor_files.py", "btm_core/urls.py")
"""Where the text of a ValueError becomes that of an error of ours."""

UNREAD = {
    "cannot be deleted: ": "an S3 server that takes a request and refuses single keys of it",
    "changes all the time": "a race that lasts: somebody writes between every two looks",
    "is written by too many at once": "a race that lasts",
    "could not be written under any name": "as many writers at one moment as there are names",
    " images does not fit into the memory of the GPU": "a GPU",
    "GPUs, {} can be seen; lower it": "torch that sees fewer GPUs than the driver, which was asked before",
    "there is no validation split to evaluate on": "refused where the configuration is read; for flows of one's own",
    "another user of MLflow has claimed": "a server with permissions, and a user of it who died at one moment",
    "the Prefect server knows no deployment": "a deployment that is deleted while a run is under way",
    " (PREFECT_API_URL) refused: ": "a Prefect server that is well and refuses what every version takes",
    "could not be registered. ": "a Prefect server of our own that does not work",
    "these processes cannot be stopped": "processes that hang in the kernel",
}
"""A piece of each error that no test reads, `{}` where something is put in, and what would have to happen for it."""


def words_of(text: str) -> str:
    """Return the words of a text alone, so that neither punctuation nor the escapes of a pattern tell two apart."""
    return " ".join(re.findall(r"\w+", text))


class Site(NamedTuple):
    """Where an error is made, and the fixed parts of its text."""

    place: str
    parts: tuple[str, ...]

    @property
    def windows(self) -> set[str]:
        """WORDS words in a row of each part; a part of fewer is one itself, if it is no mere joint."""
        found = set()
        for part in self.parts:
            words = words_of(part).split()
            rows = [words[at : at + WORDS] for at in range(max(len(words) - WORDS + 1, 1))]
            found |= {" ".join(row) for row in rows if sum(any(map(str.isalpha, word)) for word in row) > 1}
        return found


def parts_of(node: ast.expr) -> tuple[str, ...]:
    """Return the fixed parts of an expression that makes a text."""
    if isinstance(node, ast.Constant):
        return (node.value,) if isinstance(node.value, str) else ()
    if isinstance(node, ast.JoinedStr):
        return tuple(part for value in node.values if isinstance(value, ast.Constant) for part in parts_of(value))
    if isinstance(node, ast.BinOp):
        return parts_of(node.left) + parts_of(node.right)
    return parts_of(node.body) + parts_of(node.orelse) if isinstance(node, ast.IfExp) else ()


def sites(text: str, where: str, names: set[str]) -> Iterator[Site]:
    """Yield what errors of these names are called with. One that only passes on another's text has none of its own."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            site = Site(f"{where}:{node.lineno}", tuple(part for each in node.args for part in parts_of(each)))
            if name in names and site.windows:
                yield site


def error_names(sources: dict[str, str]) -> set[str]:
    """Return the names of all error classes, wherever they are defined."""
    names = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    classes = [n for text in sources.values() for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef)]
    for _ in range(3):  # a subclass may be found before its base
        names |= {each.name for each in classes if names & {getattr(base, "id", "") for base in each.bases}}
    return names


def read_texts() -> str:
    """Return the words of all strings of all tests but this one, without docstrings."""
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        if path == Path(__file__):
            continue
        tree = ast.parse(path.read_text())
        prose = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
        strings = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in prose)
        found += [words_of(node.value) for node in strings if isinstance(node.value, str)]
    return "\n".join(found)


def unread(sources: dict[str, str], texts: str) -> list[Site]:
    """Return the errors of which no test reads words that are theirs alone; all words, where none are."""
    names = error_names(sources)
    found = [
        site
        for where, text in sources.items()
        for site in sites(text, where, names | ({"ValueError"} if where.startswith(VALUE_ERRORS) else set()))
    ]
    uses = Counter(window for site in found for window in site.windows)
    own = {site: {window for window in site.windows if uses[window] == 1} or site.windows for site in found}
    return [site for site in found if not any(window in texts for window in own[site])]


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    folders = (ROOT / name for name in ("btm_core", "tasks", "flows"))
    return {str(p.relative_to(ROOT)): p.read_text() for folder in folders for p in sorted(folder.rglob("*.py"))}


def test_every_error_is_read_by_a_test(sources: dict[str, str]) -> None:
    left = {f"{site.place}: {'{}'.join(site.parts)}" for site in unread(sources, read_texts())}
    excused = {error for error in left if any(piece in error for piece in UNREAD)}
    assert left == excused, "write a test that provokes these and reads what they say"
    needless = [piece for piece in UNREAD if not any(piece in error for error in left)]
    assert needless == [], "a test reads these, or they are gone"


def test_an_error_that_nobody_reads_is_found() -> None:
    """However it is made; and one that passes on another's text is none."""
    text = """
class OddError(ConfigError): ...
def a(x): raise OddError(f"{x} has stripes like a zebra's" + " all over")
def b(x): return errors.DataError("five green " f"{x} dragons sit here" if x else "nobody")
def c(x): raise DataError(f"{x}: {x}") from None
def d(x): raise ValueError("no error of ours, whoever reads it")
"""
    source = {"tasks/new.py": text}
    assert [site.place for site in unread(source, "")] == ["tasks/new.py:3", "tasks/new.py:4"]
    assert [site.place for site in unread(source, "one has stripes like a zebra")] == ["tasks/new.py:4"]
    assert unread({"btm_core/urls.py": "raise ValueError('what is this for')"}, "what is that for")

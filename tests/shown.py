"""What README.md and docs/ show: fenced blocks, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "Command", "blocks", "commands", "simple_commands"]

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: the document, its language (console where lines begin with `$ `), its text."""

    document: str
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command as it is typed, the document that shows it, and what is shown of its output."""

    document: str
    line: str
    output: str = ""


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of these languages in README.md and docs/."""
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for language, text in FENCE.findall(path.read_text(encoding="utf-8")):
            kind = "console" if not language and re.search(r"^\$ ", text, re.MULTILINE) else language
            found.append(Block(path.relative_to(ROOT).as_posix(), kind, text))
    return [block for block in found if block.language in languages]


def commands() -> list[Command]:
    """Return every line that a reader may type."""
    found = []
    for block in blocks("sh", "console"):
        # A line that ends in \ or |, or within a quotation, goes on in the next one.
        prompt = r"^\$ " if block.language == "console" else r"^"
        lines: list[str] = []
        output = ""
        for line in block.text.splitlines():
            if lines and _goes_on(lines[-1]):
                lines[-1] += "\n" + line
            elif re.match(prompt, line) and line.strip():
                if lines:
                    found.append(Command(block.document, lines[-1], output))
                lines, output = [*lines, re.sub(prompt, "", line)], ""
            else:
                output += line + "\n"
        found.append(Command(block.document, lines[-1], output))
    return [command for command in found if not command.line.startswith("#")]


def _goes_on(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True
    return line.rstrip().endswith(("\\", "|"))


def simple_commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each program that a line starts, without assignments before it."""
    lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars="|&;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("|&;"):
            words.append(word)
            continue
        while words and (re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL) or words[0] == "exec"):
            del words[0]
        if words:
            yield words
        words = []

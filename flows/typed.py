"""Commands as a user types them, and those that follow."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Typed", "as_typed"]


@dataclass(frozen=True)
class Typed:
    """What was typed: an experiment, what was set on top, and flags."""

    experiment: str
    overrides: Sequence[str] = ()
    flags: Mapping[str, object] | None = None

    def line(self, command: str, *changes: str) -> str:
        """Return the line that does `command` with the same, and `key=value` changes in place of their own."""
        last: dict[str, str] = {}
        for override in (*self.overrides, *changes):
            key = override.partition("=")[0]
            last.pop(key, None)  # what is said last stands last: it may be a section that holds others
            last[key] = override
        words = [as_typed("btm"), command, self.experiment]
        words += [word for override in last.values() for word in ("--set", override)]
        for name, value in (self.flags or {}).items():
            words += [] if value is None else [f"--{name}", str(value)]
        return shlex.join(words)


def as_typed(command: str) -> str:
    """Return what a user has to type for a command of this environment: its name alone if the environment is active."""
    own = Path(sys.executable).with_name(command)
    found = shutil.which(command)
    if found and Path(found) == own:
        return command
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)

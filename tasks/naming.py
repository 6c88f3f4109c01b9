"""Names as people type them: the beginning is enough if it is unambiguous, and near misses are told."""

import difflib
import re
from collections.abc import Collection

from btm_core.errors import StoreError, some_of

__all__ = ["near_misses", "unambiguous"]

RUN = re.compile(r"\d{8}-\d{6}-(.+)-[0-9a-f]+")
"""The id of a run, with the name of its experiment, and that of an ablation after it."""


def unambiguous(token: str, name: str, known: Collection[str], what: str, place: str) -> str:
    """Return the one known name that is `name`, that a path below it begins with, or that begins with it.

    Raises StoreError that names the candidates; `token` is what was typed, `what` what was looked for in `place`.
    """
    exact = [one for one in known if one == name or name.startswith(f"{one}/")]
    found = exact or [one for one in known if name and one.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(f"{token!r} may be any of these; say more of the name:\n{some_of(found)}")
    hint = _runs_of(name, known) or near_misses(name, known) or "; `btm store ls` lists what there is"
    raise StoreError(f"{place} has no {what} {token!r}{hint}")


def _runs_of(experiment: str, known: Collection[str]) -> str:
    """Return the end of a message that names the runs of what is an experiment, not a run; nothing if it has none."""
    runs = [one for one in known if (match := RUN.fullmatch(one)) and f"{match[1]}-".startswith(f"{experiment}-")]
    named = some_of(sorted(runs, reverse=True))  # an id begins with its time
    return f"; that is the name of an experiment, whose runs are, newest first:\n{named}" if runs else ""


def near_misses(name: str, known: Collection[str]) -> str:
    """Return the end of a message that names what may have been meant; nothing if nothing is near."""
    near = difflib.get_close_matches(name, list(known), 3, 0.5)
    return f"; did you mean one of these?\n{some_of(near)}" if near else ""

"""Names as people type them: the beginning is enough if it is unambiguous, and near misses are told."""

import difflib
from collections.abc import Collection

from btm_core.errors import StoreError, some_of

__all__ = ["near_misses", "unambiguous"]


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
    hint = near_misses(name, known) or "; `btm store ls` lists what there is"
    raise StoreError(f"{place} has no {what} {token!r}{hint}")


def near_misses(name: str, known: Collection[str]) -> str:
    """Return the end of a message that names what may have been meant; nothing if nothing is near."""
    near = difflib.get_close_matches(name, list(known), 3, 0.5)
    return f"; did you mean one of these?\n{some_of(near)}" if near else ""

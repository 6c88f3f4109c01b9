"""Lists as `btm_core.data.sources` reads them: `path label` lines, and class names."""

from collections.abc import Sequence

from btm_core.data.catalog import Split
from btm_core.data.sources import inside
from btm_core.errors import DataError

__all__ = ["list_text", "names_text"]


def list_text(split: Split) -> str:
    """Return a split as `path label` lines. Raises DataError if a path cannot stand in a line."""
    assert split.paths is not None
    inside(split.paths, f"the {split.name} split", [f"image {number}" for number in range(1, len(split) + 1)])
    return "".join(f"{path} {label}\n" for path, label in zip(split.paths, split.labels.tolist(), strict=True))


def names_text(names: Sequence[str]) -> str:
    """Return class names, one a line. Raises DataError if one is empty, or cannot stand in a line."""
    for c, name in enumerate(names):
        if not name or name != name.strip() or len(name.splitlines()) != 1:
            raise DataError(f"class {c} is called {name!r}, which cannot be a line of a file: rename it")
    return "".join(f"{name}\n" for name in names)

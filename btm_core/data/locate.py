"""Finding listed images in trees that are laid out otherwise than the list says.

Published lists of one data set name its images in several styles (`data_256/a/airfield/x.jpg`, `train/airfield/x.jpg`);
the last two components agree.
"""

import posixpath
from collections.abc import Sequence

from btm_core.data.sources import ask_root
from btm_core.errors import DataError, some_of
from btm_core.storage import open_filesystem

__all__ = ["locate", "short_name"]


def short_name(path: str) -> str:
    """Return the last two components of a path, which all styles of a list share."""
    folder, name = posixpath.split(path)
    return posixpath.join(posixpath.basename(folder), name)


def locate(root: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Return where listed images lie below `root`: as they are listed, or else by their last two components.

    The tree is searched only if the first image is not where it is listed. An image that is nowhere keeps its listed
    path. Raises DataError if several files of the tree have an image's last two components.
    """
    fs, base = open_filesystem(root)
    base = base.rstrip("/")
    if not paths or ask_root(fs, root, lambda: fs.exists(f"{base}/{paths[0]}")):
        return tuple(paths)
    found: dict[str, list[str]] = {}
    for path in ask_root(fs, root, lambda: fs.find(base)):
        relative = path[len(base) + 1 :]
        found.setdefault(short_name(relative), []).append(relative)
    several = [path for path in paths if len(found.get(short_name(path), [])) > 1]
    unclear = [f"{path}: {', '.join(found[short_name(path)][:3])}" for path in several]
    if unclear:
        raise DataError(
            f"{len(unclear)} listed images are not where the list says below {root}, and several files there may be "
            f"meant; lay the tree out as the list does:\n{some_of(unclear)}"
        )
    return tuple(found[short_name(path)][0] if short_name(path) in found else path for path in paths)

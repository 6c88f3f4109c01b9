"""What the fields of `data` point to: the root, the files of the splits, their text, and paths that stay inside."""

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from btm_core.config import DataConfig
from btm_core.errors import DataError, StoreError, some_of
from btm_core.storage import ask, open_filesystem, read_bytes

__all__ = ["ask_root", "class_names", "inside", "missing_file", "open_root", "read_list", "read_text", "split_files"]

Result = TypeVar("Result")


NO_PATH = re.compile("[\0\n\v\f\r\x1c-\x1e\x85\u2028\u2029\ud800-\udfff]")
"""What ends a line, so that a list would hold two paths in place of one; and halves of characters, as JSON may have."""


def read_list(text: str, where: str) -> tuple[list[str], NDArray[np.int64]]:
    """Parse `path label` lines, as published for ImageNet-LT and Places-LT; a path may hold spaces.

    Returns paths (N,) and labels (N,). Raises DataError with the file and the line number.
    """
    paths, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        path, _, label = line.rstrip().rpartition(" ")
        if not path or not label.isdecimal() or len(label) > 9:
            if not line.strip():
                continue
            raise DataError(f"{where}, line {number}: expected 'path label' with an integer label, found {line!r}")
        paths.append(path)
        labels.append(int(label))
    return paths, np.asarray(labels, dtype=np.int64)


def split_files(config: DataConfig) -> Iterable[tuple[str, str]]:
    """Yield (split, URL of its file); a relative file is below the root, or else below the working directory."""
    assert config.root is not None
    fs, root = open_root(config)
    for name in ("train", "test", *(["validation"] if config.validation else [])):
        file = getattr(config, name)
        if "://" not in file and not posixpath.isabs(file):
            below = f"{config.root.rstrip('/')}/{file}"
            file = below if not Path(file).exists() or _is_below(fs, root, file) else file
        yield name, file


def _is_below(fs: Any, root: str, file: str) -> bool:
    return bool(ask_root(fs, root, lambda: fs.exists(f"{root}/{file}")))


def missing_file(name: str, file: str) -> DataError:
    """Return the error that a split's file is not there."""
    return DataError(f"data.{name}: {file} does not exist; correct data.{name}")


def read_text(file: str, key: str | None = None) -> str:
    """Return a file's text; `key` is what names it in the configuration, if anything does.

    Raises DataError if there is no such file, or it is not UTF-8.
    """
    named = f"{key}: " if key else ""
    try:
        data = read_bytes(file)
    except FileNotFoundError:
        cure = f"; correct {key}" if key else ""
        raise DataError(f"{named}{file} does not exist{cure}") from None
    except StoreError as error:
        raise DataError(f"{named}{error}") from None
    try:
        return data.decode("utf-8-sig")  # a byte order mark is no part of the first path
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{named}{file}, line {line}: not UTF-8 text, as it has to be") from None


def open_root(config: DataConfig) -> tuple[Any, str]:
    """Return the file system and the path of `data.root`, which must exist."""
    assert config.root is not None
    try:
        fs, root = open_filesystem(config.root)
    except StoreError as error:
        raise DataError(f"data.root {config.root} cannot be reached: {error}") from None
    if not ask_root(fs, config.root, lambda: fs.isdir(root)):
        raise DataError(f"data.root {config.root} does not exist, or is not a folder")
    return fs, root.rstrip("/")


def ask_root(fs: Any, root: str, call: Callable[[], Result]) -> Result:
    """Return what a call of the file system of `data.root` returns. Raises DataError if it does not answer."""
    try:
        return ask(fs, root, call)
    except StoreError as error:
        raise DataError(f"data.root {root} cannot be reached: {error}") from None


def inside(paths: Sequence[str], where: str, positions: Sequence[str]) -> tuple[str, ...]:
    """Return normalised paths; one that leaves the root, or is no path at all, is refused by its position in `where`.

    Links below the root are followed wherever they lead: who laid out the root made them, and no list can.
    """
    safe = []
    for position, path in zip(positions, paths, strict=True):
        normal = posixpath.normpath(path.replace("\\", "/"))
        if posixpath.isabs(normal) or normal == ".." or normal.startswith("../") or "://" in path:
            raise DataError(f"{where}, {position}: {path!r} leaves data.root; paths must be relative and inside it")
        if normal == "." or not path or NO_PATH.search(path):
            raise DataError(f"{where}, {position}: {path!r} is no path of a file: correct the line")
        safe.append(normal)
    return tuple(safe)


def class_names(config: DataConfig) -> tuple[str, ...] | None:
    """Return the names in `data.class_names`, if it is set."""
    if config.class_names is None:
        return None
    names = tuple(
        line.strip() for line in read_text(config.class_names, "data.class_names").splitlines() if line.strip()
    )
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise DataError(
            f"{config.class_names} names {len(repeated)} classes twice, expected one name a line, each once:\n"
            f"{some_of(repeated)}"
        )
    return names

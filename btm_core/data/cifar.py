"""CIFAR-100 in its two official layouts, and its download.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import hashlib
import io
import logging
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btm_core.data.catalog import Catalog, Split
from btm_core.errors import DataError

__all__ = ["read_cifar100"]

log = logging.getLogger(__name__)

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
ARCHIVE_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
BINARY_MD5 = {"train.bin": "6172c7755cfe09b2fe270c85cebc1b15", "test.bin": "4499cfba6c016c1be1438163640a0898"}
PYTHON_MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
META_MD5 = "7973b15100ade9c7d40fb424638fde48"
RECORD = 2 + 3 * 32 * 32
MEMBERS = ("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt")
MAX_ARCHIVE_BYTES = 200 * 10**6
"""The official archive has 169 MB."""
MAX_MEMBER_BYTES = 50_000 * RECORD
"""As many as train.bin has, the largest."""


def read_cifar100(root: Path, download: bool) -> Catalog:
    """Read CIFAR-100 from `root`, which holds (or is) `cifar-100-binary` or `cifar-100-python`.

    Every file is compared with the md5 of the official one. With `download`, an absent data set is fetched into `root`.
    """
    folder = _find(root)
    if folder is None and download:
        _download(root)
        folder = _find(root)
    if folder is None:
        raise DataError(
            f"no CIFAR-100 in {root}: expected cifar-100-binary/ (train.bin, test.bin) or cifar-100-python/ "
            "(train, test, meta); set data.root, or data.download to true"
        )
    read = _read_binary if (folder / "train.bin").exists() else _read_python
    names, splits = read(folder)
    return Catalog(tuple(names), splits["train"], splits["test"], root=str(folder))


def _find(root: Path) -> Path | None:
    for folder in (root, root / "cifar-100-binary", root / "cifar-100-python"):
        if (folder / "train.bin").is_file() or ((folder / "train").is_file() and (folder / "meta").is_file()):
            return folder
    return None


def _checked_bytes(path: Path, md5: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path} is not the official file: md5 {found}, expected {md5}; delete it and fetch it again")
    return data


def _read_binary(folder: Path) -> tuple[list[str], dict[str, Split]]:
    names_file = folder / "fine_label_names.txt"
    if not names_file.is_file():
        raise DataError(f"{names_file} is missing; it belongs to the official archive")
    splits = {}
    for name in ("train", "test"):
        data = _checked_bytes(folder / f"{name}.bin", BINARY_MD5[f"{name}.bin"])
        records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
        splits[name] = Split(name, records[:, 1].astype(np.int64), pixels=_as_images(records[:, 2:]))
    return names_file.read_text().split(), splits


def _read_python(folder: Path) -> tuple[list[str], dict[str, Split]]:
    """Read the pickled layout. The md5 is compared before, so only the official bytes ever get here."""
    splits = {}
    for name in ("train", "test"):
        batch = _unpickled(_checked_bytes(folder / name, PYTHON_MD5[name]))
        labels = np.asarray(batch[b"fine_labels"], dtype=np.int64)
        splits[name] = Split(name, labels, pixels=_as_images(np.asarray(batch[b"data"], dtype=np.uint8)))
    meta = _unpickled(_checked_bytes(folder / "meta", META_MD5))
    return [label.decode() for label in meta[b"fine_label_names"]], splits


def _unpickled(data: bytes) -> dict[bytes, Any]:
    """Return what a pickle of plain values and NumPy arrays holds. Whatever else it names is refused, not called."""
    import pickle

    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
                return getattr(np, name)
            if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
                return np.ndarray.__reduce__(np.empty(0))[0]  # under whatever name this NumPy has it
            raise pickle.UnpicklingError(f"{module}.{name}")

    try:
        found: dict[bytes, Any] = Plain(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"a file of cifar-100-python needs {error} to be read; only arrays are") from None
    return found


def _as_images(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows).reshape(-1, 3, 32, 32)


def _download(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise DataError(f"data.root {root} is a file, not a folder")
    log.info("downloading CIFAR-100 (161 MB) from %s to %s", URL, root)
    root.mkdir(parents=True, exist_ok=True)
    archive = root / "cifar-100-binary.tar.gz"
    partial = archive.with_suffix(".part")
    try:
        with urllib.request.urlopen(URL, timeout=60) as reply, partial.open("wb") as file:
            while block := reply.read(2**20):
                file.write(block)
                if file.tell() > MAX_ARCHIVE_BYTES:
                    raise OSError(f"more than {MAX_ARCHIVE_BYTES} bytes came")
    except (urllib.error.URLError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(
            f"CIFAR-100 could not be fetched from {URL}: {error}; fetch it by hand, unpack it, and set "
            "data.root to the folder that holds cifar-100-binary"
        ) from None
    found = hashlib.md5(partial.read_bytes(), usedforsecurity=False).hexdigest()
    if found != ARCHIVE_MD5:
        partial.unlink()
        raise DataError(f"{URL} gave a file with md5 {found}, expected {ARCHIVE_MD5}; it was deleted")
    partial.rename(archive)
    _unpack(archive, root)
    archive.unlink()


def _unpack(archive: Path, root: Path) -> None:
    """Write the files of the official archive below `root`, and nothing else that one may hold.

    Raises DataError if it is no archive, or one of the files is no plain file or larger than any there is.
    """
    folder = root / "cifar-100-binary"
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name not in {f"cifar-100-binary/{name}" for name in MEMBERS}:
                    continue
                if not member.isreg() or member.size > MAX_MEMBER_BYTES:
                    raise DataError(f"{archive} holds a {member.name} that is not the official one; delete it")
                source = tar.extractfile(member)
                assert source is not None  # a plain file has content
                folder.mkdir(exist_ok=True)
                (folder / Path(member.name).name).write_bytes(source.read())
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}; delete it, and it is fetched again") from None

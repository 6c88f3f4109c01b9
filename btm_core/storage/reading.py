"""Single files, wherever they lie, by the one retry policy."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from btm_core.errors import StoreError
from btm_core.storage.files import Digest, file_digest
from btm_core.storage.local import LocalFiles
from btm_core.storage.opening import open_files
from btm_core.storage.ranges import LocalRanges, Ranges, RemoteRanges, S3Ranges
from btm_core.storage.retrying import retrying
from btm_core.storage.settings import open_filesystem, storage_settings

__all__ = [
    "ask",
    "fetch_file",
    "file_digest_at",
    "open_ranges",
    "read_bytes",
    "read_file",
    "write_file",
]

Result = TypeVar("Result")


def read_bytes(url: str) -> bytes:
    """Return the bytes of a file, a path or URL. Raises FileNotFoundError, or StoreError if it cannot be read."""
    fs, path = open_filesystem(url)
    return read_file(fs, path, url)


def read_file(fs: Any, path: str, where: str) -> bytes:
    """Return the bytes of a file of a file system; `where` names it in errors, those of `read_bytes`."""
    # By default s3fs asks for the size first: one request more a file, to read parts beside each other.
    options: dict[str, Any] = {"max_concurrency": 1} if "s3" in fs.protocol else {}
    if fs.async_impl:
        options["timeout"] = storage_settings().deadline_seconds
    data: bytes = ask(fs, where, lambda: fs.cat_file(path, **options))
    return data


def ask(fs: Any, where: str, call: Callable[[], Result]) -> Result:
    """Return what a call of a file system returns; if that is a remote one, tried again while its fault may pass."""
    return retrying(call, where, storage_settings().deadline_seconds, remote="file" not in fs.protocol)


def fetch_file(url: str, target: Path) -> Digest:
    """Copy a file, a path or URL, to a local one; return its sha256 (hex) and size (bytes).

    Raises FileNotFoundError, or StoreError if it cannot be read.
    """
    folder, name = _split(url)
    fs, path = open_filesystem(url if "://" in url else f"{folder}/{name}")
    if not _gives_parts(fs):
        ask(fs, url, lambda: fs.get_file(path, str(target)))
        return file_digest(target)
    return _in_parts(fs, path, url, target)


def file_digest_at(url: str) -> Digest:
    """Return sha256 (hex) and size (bytes) of a file, a path or URL, without keeping it; raises as `fetch_file`."""
    folder, name = _split(url)
    fs, path = open_filesystem(url if "://" in url else f"{folder}/{name}")
    if _gives_parts(fs):
        return _in_parts(fs, path, url, None)
    with tempfile.TemporaryDirectory(prefix="btm-") as scratch:
        return fetch_file(url, Path(scratch, "file"))


@contextmanager
def open_ranges(url: str) -> Iterator[Ranges]:
    """Give a file, a path or URL, to read parts of; a web server's, which may give none, is copied first.

    Raises FileNotFoundError, or an OSError or StoreError if it cannot be read.
    """
    if "://" not in url or url.startswith("file://"):
        with closing(LocalRanges(Path(*_split(url)), url)) as ranges:
            yield ranges
        return
    fs, path = open_filesystem(url)
    if "http" not in fs.protocol:
        yield (S3Ranges if "s3" in fs.protocol else RemoteRanges)(fs, path, url, storage_settings())
        return
    with tempfile.TemporaryDirectory(prefix="btm-") as scratch:
        copy = Path(scratch, "file")
        fetch_file(url, copy)
        with closing(LocalRanges(copy, url)) as ranges:
            yield ranges


def _gives_parts(fs: Any) -> bool:
    """Whether a file system tells sizes and gives parts of files; web servers may do neither."""
    return "file" in fs.protocol or "s3" in fs.protocol


def _in_parts(fs: Any, path: str, url: str, target: Path | None) -> Digest:
    folder, name = _split(url)
    size: int = ask(fs, url, lambda: fs.size(path))
    return open_files(folder, storage_settings()).get(name, size, target)


@contextmanager
def write_file(url: str) -> Iterator[Callable[[int, memoryview], None]]:
    """Give a function that writes bytes at a place (from 0) of a new file, for several threads at once. In the end it
    is at the path or URL, whole, or not at all if anything raised; then what was there stays.

    Raises StoreError if it cannot be written.
    """
    if url.startswith(("http://", "https://")):
        raise StoreError(f"{url} cannot be written, web servers only give files: use a path or s3://bucket/name")
    folder, name = _split(url)
    files = open_files(folder, storage_settings())
    if isinstance(files, LocalFiles):
        real = Path(os.path.realpath(files.at(name)))  # what a link leads to is written, and the link stays
        files, name = LocalFiles(real.parent), real.name
        with files.writing(name) as file:
            yield partial(_write_at, file.fileno(), url)
        return
    with tempfile.TemporaryDirectory(prefix="btm-") as scratch:
        whole = Path(scratch, "file")
        with whole.open("wb", buffering=0) as file:
            yield partial(_write_at, file.fileno(), str(whole))
        files.put(whole, name)


def _write_at(descriptor: int, where: str, start: int, data: memoryview) -> None:
    while data:
        count = retrying(lambda: os.pwrite(descriptor, data, start), where, 0, remote=False)  # noqa: B023
        start, data = start + count, data[count:]


def _split(url: str) -> tuple[str, str]:
    """Return the folder and the name of a path or URL."""
    if "://" in url and not url.startswith("file://"):
        folder, _, name = url.rpartition("/")
        return folder, name
    local = Path(unquote(url.removeprefix("file://"))) if url.startswith("file://") else Path(url).expanduser()
    return str(local.absolute().parent), local.name

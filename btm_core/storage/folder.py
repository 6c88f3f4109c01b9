"""A folder of a store's files, wherever it lies: plain verbs, and news of transfers that take long."""

import copy
import re
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from btm_core.errors import StoreError
from btm_core.storage.files import Digest, FileFact, Note
from btm_core.storage.opening import open_files
from btm_core.storage.settings import StorageSettings, storage_settings
from btm_core.urls import without_credentials

__all__ = ["Folder", "Transfer"]

TELL_SECONDS = 2.0


@dataclass(frozen=True)
class Transfer:
    """A file on its way, told of every few seconds."""

    verb: str
    name: str
    bytes_done: int
    bytes_all: int
    seconds: float


class Folder:
    """Reads and writes files below one fsspec URL; their paths are given in parts."""

    def __init__(self, url: str, settings: StorageSettings | None = None):
        _check_url(url)
        if url.startswith("file://"):
            url = urllib.parse.unquote(url.removeprefix("file://"))  # a URL writes a space as %20, a folder does not
        local = "://" not in url
        place = str(Path(url).expanduser().resolve()) if local else url
        self.url = Path(place).as_uri() if local else url.rstrip("/")
        self.settings = settings or storage_settings()
        self._files = open_files(place, self.settings)
        self._on_transfer: Callable[[Transfer], None] | None = None

    def telling(self, listener: Callable[[Transfer], None]) -> Self:
        """Return this folder, with a listener that is told of files that take long."""
        other = copy.copy(self)
        other._on_transfer = listener
        return other

    def within(self, seconds: float) -> Self:
        """Return this folder with a deadline no later than that, for what is not worth waiting for."""
        other = copy.copy(self)
        other._files = self._files.within(seconds)
        return other

    def locate(self, *parts: str) -> str:
        """Return the URL of something below the folder."""
        return "/".join((self.url, *parts))

    def check_writable(self) -> None:
        """Write and delete a probe. Raises StoreError that says what to do."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self._files.check_there()
            self._files.write(probe, b"btm")
            self._files.remove(probe)
        except StoreError as error:
            reason = str(error).replace(f"/{probe}", "").replace("another place", "another with --store")
            raise type(error)(f"store {self.url} cannot be written: {reason}") from None

    def check_there(self) -> None:
        """Do what `check_writable` does as far as that goes without writing anything. Raises StoreError."""
        try:
            self._files.check_there()
            self._files.check_permission()
        except StoreError as error:
            raise type(error)(f"store {self.url} cannot be written: {error}") from None

    def free_bytes(self) -> int | None:
        """Return how much may still be written here; None where nobody can tell, as in object storage."""
        return self._files.free_bytes()

    def write(self, data: bytes, *parts: str) -> str:
        """Write bytes at a path below the folder, whole or not at all; returns its URL."""
        self._files.write("/".join(parts), data)
        return self.locate(*parts)

    def read(self, *parts: str) -> bytes | None:
        """Return the bytes at a path below the folder, None if there is nothing."""
        found = self._files.read("/".join(parts))
        return None if found is None else found[0]

    def put(self, path: Path, *parts: str) -> str:
        """Copy a local file to a path below the folder, whole or not at all; returns its URL."""
        self._put(path, "/".join(parts))
        return self.locate(*parts)

    def remove(self, *parts: str) -> None:
        """Delete a file or folder below the folder, if it is there."""
        self._files.remove("/".join(parts))

    def walk(self, *parts: str) -> Iterator[FileFact]:
        """Yield the files below a path in the folder, however deep, in order."""
        return self._files.walk("/".join(parts))

    def _put(self, source: Path, path: str, *, exclusive: bool = False) -> Digest:
        note = self._telling("sending", path, source.stat().st_size)
        return self._files.put(source, path, note, exclusive=exclusive)

    def _get(self, path: str, size: int, target: Path) -> Digest:
        return self._files.get(path, size, target, self._telling("fetching", path, size))

    def _telling(self, verb: str, path: str, size: int) -> Note:
        """Return who is told of bytes that went through, and tells of them every few seconds."""
        started = told = time.monotonic()
        done = 0

        def note(count: int) -> None:
            nonlocal told, done
            done += count
            now = time.monotonic()
            if self._on_transfer is not None and now - told >= TELL_SECONDS:
                told = now
                self._on_transfer(Transfer(verb, path.rpartition("/")[2], done, size, now - started))

        return note


def _check_url(url: str) -> None:
    """Refuse what would only seem to be a store: it would be empty whatever is written to it."""
    scheme, _, rest = url.partition("://")
    if re.match(r"[a-z][a-z0-9+.-]+:/[^/]", url):  # it may hold a password, in a place where none is looked for
        raise StoreError("the store's URL has one slash too few: use s3://bucket/prefix, or file:///folder")
    shown = without_credentials(url)
    if rest and scheme != "file" and "//" in rest:
        raise StoreError(f"{shown!r} has a folder without a name: take one of its slashes out")
    if scheme in ("http", "https"):
        raise StoreError(f"{shown!r} cannot be listed and written: use a path, file:///folder or s3://bucket/prefix")

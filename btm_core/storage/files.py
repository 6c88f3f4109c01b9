"""Files below a root: the few verbs that a store needs of a disk, of S3, or of any other fsspec file system.

A version is an opaque word that changes with a file's content: S3's entity tag, elsewhere a hash.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

__all__ = ["FileFact", "Files", "file_digest"]

Digest = tuple[str, int]
"""sha256 (hex) and size (bytes)."""
Note = Callable[[int], None]
"""Called with the number of bytes that went through since the last call."""


@dataclass(frozen=True)
class FileFact:
    """A file: its path below the store, its size in bytes, and when it was written, by the file system's own clock."""

    path: str
    size: int
    modified: datetime


def file_digest(path: Path) -> Digest:
    """Return sha256 (hex) and size (bytes) of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def nothing(count: int) -> None:
    pass


class Files(ABC):
    """Paths are relative, with slashes. Errors are StoreErrors; what passes was tried again until the deadline."""

    conditional: bool = False
    """Whether a condition of a write is checked by whoever keeps the files, so that of two writers one wins."""

    def within(self, seconds: float) -> "Files":
        """Return these files with a deadline no later than that."""
        return self

    def check_there(self) -> None:
        """Raise StoreError if what the root is in must be there before anything is written, and is not."""
        return

    def check_permission(self) -> None:
        """Raise StoreError if nothing can be written here, as far as that can be told without trying."""
        return

    def free_bytes(self) -> int | None:
        """Return the bytes that are free here; None if there is no saying."""
        return None

    @abstractmethod
    def read(self, path: str) -> tuple[bytes, str] | None:
        """Return a file's bytes and version, None if there is no file."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all."""

    @abstractmethod
    def write_if(self, path: str, data: bytes, version: str | None) -> None:
        """Write a file if it has that version, or with None if there is none; raises ConflictError else.

        Finding the very bytes there is success: they may be our own, of a write whose reply was lost.
        """

    @abstractmethod
    def put(self, source: Path, path: str, note: Note = nothing, *, exclusive: bool = False) -> Digest:
        """Copy a local file here, whole or not at all; return its digest, computed on the way.

        With `exclusive`, ConflictError if there is a file with other content.
        """

    @abstractmethod
    def get(self, path: str, size: int, target: Path | None, note: Note = nothing) -> Digest:
        """Copy a file of about `size` bytes to a local one (with None nowhere); return its digest, computed on the way.

        Raises FileNotFoundError.
        """

    @abstractmethod
    def walk(self, path: str) -> Iterator[FileFact]:
        """Yield the files below a folder, however deep, in order; none if there is no folder."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all below, if it is there."""

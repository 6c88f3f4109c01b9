"""Parts of a file, wherever it lies, at any place and by several threads at once, without a copy of it on the disk.

A file that changes between two reads would be read as a mixture that never was: the version found at its opening is
compared again.
"""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from threading import local
from typing import Any, BinaryIO, TypeVar

from fsspec.asyn import sync

from btm_core.errors import StoreError
from btm_core.storage.retrying import error_code, retrying
from btm_core.storage.settings import StorageSettings

__all__ = ["LocalRanges", "Ranges", "RemoteRanges", "S3Ranges"]

Result = TypeVar("Result")

VERSION = ("size", "ETag", "etag", "generation", "mtime", "modified", "LastModified", "last_modified", "created")
"""What file systems call that which changes with a file; never the time of the last access."""
HEAD = 2**18
"""Bytes that a reader of a file's beginning asks for at a time."""


class Ranges(ABC):
    """A file of `size` bytes, open for reading at any place."""

    size: int

    def __init__(self, url: str):
        self.url = url

    @abstractmethod
    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `start` on. Raises StoreError, also if the file is no longer the same."""

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raise StoreError if the file is not the one that was opened."""

    def close(self) -> None:
        """Let go of it."""
        return

    def stream(self) -> BinaryIO:
        """Return a file object for its beginning: what is read of it comes in few requests."""
        return io.BufferedReader(_Stream(self), HEAD)

    def _changed(self) -> StoreError:
        return StoreError(f"{self.url} has changed while it was read: run again when nobody writes it")


class LocalRanges(Ranges):
    """A local file; deleted or replaced by another of its name it stays what it was."""

    def __init__(self, path: Path, url: str):
        super().__init__(url)
        self._file = path.open("rb", buffering=0)
        self._opened = os.fstat(self._file.fileno())
        self.size = self._opened.st_size
        self._threads, self._own = local(), list[int]()

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `start` on."""
        filled = 0
        while filled < len(buffer):
            try:
                count = os.preadv(self._descriptor(), [buffer[filled:]], start + filled)
            except OSError as error:
                raise StoreError(f"{self.url} cannot be read: {error}") from None
            if not count:
                raise self._changed()
            filled += count

    def check_unchanged(self) -> None:
        """Compare size and time of the last change."""
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._opened.st_size, self._opened.st_mtime_ns):
            raise self._changed()

    def close(self) -> None:
        """Close it."""
        self._file.close()
        for descriptor in self._own:
            os.close(descriptor)

    def _descriptor(self) -> int:
        """Return this thread's own: the system reads ahead for each open file by what was read of it last."""
        try:
            descriptor: int = self._threads.descriptor
        except AttributeError:
            descriptor = self._threads.descriptor = self._reopened()
        return descriptor

    def _reopened(self) -> int:
        try:
            descriptor = os.open(f"/dev/fd/{self._file.fileno()}", os.O_RDONLY)
        except OSError:  # there is no such folder, or too many files are open
            return self._file.fileno()
        self._own.append(descriptor)
        return descriptor


class RemoteRanges(Ranges):
    """A file on any fsspec file system that tells sizes and gives parts."""

    def __init__(self, fs: Any, path: str, url: str, settings: StorageSettings):
        super().__init__(url)
        self.fs, self.path, self.deadline = fs, path, settings.deadline_seconds
        self.bound: dict[str, Any] = {"timeout": self.deadline} if fs.async_impl else {}
        self._opened = self._version()
        self.size = int(self._opened["size"])

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `start` on, tried again while the fault may pass."""
        end = start + len(buffer)
        try:
            data = self._do(lambda: self._part(start, end)) if end > start else b""
        except FileNotFoundError:
            raise self._changed() from None
        if len(data) != len(buffer):
            raise self._changed()
        buffer[:] = data

    def check_unchanged(self) -> None:
        """Compare what the file system says of it."""
        try:
            if self._version() == self._opened:
                return
        except FileNotFoundError:
            pass
        raise self._changed()

    def _do(self, call: Callable[[], Result]) -> Result:
        return retrying(call, self.url, self.deadline)

    def _version(self) -> dict[str, Any]:
        found = self._do(lambda: self.fs.info(self.path, **self.bound))
        if found.get("type") == "directory":
            raise StoreError(f"{self.url} cannot be read: it is a folder")
        return {name: found[name] for name in VERSION if name in found}

    def _part(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start=start, end=end, **self.bound)
        return data


class S3Ranges(RemoteRanges):
    """An object on S3: each answer carries the entity tag of what it is of."""

    def check_unchanged(self) -> None:
        """Ask nothing: every part was of one version."""
        return

    def _part(self, start: int, end: int) -> bytes:
        bucket, key, _ = self.fs.split_path(self.path)

        async def get() -> bytes:
            reply = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
            async with reply["Body"] as body:
                if reply["ETag"] != self._opened["ETag"]:
                    raise self._changed()
                data: bytes = await body.read()
            if len(data) != end - start:
                raise OSError(f"{len(data)} of {end - start} bytes came")  # which may pass
            return data

        try:
            found: bytes = sync(self.fs.loop, get, **self.bound)
        except OSError as error:
            if error_code(error) in ("InvalidRange", "416"):
                raise self._changed() from None
            raise
        return found


class _Stream(io.RawIOBase):
    """Reads one after another."""

    def __init__(self, ranges: Ranges):
        self._ranges, self._at = ranges, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._ranges.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(self._ranges.size - self._at, 0)]
        self._ranges.read_into(self._at, view)
        self._at += len(view)
        return len(view)

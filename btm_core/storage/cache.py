"""The worker's cache: files from elsewhere, on this machine's disk, by the sha256 of their bytes.

<folder>/files/<first two characters of the sha256>/<sha256>   a whole file, read-only; its mtime is its last use
<folder>/partial/<sha256>, <sha256>.lock                       a file on its way here, and the lock of who fetches it
<folder>/usage                                                 bytes in files/ or more, as 20 digits, else unknown;
                                                               locked while files/ changes

Locks are flock's, which end with the process that holds them, however it ends. What a killed process leaves behind is
a partial file, which the next one sweeps, and a `usage` that is too high, which is set right when files are evicted.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol

from btm_core.errors import BTMError, StoreError

__all__ = ["FileCache"]

log = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
SLACK = 0.9
"""Eviction goes on to this share of the limit, so that not every new file has to count all others."""
KEPT_FREE = 0.02
"""Share of the disk that is left to others, whatever the limit."""


class CacheSettings(Protocol):
    """Where the cache is and how large it may be; None: the user's cache folder, 0: no cache."""

    @property
    def cache(self) -> Path | None: ...
    @property
    def cache_gb(self) -> float: ...


class _DownloadError(Exception):
    """Carries an error of a download past the handling of the cache's own."""

    def __init__(self, error: OSError):
        self.error = error


class FileCache:
    """Keeps files up to `limit_bytes`, those used last; 0 keeps none. Safe under many threads and processes.

    A disk can rot: whatever comes out of the cache was hashed after it was read. A cache that cannot be used (a full
    or read-only disk) costs one warning, and work goes on without.
    """

    def __init__(self, folder: Path, limit_bytes: int):
        self.folder, self.limit = folder, limit_bytes
        self._works = limit_bytes > 0
        self._swept = False
        self._mutex = threading.RLock()

    @classmethod
    def of(cls, settings: CacheSettings) -> "FileCache":
        """Return the cache of the settings, one object a process."""
        default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "btm"
        return _shared((settings.cache or default).expanduser().absolute(), round(settings.cache_gb * 1e9))

    @property
    def works(self) -> bool:
        """Whether anything is kept: there is to be a cache, and its folder could be used so far."""
        return self._works

    def take(self, digest: str, size: int, download: Callable[[Path], tuple[str, int]], target: Path) -> Path:
        """Put a verified copy of a file at `target`, a hard link where possible: it outlives the cache's own name.

        Of several who want the same file at once, one downloads it.

        Arguments:
        - digest, size: sha256 (hex) of the file, and its length in bytes.
        - download: writes the file to a path, and returns the sha256 and length of what it wrote.

        Raises StoreError if what was downloaded is another file, and whatever `download` raises.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._works and size <= self.limit:
            try:
                return self._take(digest, size, download, target)
            except _DownloadError as failed:
                raise failed.error from None
            except OSError as error:
                if isinstance(error, BTMError):
                    raise
                self._give_up(error)
        with _beside(target) as partial:
            _check(download(partial), (digest, size))
            partial.replace(target)
        return target

    def read(self, digest: str) -> bytes | None:
        """Return a file's bytes, verified; None if it is not here."""
        if not self._works:
            return None
        try:
            data = self._file(digest).read_bytes()
            if hashlib.sha256(data).hexdigest() == digest:
                self._touch(digest)
                return data
            self._drop(digest)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._give_up(error)
        return None

    def keep(self, data: bytes) -> str:
        """Enter bytes, and return their sha256."""
        digest = hashlib.sha256(data).hexdigest()
        if self._works and len(data) <= self.limit and not self.holds(digest):
            try:
                with self._fetching(digest, wait=False) as partial:
                    if partial is not None:  # else somebody else has it, and enters it
                        partial.write_bytes(data)
                        self._enter(partial, digest, len(data))
            except OSError as error:
                self._give_up(error)
        return digest

    def holds(self, digest: str) -> bool:
        """Whether a file is here; that counts as a use, and says nothing of its bytes."""
        return self._works and self._touch(digest)

    # Under locks

    def _take(self, digest: str, size: int, download: Callable[[Path], tuple[str, int]], target: Path) -> Path:
        if self._link(digest, size, target):
            return target
        with self._fetching(digest) as partial:
            assert partial is not None
            if self._link(digest, size, target):  # whoever held the lock has fetched it
                return target
            try:
                found = download(partial)
            except OSError as error:
                if error.errno in DISK_FULL and not isinstance(error, BTMError):
                    raise  # it is the cache's disk
                raise _DownloadError(error) from None
            _check(found, (digest, size))
            with _beside(target) as copy:
                _link_or_copy(partial, copy)
                copy.replace(target)
            self._enter(partial, digest, size)
        return target

    def _link(self, digest: str, size: int, target: Path) -> bool:
        """Put a file of the cache at `target` if it is here and whole: first linked, so that it stays, then hashed."""
        with _beside(target) as copy:
            try:
                _link_or_copy(self._file(digest), copy)
            except FileNotFoundError:
                return False
            with copy.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if (found, copy.stat().st_size) != (digest, size):
                self._drop(digest)
                return False
            self._touch(digest)
            copy.replace(target)
        return True

    def _enter(self, partial: Path, digest: str, size: int) -> None:
        """Make room for a whole file, count it, and give it its name: killed in between, too much is counted."""
        file = self._file(digest)
        with self._locked() as usage:
            if file.exists():
                return
            used = self._make_room(usage, size)
            if used is None:
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.chmod(0o444)
            _write_count(usage, used + size)
            partial.replace(file)

    def _make_room(self, usage: IO[bytes], size: int) -> int | None:
        """Evict what was used longest ago until `size` bytes fit; return the bytes in use, None if it cannot be."""
        disk = shutil.disk_usage(self.folder)
        spare = disk.free - round(KEPT_FREE * disk.total)  # the new file is on the disk already
        used = _read_count(usage)
        if used is not None and used + size <= self.limit and spare >= 0:
            return used
        self._sweep()
        files = sorted(self._stat_files())
        used = sum(length for _, length, _ in files)
        limit = min(self.limit, used + size + spare)
        for _, length, file in files:
            if used + size <= max(SLACK * limit, size):
                break
            file.unlink(missing_ok=True)
            used -= length
        _write_count(usage, used)
        return used if used + size <= limit else None

    def _drop(self, digest: str) -> None:
        """Remove a file that rotted; what it was counted as is not known, so all are counted anew."""
        log.warning("the disk has damaged %s in the cache: it is fetched again", self._file(digest))
        with self._locked() as usage:
            self._file(digest).unlink(missing_ok=True)
            _write_count(usage, None)

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """Hold the lock on files/ and usage; gives the latter, open."""
        self._prepare()
        descriptor = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+b", buffering=0) as usage:
            fcntl.flock(usage, fcntl.LOCK_EX)
            yield usage

    @contextmanager
    def _fetching(self, digest: str, wait: bool = True) -> Iterator[Path | None]:
        """Give the path to download a file to, which nobody else uses, and clear up in the end.

        Without `wait`, None if somebody else does.
        """
        self._prepare()
        partial = self.folder / "partial" / digest
        name = partial.with_name(f"{digest}.lock")
        while True:
            with name.open("ab") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield None
                    return
                if os.fstat(lock.fileno()).st_nlink == 0:  # whoever held it has removed it: it locks nobody out
                    continue
                try:
                    partial.unlink(missing_ok=True)
                    yield partial
                finally:
                    partial.unlink(missing_ok=True)
                    name.unlink(missing_ok=True)
                return

    def _prepare(self) -> None:
        """Make the folders; once a process, sweep what killed ones have left."""
        (self.folder / "partial").mkdir(parents=True, exist_ok=True)
        with self._mutex:  # a sweep holds the lock of a file that another thread has just begun: that would not be kept
            if not self._swept:
                self._swept = True
                self._sweep()

    def _sweep(self) -> None:
        for name in {path.name.removesuffix(".lock") for path in (self.folder / "partial").iterdir()}:
            with self._fetching(name, wait=False):  # who gets the lock clears up
                pass

    # Single files

    def _file(self, digest: str) -> Path:
        return self.folder / "files" / digest[:2] / digest

    def _touch(self, digest: str) -> bool:
        try:
            os.utime(self._file(digest))
        except OSError:  # evicted a moment ago, or a disk that is read-only by now
            return False
        return True

    def _stat_files(self) -> Iterator[tuple[int, int, Path]]:
        """Yield time of last use (ns), length (bytes) and path of each file."""
        folder = self.folder / "files"
        for part in folder.iterdir() if folder.is_dir() else ():
            for file in part.iterdir():
                stat = file.stat()
                yield stat.st_mtime_ns, stat.st_size, file

    def _give_up(self, error: OSError) -> None:
        with self._mutex:
            if self._works:
                log.warning("the cache %s cannot be used (%s): going on without it", self.folder, error)
            self._works = False


@lru_cache
def _shared(folder: Path, limit_bytes: int) -> FileCache:
    return FileCache(folder, limit_bytes)


def _check(found: tuple[str, int], wanted: tuple[str, int]) -> None:
    if found != wanted:
        raise StoreError(
            f"what was fetched is not the file wanted: sha256 {found[0]}, {found[1]} bytes; expected {wanted[0]}, "
            f"{wanted[1]} bytes"
        )


def _read_count(usage: IO[bytes]) -> int | None:
    usage.seek(0)
    written = usage.read()
    return int(written) if len(written) == 20 and written.isdigit() else None


def _write_count(usage: IO[bytes], count: int | None) -> None:
    """Write a count, or that it is unknown, over the old one: some file systems take a millisecond to truncate."""
    usage.seek(0)
    usage.write(b"?" * 20 if count is None else b"%020d" % count)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Give a name beside `target` for what will be moved there; it is gone in the end."""
    name = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        yield name
    finally:
        name.unlink(missing_ok=True)  # also after the move, which keeps both names if they are of one file already


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)

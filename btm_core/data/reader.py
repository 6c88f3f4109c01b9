"""The bytes of image files below a root: local ones from the disk, remote ones through the worker's cache."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fsspec.asyn import sync

from btm_core.data.ahead import ahead
from btm_core.errors import DataError, StoreError, some_of
from btm_core.storage import open_filesystem, read_file, storage_settings
from btm_core.storage.cache import FileCache

__all__ = ["GONE", "Answer", "Fetching", "ImageReader", "why_unread"]

THREADS = 16
IN_FLIGHT = 32
CHUNK = 256
TELL_SECONDS = 1.0
GONE = "it is gone"

Answer = tuple[bytes, str] | Exception
"""Bytes and their sha256 (hex), or why there are none."""


@dataclass(frozen=True)
class Fetching:
    """How far a fetch is: `images` of `of` are here; `megabytes` have come over the network in `seconds`."""

    images: int
    of: int
    megabytes: float
    seconds: float


Tell = Callable[[Fetching], None]


class ImageReader:
    """Reads files below one root; safe to share between threads.

    Files whose sha256 the caller knows are verified whenever they are read. Every method raises DataError that names
    the files that are gone, cannot be read, or have changed.
    """

    def __init__(self, root: str):
        self.root = root
        self._fs, base = open_filesystem(root)
        self._base = base.rstrip("/")
        self.remote = "file" not in self._fs.protocol
        self._cache = FileCache.of(storage_settings())
        self._pool = ThreadPoolExecutor(THREADS)

    def read(self, paths: Sequence[str], digests: Sequence[str] | None = None) -> list[bytes]:
        """Return the bytes of files, whose sha256 (hex) are `digests`; those of a remote root from the cache first."""
        found: list[bytes | None] = [None] * len(paths)
        if self.remote and digests is not None:
            found = list(self._pool.map(self._cache.read, digests))
        problems: dict[int, str] = {}
        for _ in range(2):  # it may have been the way here, not the file
            missing = [i for i, data in enumerate(found) if data is None]
            problems = {}
            for i, answer in zip(missing, self._obtain([paths[i] for i in missing]), strict=True):
                if isinstance(answer, Exception):
                    problems[i] = why_unread(answer)
                elif digests is not None and answer[1] != digests[i]:
                    problems[i] = f"it has changed: its sha256 is {answer[1]}, no longer {digests[i]}"
                else:
                    found[i] = answer[0]
            if not problems:
                break
        self._refuse([f"{paths[i]}: {why}" for i, why in problems.items()])
        return [data for data in found if data is not None]

    def stream(self, paths: Sequence[str], digests: Sequence[str] | None = None) -> Iterator[list[bytes]]:
        """Yield the bytes of files as `read` returns them, some at a time, while the next are on their way."""
        yield from ahead(_chunks(len(paths)), lambda c: self.read(paths[c], None if digests is None else digests[c]), 2)

    def attempts(self, paths: Sequence[str]) -> Iterator[list[Answer]]:
        """Yield, some files at a time, the bytes and sha256 of each, or why there are none: no file is refused."""
        yield from ahead(_chunks(len(paths)), lambda chunk: self._obtain(paths[chunk]), 2)

    def digests(self, paths: Sequence[str], tell: Tell | None = None) -> Iterator[str]:
        """Yield the sha256 (hex) of files as they are now. The cache keeps what comes from a remote root."""

        def obtain(chunk: slice) -> list[Answer]:
            return self._obtain(paths[chunk])

        meter = _Meter(tell if self.remote else None, len(paths))
        for chunk, answers in zip(_chunks(len(paths)), ahead(_chunks(len(paths)), obtain, 2), strict=True):
            named = zip(paths[chunk], answers, strict=True)
            self._refuse([f"{path}: {why_unread(a)}" for path, a in named if isinstance(a, Exception)])
            whole = [answer for answer in answers if not isinstance(answer, Exception)]
            meter.count([data for data, _ in whole])
            yield from (digest for _, digest in whole)

    def bring_near(self, paths: Sequence[str], digests: Sequence[str], tell: Tell | None = None) -> None:
        """Have the cache hold files of a remote root, if there is a cache."""
        if not self.remote or not self._cache.works:
            return
        far = [(path, digest) for path, digest in zip(paths, digests, strict=True) if not self._cache.holds(digest)]
        meter = _Meter(tell, len(paths), len(paths) - len(far))
        for images in self.stream([path for path, _ in far], [digest for _, digest in far]):
            meter.count(images)

    def _obtain(self, paths: Sequence[str]) -> list[Answer]:
        """Return what the files below the root hold now; what comes from a remote root enters the cache."""
        found = self._request(paths) if self.remote else self._pool.map(self._read_local, paths)
        return list(self._pool.map(self._digested, found))

    def _digested(self, data: bytes | Exception) -> Answer:
        if isinstance(data, Exception):
            return data
        return data, self._cache.keep(data) if self.remote else hashlib.sha256(data).hexdigest()

    def _read_local(self, path: str) -> bytes | Exception:
        try:
            return Path(self._base, path).read_bytes()
        except OSError as error:
            return error

    def _request(self, paths: Sequence[str]) -> list[bytes | Exception]:
        """Ask for all files at once, and for each that did not come by itself, by the retry policy."""
        if not self._fs.async_impl:
            return list(self._pool.map(self._ask_for, paths))
        # Measured on S3: fewer cycles an image than threads. max_concurrency=1 leaves out a request for the size.
        options = {"max_concurrency": 1} if "s3" in self._fs.protocol else {}

        async def one(path: str, gate: asyncio.Semaphore) -> bytes | Exception:
            async with gate:
                try:
                    request = self._fs._cat_file(f"{self._base}/{path}", **options)
                    data: bytes = await asyncio.wait_for(request, storage_settings().deadline_seconds)
                except Exception as error:
                    return error
                return data

        async def every() -> list[bytes | Exception]:
            gate = asyncio.Semaphore(IN_FLIGHT)
            return await asyncio.gather(*(one(path, gate) for path in paths))

        found: list[bytes | Exception] = sync(self._fs.loop, every)
        failed = [i for i, data in enumerate(found) if isinstance(data, Exception)]
        for i, data in zip(failed, self._pool.map(lambda i: self._ask_for(paths[i]), failed), strict=True):
            found[i] = data
        return found

    def _ask_for(self, path: str) -> bytes | Exception:
        """Return one file, or that it is not there. A store that does not answer is not asked for the others."""
        try:
            return read_file(self._fs, f"{self._base}/{path}", f"{self.root}/{path}")
        except FileNotFoundError as error:
            return error
        except StoreError as error:
            raise DataError(f"image {path} below {self.root} cannot be read: {error}") from None

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise DataError(
                f"{len(problems)} of the images below {self.root} cannot be used; put them back as they were, or run "
                f"again with the data as they are now:\n{some_of(problems)}"
            )


class _Meter:
    """Counts what has come, and tells of it every second and at the end."""

    def __init__(self, tell: Tell | None, of: int, here: int = 0):
        self._tell, self._of, self._images, self._bytes = tell, of, here, 0
        self._began = self._told = time.monotonic()

    def count(self, images: Sequence[bytes]) -> None:
        self._images += len(images)
        self._bytes += sum(map(len, images))
        now = time.monotonic()
        if self._tell is not None and (now - self._told >= TELL_SECONDS or self._images == self._of):
            self._told = now
            self._tell(Fetching(self._images, self._of, self._bytes / 1e6, now - self._began))


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]


def why_unread(error: Exception) -> str:
    """Return why a file has no bytes, in words."""
    if isinstance(error, FileNotFoundError):
        return GONE
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__

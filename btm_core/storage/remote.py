"""Files on any fsspec file system."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from btm_core.storage.files import Digest, FileFact, Files, Note, file_digest, nothing
from btm_core.storage.retrying import ConflictError, error_code, retrying
from btm_core.storage.settings import StorageSettings

__all__ = ["RemoteFiles", "in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class RemoteFiles(Files):
    """Files on any fsspec file system. Conditions of writes are checked here, just before the write."""

    def __init__(self, fs: Any, root: str, url: str, settings: StorageSettings):
        self.fs, self.root, self.url, self.settings = fs, root, url.rstrip("/"), settings
        # A server that sends a byte now and then is never silent: no attempt may take longer than all together.
        self.bound: dict[str, Any] = {"timeout": settings.deadline_seconds} if fs.async_impl else {}

    def within(self, seconds: float) -> "RemoteFiles":
        """Return these files with a deadline no later than that."""
        settings = self.settings.model_copy(update={"deadline_seconds": min(seconds, self.settings.deadline_seconds)})
        return type(self)(self.fs, self.root, self.url, settings)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _do(self, call: Callable[[], Result], path: str) -> Result:
        return retrying(call, f"{self.url}/{path}", self.settings.deadline_seconds)

    def read(self, path: str) -> tuple[bytes, str] | None:
        """Return a file's bytes and version, None if there is no file."""
        try:
            data: bytes = self._do(lambda: self.fs.cat_file(self._at(path), **self.bound), path)
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        self._do(lambda: self.fs.pipe_file(self._at(path), data, **self.bound), path)

    def write_if(self, path: str, data: bytes, version: str | None) -> None:
        """Write a file if it has that version, or with None if there is none; raises ConflictError else."""
        found = self.read(path)
        if found is not None and found[0] == data:
            return
        if (None if found is None else found[1]) != version:
            raise ConflictError(path)
        self.write(path, data)

    def put(self, source: Path, path: str, note: Note = nothing, *, exclusive: bool = False) -> Digest:
        """Copy a local file here; return its digest."""
        own = file_digest(source)
        if exclusive and self._is_there(path):
            self._expect(path, own)
            return own
        self._do(lambda: self.fs.put_file(str(source), self._at(path), **self.bound), path)
        note(own[1])
        return own

    def _is_there(self, path: str) -> bool:
        return bool(self._do(lambda: self.fs.exists(self._at(path), **self.bound), path))

    def _expect(self, path: str, own: Digest) -> None:
        """Raise ConflictError unless a file has this digest."""
        try:
            if self.get(path, own[1], None) == own:
                return
        except FileNotFoundError:
            pass
        raise ConflictError(path)

    def get(self, path: str, size: int, target: Path | None, note: Note = nothing) -> Digest:
        """Copy a file of `size` bytes to a local one (with None nowhere); return its digest.

        Parts are fetched beside each other, each tried again alone, and hashed and written in order. Of a file of
        another size, all is read if it is shorter, one byte too many if it is longer: enough to see it.
        """
        part = self.settings.part_bytes
        starts = range(0, max(size, 1), part)
        digest, length = hashlib.sha256(), 0
        file = None if target is None else target.open("wb")
        pool = ThreadPoolExecutor(self.settings.parallel)
        try:
            fetch = lambda start: self._part(path, start, start + part if start + part < size else size + 1)  # noqa: E731
            for start, data in zip(starts, in_order(pool, fetch, starts, self.settings.parallel), strict=False):
                if file is not None:
                    file.write(data)
                digest.update(data)
                length += len(data)
                note(len(data))
                if len(data) < min(part, size - start):  # it is shorter
                    break
        finally:
            pool.shutdown(cancel_futures=True)
            if file is not None:
                file.close()
        return digest.hexdigest(), length

    def _part(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end` that are there."""

        def read() -> bytes:
            try:
                data: bytes = self.fs.cat_file(self._at(path), start=start, end=end, **self.bound)
            except OSError as error:
                if error_code(error) in ("InvalidRange", "416"):
                    return b""  # the file is shorter, which its digest will show
                raise
            return data

        return self._do(read, path)

    def walk(self, path: str) -> Iterator[FileFact]:
        """Yield the files below a folder, however deep, in order; none if there is no folder."""
        folder = self._at(path)
        found = self._do(lambda: self.fs.find(folder, detail=True, **self.bound), path)
        for name, entry in sorted(found.items()):
            if name.startswith(f"{folder}/"):  # not the folder's own marker, nor a file of that name
                modified = entry.get("LastModified") or entry.get("mtime") or entry.get("created")
                when = modified if isinstance(modified, datetime) else datetime.now(UTC)
                yield FileFact(name[len(self.root) + 1 :], entry["size"], when)

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all below, if it is there."""
        for name in [path, *(fact.path for fact in self.walk(path))]:  # by name: `fs.rm` would take * for all
            with suppress(FileNotFoundError):
                self._do(lambda name=name: self.fs.rm_file(self._at(name), **self.bound), name)  # type: ignore[misc]


def in_order(
    pool: ThreadPoolExecutor, call: Callable[[Item], Result], items: "Iterator[Item] | range", ahead: int
) -> Iterator[Result]:
    """Yield the results of a call for each item, in order, of which few are under way or waiting at a time."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(call, item))  # type: ignore[arg-type]
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()

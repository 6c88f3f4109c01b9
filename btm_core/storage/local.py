"""Files on a disk of this machine, or on one that is mounted here."""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TypeVar

from btm_core.errors import StoreError
from btm_core.storage.files import Digest, FileFact, Files, Note, file_digest, nothing
from btm_core.storage.retrying import ConflictError, retrying

__all__ = ["LocalFiles", "refuse_special"]

Result = TypeVar("Result")

CHUNK = 2**18
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems without hard links answer."""


class LocalFiles(Files):
    """Files on a disk of this machine, or on one that is mounted here."""

    conditional = True

    def __init__(self, root: Path):
        self.root = root

    def at(self, path: str) -> Path:
        """Return where a file lies."""
        return self.root / path

    def _do(self, call: Callable[[], Result], path: str) -> Result:
        return retrying(call, str(self.at(path)), 0, remote=False)

    def check_permission(self) -> None:
        """Raise StoreError if the folder, or the nearest that is there, is none or may not be written to."""
        there = self._nearest()
        if not there.is_dir():
            raise StoreError(f"{there} is a file, not a folder; choose another with --store")
        if not os.access(there, os.W_OK | os.X_OK):
            raise StoreError(f"{there} may not be written to; choose another with --store")

    def free_bytes(self) -> int | None:
        """Return the bytes that are free on the disk."""
        return shutil.disk_usage(self._nearest()).free

    def _nearest(self) -> Path:
        """Return the root, or what there is of the folders above it."""
        return next(path for path in (self.root, *self.root.parents) if path.exists())

    def read(self, path: str) -> tuple[bytes, str] | None:
        """Return a file's bytes and version, None if there is no file."""
        try:
            data = self._do(self.at(path).read_bytes, path)
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        self._do(lambda: self._write(path, data), path)

    def _write(self, path: str, data: bytes, *, exclusive: bool = False) -> None:
        with _whole(self.at(path), exclusive) as file:
            file.write(data)

    def write_if(self, path: str, data: bytes, version: str | None) -> None:
        """Write a file if it has that version, or with None if there is none; raises ConflictError else."""
        try:
            if version is None:
                self._do(lambda: self._write(path, data, exclusive=True), path)
            else:
                self._do(lambda: self._replace(path, data, version), path)
        except ConflictError:
            found = self.read(path)
            if found is None or found[0] != data:
                raise

    def _replace(self, path: str, data: bytes, version: str) -> None:
        lock = self.root / ".locks" / hashlib.sha256(path.encode()).hexdigest()[:16]
        lock.parent.mkdir(exist_ok=True)
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            found = self.read(path)
            if found is None or found[1] != version:
                raise ConflictError(path)
            self._write(path, data)

    def put(self, source: Path, path: str, note: Note = nothing, *, exclusive: bool = False) -> Digest:
        """Copy a local file here, whole or not at all; return its digest, computed on the way."""

        def copy() -> Digest:
            with source.open("rb") as file, _whole(self.at(path), exclusive) as partial:
                return _copy(file, partial, note)

        try:
            return self._do(copy, path)
        except ConflictError:
            own = file_digest(source)
            if file_digest(self.at(path)) != own:
                raise
            return own

    def get(self, path: str, size: int, target: Path | None, note: Note = nothing) -> Digest:
        """Copy a file to another local one (with None nowhere); return its digest, computed on the way."""

        def copy() -> Digest:
            with self.at(path).open("rb") as file:
                if target is None:
                    return _copy(file, None, note)
                with target.open("wb") as to:
                    return _copy(file, to, note)

        return self._do(copy, path)

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """Give a file to write, which is at `path` in the end, whole, or gone if anything raised."""
        with ExitStack() as stack:
            yield self._do(lambda: stack.enter_context(_whole(self.at(path), False)), path)
            self._do(stack.close, path)

    def walk(self, path: str) -> Iterator[FileFact]:
        """Yield the files below a folder, however deep, in order; none if there is no folder."""

        def listed() -> Iterator[FileFact]:
            for folder, folders, names in os.walk(self.at(path), onerror=_unless_absent):
                folders.sort()
                for name in sorted(names):
                    file = Path(folder, name)
                    with suppress(FileNotFoundError):  # gone meanwhile
                        found = file.stat()
                        modified = datetime.fromtimestamp(found.st_mtime, UTC)
                        yield FileFact(file.relative_to(self.root).as_posix(), found.st_size, modified)

        yield from self._do(lambda: list(listed()), path)

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all below, if it is there."""

        def remove() -> None:
            target = self.at(path)
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

        with suppress(FileNotFoundError):  # somebody else deletes it, too
            self._do(remove, path)


def _unless_absent(error: OSError) -> None:
    """Let no folder that cannot be read look as if it were empty."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _copy(source: IO[bytes], target: IO[bytes] | None, note: Note) -> Digest:
    digest, size = hashlib.sha256(), 0
    while data := source.read(CHUNK):
        if target is not None:
            target.write(data)
        digest.update(data)
        size += len(data)
        note(len(data))
    return digest.hexdigest(), size


def refuse_special(target: Path) -> None:
    """Raise StoreError if something is there that is no plain file: root would replace even /dev/null."""
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or a pipe"
        raise StoreError(f"{target} is {kind}, expected a file to write, or none yet: choose another name")


@contextmanager
def _whole(target: Path, exclusive: bool) -> Iterator[IO[bytes]]:
    """Give a file beside `target` to write to, and move it into place at the end: readers see all of it or nothing.

    With `exclusive`, ConflictError if there is a file already.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # to read it would be an answer; to write it is not
        raise StoreError(f"{target.parent} cannot be made: {error}; choose another place") from None
    refuse_special(target)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            _link(partial, target)
        else:
            partial.replace(target)
        _sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have a new name survive a power cut, where the file system can: a manifest must not outlive its files."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _link(partial: Path, target: Path) -> None:
    """Give a file its name if nobody has it."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise ConflictError(str(target)) from None
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Without links, a file that is exclusively ours may be seen half written; it is never another's.
        try:
            with partial.open("rb") as source, target.open("xb") as file:
                shutil.copyfileobj(source, file)
        except FileExistsError:
            raise ConflictError(str(target)) from None

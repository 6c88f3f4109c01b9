"""The artifact store: folders of files with a manifest, on a local disk or S3, at addresses made from what they hold.

`<store>/artifacts/<stage>/<readable>-<hash>/` holds one artifact. Its `manifest.json` is written last: no manifest, no
artifact. `<store>/partial/...` holds the state of stages that are under way, `<store>/runs/<run_id>/` reports of runs.
"""

import hashlib
import json
import shutil
import tempfile
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from pydantic import BaseModel, ConfigDict, ValidationError

from btm_core.errors import StoreError

__all__ = ["Artifact", "Manifest", "Store", "file_digest"]

MANIFEST = "manifest.json"


class Manifest(BaseModel):
    """What an artifact says of itself; `files` are its result, `logs` come along but do not identify it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str
    address: str
    config: dict[str, Any]
    parents: dict[str, str]
    files: dict[str, tuple[str, int]]
    logs: dict[str, tuple[str, int]] = {}
    versions: dict[str, str] = {}
    host: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """Return the sha256 that identifies the content: of the names and digests of the files."""
        lines = [f"{digest}  {name}" for name, (digest, _) in sorted(self.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Artifact(BaseModel):
    """A reference to an artifact: all that crosses a task boundary."""

    model_config = ConfigDict(frozen=True)

    stage: str
    address: str
    digest: str


def file_digest(path: Path) -> tuple[str, int]:
    """Return sha256 (hex) and size (bytes) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


class Store:
    """Reads and writes artifacts below one fsspec URL: a path, file://, s3:// or memory://."""

    def __init__(self, url: str):
        if url.startswith("file://"):
            url = urllib.parse.unquote(url.removeprefix("file://"))  # a URL writes a space as %20, a folder does not
        local = "://" not in url
        place = str(Path(url).expanduser().resolve()) if local else url
        self.url = Path(place).as_uri() if local else url
        try:
            self._fs, root = fsspec.core.url_to_fs(place)
        except (ImportError, ValueError, OSError) as error:
            raise StoreError(
                f"store {url!r} is not usable: {error}; use file:///folder or s3://bucket/prefix"
            ) from None
        self._root = root.rstrip("/")

    def locate(self, *parts: str) -> str:
        """Return the URL of something below the store."""
        return "/".join((self.url.rstrip("/"), *parts))

    def check_writable(self) -> None:
        """Write and delete a probe. Raises StoreError that says what to do."""
        probe = f"{self._root}/.probe-{uuid.uuid4().hex}"
        try:
            if "file" in self._fs.protocol:  # on S3 this would create a bucket that was only mistyped
                self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(probe, b"btm")
            self._fs.rm_file(probe)
        except Exception as error:  # each file system raises its own: permissions, credentials, network, bucket
            reason = str(error) or type(error).__name__
            raise StoreError(
                f"store {self.url} cannot be written: {reason}; check that the folder or bucket exists and may be "
                "written, or choose another with --store"
            ) from None

    # Artifacts

    def find(self, address: str) -> Artifact | None:
        """Return the artifact at `<stage>/<readable>-<hash>`, None if there is none (or only half of one)."""
        manifest = self.manifest(address)
        if manifest is None:
            return None
        return Artifact(stage=manifest.stage, address=address, digest=manifest.digest)

    def manifest(self, address: str) -> Manifest | None:
        """Return the manifest at an address, None if it is absent. Raises StoreError if it cannot be understood."""
        try:
            data = self._fs.cat_file(self._at("artifacts", address, MANIFEST))
        except FileNotFoundError:
            return None
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            where = self.locate("artifacts", address)
            raise StoreError(f"{where}/{MANIFEST} cannot be understood: {error}; delete the folder") from None
        for name, (_, size) in {**manifest.files, **manifest.logs}.items():
            try:
                present = self._fs.size(self._at("artifacts", address, name))
            except FileNotFoundError:
                return None
            if present != size:
                return None
        return manifest

    def publish(
        self,
        address: str,
        folder: Path,
        *,
        config: dict[str, Any],
        parents: dict[str, str],
        versions: dict[str, str],
        host: dict[str, Any],
        logs: tuple[str, ...] = (),
    ) -> Artifact:
        """Copy the files of a local folder to an address, then its manifest. Returns the reference.

        Files named in `logs` are kept and verified, but do not enter the artifact's digest.
        """
        facts = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
        manifest = Manifest(
            stage=address.split("/", 1)[0],
            address=address,
            config=config,
            parents=parents,
            files={name: fact for name, fact in facts.items() if name not in logs},
            logs={name: fact for name, fact in facts.items() if name in logs},
            versions=versions,
            host=host,
        )
        try:
            for name in facts:
                self.put(folder / name, "artifacts", address, name)
            self.write(manifest.model_dump_json(indent=1).encode(), "artifacts", address, MANIFEST)
        except OSError as error:
            where = self.locate("artifacts", address)
            raise StoreError(
                f"{where} could not be written: {error}; free space or check access, and run again"
            ) from None
        return Artifact(stage=manifest.stage, address=address, digest=manifest.digest)

    def fetch(self, artifact: Artifact, name: str, folder: Path) -> Path:
        """Return a verified local copy of one file of an artifact; on a local store, the file itself.

        Raises StoreError if the artifact is gone or its bytes are not those of the manifest.
        """
        manifest = self.manifest(artifact.address)
        if manifest is None or manifest.digest != artifact.digest:
            raise StoreError(f"{self.locate('artifacts', artifact.address)} is gone, or was replaced; run again")
        digest, size = {**manifest.files, **manifest.logs}[name]
        source = self._at("artifacts", artifact.address, name)
        if "file" in self._fs.protocol:
            path = Path(source)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{digest[:16]}-{name}"
            if not path.exists():
                self._fs.get_file(source, str(path))
        if file_digest(path) != (digest, size):
            raise StoreError(
                f"{self.locate('artifacts', artifact.address, name)} does not hold what its manifest says "
                f"(sha256 {digest}); delete {self.locate('artifacts', artifact.address)} and run again"
            )
        return path

    # Plain files

    def write(self, data: bytes, *parts: str) -> str:
        """Write bytes at a path below the store, whole or not at all; returns its URL."""
        target = self._at(*parts)
        if "file" in self._fs.protocol:
            with _whole(Path(target)) as partial:
                partial.write_bytes(data)
        else:
            self._fs.pipe_file(target, data)
        return self.locate(*parts)

    def read(self, *parts: str) -> bytes | None:
        """Return the bytes at a path below the store, None if there is nothing."""
        try:
            data: bytes = self._fs.cat_file(self._at(*parts))
        except FileNotFoundError:
            return None
        return data

    def put(self, path: Path, *parts: str) -> str:
        """Copy a local file to a path below the store, whole or not at all; returns its URL."""
        target = self._at(*parts)
        if "file" in self._fs.protocol:
            with _whole(Path(target)) as partial:
                shutil.copyfile(path, partial)
        else:
            self._fs.put_file(str(path), target)
        return self.locate(*parts)

    def remove(self, *parts: str) -> None:
        """Delete a file or folder below the store, if it is there."""
        target = self._at(*parts)
        if self._fs.exists(target):
            self._fs.rm(target, recursive=True)

    def read_json(self, artifact: Artifact, name: str) -> Any:
        """Return a JSON file of an artifact, verified."""
        with tempfile.TemporaryDirectory(prefix="btm-") as folder:
            return json.loads(self.fetch(artifact, name, Path(folder)).read_text())

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Give a name beside `target` to write to, and move it into place at the end: readers see all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)

"""The artifact store: folders of files with a manifest, on a local disk or S3, at addresses made from what they hold.

`<store>/artifacts/<stage>/<readable>-<hash>/` holds one artifact. Its `manifest.json` is written last: no manifest, no
artifact. `<store>/partial/...` holds the state of stages that are under way, `<store>/runs/<run_id>/` reports of runs.

Several may make one artifact at once, and may differ in their last bits. So a file of an artifact is never written
again: who finds its name taken by other bytes takes another name. The manifest says which files are the artifact; it
changes from absent to whole, and from damaged to whole, by compare-and-swap alone. Who comes second takes what is
there.
"""

import json
import logging
import tempfile
import uuid
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from btm_core.errors import ArtifactError, StoreError
from btm_core.storage.cache import FileCache
from btm_core.storage.files import Digest, Note, file_digest
from btm_core.storage.folder import Folder
from btm_core.storage.local import LocalFiles
from btm_core.storage.manifest import MANIFEST, Artifact, Manifest, problems_of
from btm_core.storage.retrying import ConflictError
from btm_core.storage.settings import StorageSettings

__all__ = ["Store"]

log = logging.getLogger(__name__)

ROUNDS = 10
"""Of a compare-and-swap: each is lost only to somebody else who gets on."""


class Store(Folder):
    """Reads and writes artifacts, and plain files, below one fsspec URL: a path, file://, s3:// or memory://.

    Every method raises StoreError if the store cannot be used.
    """

    def __init__(self, url: str, settings: StorageSettings | None = None):
        super().__init__(url, settings)
        self._known: dict[str, tuple[Manifest, str]] = {}
        self._cache = FileCache.of(self.settings)

    def find(self, address: str) -> Artifact | None:
        """Return the artifact at `<stage>/<readable>-<hash>`, None if there is none (or only half of one)."""
        manifest = self.manifest(address)
        return None if manifest is None else manifest.artifact

    def manifest(self, address: str) -> Manifest | None:
        """Return the manifest at an address; None if it is absent, or what it names is not there, with a warning."""
        found = self._look(address)
        if found is None:
            return None
        manifest, _, problems = found
        if problems:
            where = self.locate("artifacts", address)
            log.warning("%s is of no use, and will be made again: %s", where, problems)
            return None
        return manifest

    def _look(self, address: str) -> tuple[Manifest, str, str] | None:
        """Return manifest, version, and what shows, without reading its files, that the artifact is not whole.

        Files are there before a manifest names them, and stay. So one whose files were listed before it was read is
        whole, and one whose files are not there afterwards is not; in between, somebody is at work: look again.
        """
        for _ in range(ROUNDS):
            before = self._sizes(address)
            found = self._read_manifest(address) if MANIFEST in before else None
            if found is None:
                return None
            if not problems_of(found[0], before):
                return *found, ""
            problems = problems_of(found[0], self._sizes(address))
            if problems:
                return *found, "; ".join(problems)
        raise StoreError(f"{self.locate('artifacts', address)} changes all the time; run again")

    def _sizes(self, address: str) -> dict[str, int]:
        """Return the size of each file in an artifact's folder, by name."""
        return {fact.path.rpartition("/")[2]: fact.size for fact in self.walk("artifacts", address)}

    def _read_manifest(self, address: str) -> tuple[Manifest, str] | None:
        """Return manifest and version. One that cannot be understood counts as damaged."""
        found = self._files.read(f"artifacts/{address}/{MANIFEST}")
        if found is None:
            return None
        try:
            manifest = Manifest.model_validate_json(found[0])
            if manifest.address != address:
                raise ValueError(f"it is that of {manifest.address}")
        except (ValidationError, ValueError) as error:
            stage = address.partition("/")[0]
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            words = f"its manifest cannot be understood: {reason}"
            manifest = Manifest(stage=stage, address=address, config={}, parents={}, files={}, corrupt=words)
        return manifest, found[1]

    def check(self, address: str, note: Note = lambda count: None, *, mark: bool = False) -> list[str]:
        """Read all of an artifact and return what is wrong with it, in words; nothing if it is whole.

        `note` is called with the number of bytes read since its last call. With `mark`, an artifact that is not whole
        is marked as damaged, if its manifest is still the one that was read: it then counts as absent.
        """
        found = self._read_manifest(address)
        if found is None:
            return ["it has no manifest"]
        manifest, version = found
        problems = self._differences(manifest, note) if manifest.corrupt is None else [manifest.corrupt]
        if problems and mark:
            self.mark_damaged(address, version, "; ".join(problems))
        return problems

    def _differences(self, manifest: Manifest, note: Note) -> list[str]:
        problems = []
        for name, (digest, size) in manifest.all_files.items():
            try:
                present = self._files.get(self._file(manifest, name), size, None, note)
            except FileNotFoundError:
                problems.append(f"{name} is gone")
                continue
            if present != (digest, size):
                problems.append(f"{name} has {_difference((digest, size), present)}")
        return problems

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

        If somebody else has published a whole artifact there in the meantime, that one stays, and is returned. Files
        named in `logs` are kept and verified, but do not enter the artifact's digest.
        """
        found = self._look(address)
        if found is not None:
            present, version, problems = found
            if not problems:
                return present.artifact
            # Or a file of ours, under a name that is free again, might make it look whole.
            self.mark_damaged(address, version, problems)
        facts, paths = {}, {}
        # What was here before may be deleted by a `btm store gc` that looked before: none of it is taken over.
        taken = self._sizes(address)
        for path in sorted(folder.iterdir()):
            facts[path.name], kept_as = self._keep(path, address, taken)
            if kept_as != path.name:
                paths[path.name] = kept_as
        manifest = Manifest(
            stage=address.split("/", 1)[0],
            address=address,
            config=config,
            parents=parents,
            files={name: fact for name, fact in facts.items() if name not in logs},
            logs={name: fact for name, fact in facts.items() if name in logs},
            paths=paths,
            versions=versions,
            host=host,
        )
        return self._swap(manifest)

    def _keep(self, path: Path, address: str, taken: Container[str]) -> tuple[Digest, str]:
        """Copy a file into an artifact's folder under a name that nobody else uses for other bytes."""

        def names() -> Iterator[str]:
            if self._files.conditional:
                yield path.name
            # Taken, or nobody would stop two writers: let equal names mean equal bytes; unless those are damaged.
            yield f"{file_digest(path)[0][:16]}-{path.name}"
            yield f"{uuid.uuid4().hex[:16]}-{path.name}"

        for name in names():
            if name in taken:
                continue
            try:
                return self._put(path, f"artifacts/{address}/{name}", exclusive=True), name
            except ConflictError:
                log.debug("%s/%s is taken by other bytes", address, name)
        raise StoreError(f"{self.locate('artifacts', address, path.name)} could not be written under any name")

    def _swap(self, manifest: Manifest) -> Artifact:
        """Put a manifest where there is none, or one of no use; else take what is there."""
        data, version = manifest.model_dump_json(indent=1).encode(), None
        for _ in range(ROUNDS):
            try:
                self._files.write_if(f"artifacts/{manifest.address}/{MANIFEST}", data, version)
                return manifest.artifact
            except ConflictError:
                found = self._look(manifest.address)
                if found is not None and not found[2]:
                    log.info("%s was made by somebody else at the same time", manifest.address)
                    return found[0].artifact
                version = None if found is None else found[1]
        raise StoreError(f"{self.locate('artifacts', manifest.address)} is written by too many at once; run again")

    def mark_damaged(self, address: str, version: str, why: str) -> None:
        """Note in an artifact's manifest, of that version, that it is not whole: it then counts as absent.

        A manifest that is of another version by now is left alone.
        """
        found = self._read_manifest(address)
        if found is not None and found[1] == version:
            data = found[0].model_copy(update={"corrupt": why}).model_dump_json(indent=1).encode()
            with suppress(ConflictError):
                self._files.write_if(f"artifacts/{address}/{MANIFEST}", data, version)

    def fetch(self, artifact: Artifact, name: str, folder: Path) -> Path:
        """Return a verified local copy of one file of an artifact; on a local store, the file itself.

        Raises ArtifactError if the artifact is gone or its bytes are not those of the manifest: it then counts as
        absent, and is made again by the next run.
        """
        for _ in range(2):  # it may have been made again, under other names, since its manifest was read
            manifest, version = self._manifest_of(artifact)
            expected = manifest.all_files[name]
            path = self._file(manifest, name)
            try:
                return self._fetch(path, expected, folder / f"{expected[0][:16]}-{name}")
            except FileNotFoundError:
                why = f"{name} has vanished"
            except _DamageError as damage:
                why = f"{name} has {damage}"
            self._known.pop(artifact.address, None)
            if self._is_still(artifact.address, version):
                break
        where = self.locate("artifacts", artifact.address)
        try:
            self.mark_damaged(artifact.address, version, why)
        except StoreError as error:
            raise ArtifactError(f"{where} is damaged: {why}. It could not be marked ({error}): delete it") from None
        raise ArtifactError(f"{where} is damaged: {why}. It is marked as such; run again to make it again")

    def _fetch(self, path: str, expected: Digest, target: Path) -> Path:
        def whole(read: Callable[[], Digest]) -> Digest:
            for _ in range(2):  # it may have been the way here, not the file
                found = read()
                if found == expected:
                    return found
            raise _DamageError(_difference(expected, found))

        if isinstance(self._files, LocalFiles):
            whole(lambda: self._files.get(path, expected[1], None))
            return self._files.at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        return self._cache.take(*expected, lambda partial: whole(lambda: self._get(path, expected[1], partial)), target)

    def _manifest_of(self, artifact: Artifact) -> tuple[Manifest, str]:
        """Return the manifest behind a reference, and its version; read once."""
        known = self._known.get(artifact.address)
        if known is None or known[0].digest != artifact.digest:
            known = self._read_manifest(artifact.address)
            if known is None or known[0].corrupt is not None or known[0].digest != artifact.digest:
                where = self.locate("artifacts", artifact.address)
                damage = "gone" if known is None else f"damaged: {known[0].corrupt}" if known[0].corrupt else "replaced"
                raise ArtifactError(f"{where} is {damage}; run again to make it again")
            self._known[artifact.address] = known
        return known

    def _is_still(self, address: str, version: str) -> bool:
        found = self._read_manifest(address)
        return found is not None and found[1] == version

    def read_file(self, artifact: Artifact, name: str) -> bytes | None:
        """Return the bytes of a file of an artifact, verified; None if it has no file of that name."""
        if name not in self._manifest_of(artifact)[0].all_files:
            return None
        with tempfile.TemporaryDirectory(prefix="btm-") as folder:
            return self.fetch(artifact, name, Path(folder)).read_bytes()

    def read_json(self, artifact: Artifact, name: str) -> Any:
        """Return a JSON file of an artifact, verified."""
        with tempfile.TemporaryDirectory(prefix="btm-") as folder:
            return json.loads(self.fetch(artifact, name, Path(folder)).read_text())

    def file_url(self, artifact: Artifact, name: str) -> str:
        """Return the URL of a file of an artifact."""
        return self.locate(self._file(self._manifest_of(artifact)[0], name))

    @staticmethod
    def _file(manifest: Manifest, name: str) -> str:
        return f"artifacts/{manifest.address}/{manifest.paths.get(name, name)}"


class _DamageError(Exception):
    """A file's bytes are not those that its manifest names."""


def _difference(expected: Digest, found: Digest) -> str:
    if found[1] != expected[1]:
        return f"{found[1]} bytes, its manifest says {expected[1]}"
    return f"sha256 {found[0]}, its manifest says {expected[0]}"

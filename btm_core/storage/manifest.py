"""What an artifact says of itself, and references to it."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["MANIFEST", "Artifact", "Manifest", "problems_of"]

MANIFEST = "manifest.json"


def _plain_name(name: str) -> str:
    """Refuse what would lead out of the artifact's folder."""
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"{name!r} is no name of a file")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
FileDigest = tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], Annotated[int, Field(ge=0)]]


class Artifact(BaseModel):
    """A reference to an artifact: all that crosses a task boundary."""

    model_config = ConfigDict(frozen=True)

    stage: str
    address: str
    digest: str


class Manifest(BaseModel):
    """What an artifact says of itself; `files` are its result, `logs` come along but do not identify it.

    Each file has its sha256 (hex) and its size (bytes).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str
    address: str
    config: dict[str, Any]
    parents: dict[str, str]
    files: dict[FileName, FileDigest]
    logs: dict[FileName, FileDigest] = {}
    paths: dict[FileName, FileName] = {}
    """Under what other name a file lies in the artifact's folder, where its own was taken."""
    versions: dict[str, str] = {}
    host: dict[str, Any] = {}
    corrupt: str | None = None
    """What was found to be damaged; the artifact then counts as absent."""

    @property
    def digest(self) -> str:
        """Return the sha256 that identifies the content: of the names and digests of the files."""
        lines = [f"{digest}  {name}" for name, (digest, _) in sorted(self.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def artifact(self) -> Artifact:
        """The reference to it."""
        return Artifact(stage=self.stage, address=self.address, digest=self.digest)

    @property
    def all_files(self) -> dict[str, tuple[str, int]]:
        """Files and logs."""
        return {**self.files, **self.logs}


def problems_of(manifest: Manifest, sizes: Mapping[str, int]) -> list[str]:
    """Return what is wrong with an artifact in whose folder there are files of these sizes (bytes), by name."""
    if manifest.corrupt is not None:
        return [manifest.corrupt]
    problems = []
    for name, (_, size) in manifest.all_files.items():
        present = sizes.get(manifest.paths.get(name, name))
        if present != size:
            problems.append(f"{name} is gone" if present is None else f"{name} has {present} bytes, not {size}")
    return problems

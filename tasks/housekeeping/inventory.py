"""What a store holds, as plain data: one listing, and every manifest and journal read once, beside each other."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TypeVar

from pydantic import ValidationError

from btm_core.storage import FileFact, Manifest, Store
from btm_core.storage.manifest import MANIFEST, problems_of
from tasks.housekeeping.backend import Backend, Upload
from tasks.housekeeping.records import REPORT, SUMMARIES, ModelRow, reason, understood
from tasks.journal import JOURNAL
from tasks.naming import unambiguous

__all__ = ["Inventory", "StoredArtifact", "StoredRun", "beside", "read_inventory", "read_runs"]

WORKERS = 16
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.part$")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class StoredArtifact:
    """A folder below `artifacts/`; `manifest` is None if there is none, or none that can be read: `problem` says so."""

    address: str
    files: tuple[FileFact, ...]
    manifest: Manifest | None
    problem: str | None = None

    @property
    def size(self) -> int:
        """Bytes, of all files that are there."""
        return sum(fact.size for fact in self.files)

    @property
    def modified(self) -> datetime:
        """When the newest of its files was written."""
        return max(fact.modified for fact in self.files)

    @property
    def has_manifest(self) -> bool:
        """Whether there is a manifest, readable or not."""
        return any(name_of(fact) == MANIFEST for fact in self.files)

    @property
    def parents(self) -> tuple[str, ...]:
        """Addresses of what it was made from, as far as its manifest tells."""
        return () if self.manifest is None else tuple(sorted(set(self.manifest.parents.values())))

    @property
    def surplus(self) -> tuple[FileFact, ...]:
        """Files that its manifest does not name."""
        if self.manifest is None:
            return ()
        named = {self.manifest.paths.get(name, name) for name in self.manifest.all_files}
        return tuple(fact for fact in self.files if name_of(fact) not in named | {MANIFEST})


@dataclass(frozen=True)
class StoredRun:
    """A folder below `runs/`. What it `artifacts` (found or made) and `wanted` (and did not get, so far) it refers to.

    The state is running, done, failed or stopped, by its journal; `empty` without any record of what it did,
    `unreadable` with one that is not understood: nobody knows then what it needs.
    """

    run_id: str
    files: tuple[FileFact, ...]
    state: str
    artifacts: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()
    name: str | None = None
    seed: int | None = None
    started: str | None = None
    tracking: str | None = None
    models: tuple[ModelRow, ...] = ()
    problem: str | None = None

    @property
    def refers(self) -> frozenset[str]:
        """All addresses that it names."""
        return self.artifacts | self.wanted

    @property
    def beat(self) -> datetime:
        """When it was last heard of: its journal's age, or that of its newest file."""
        journals = [fact for fact in self.files if name_of(fact) == JOURNAL]
        return max(fact.modified for fact in journals or self.files)

    @property
    def modified(self) -> datetime:
        """When the newest of its files was written."""
        return max(fact.modified for fact in self.files)

    @property
    def when(self) -> str:
        """When it started, or was first written to; ISO 8601."""
        return self.started or min(fact.modified for fact in self.files).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Inventory:
    """A store at one moment, `now` by its own clock. Keys are addresses and run ids."""

    url: str
    now: datetime
    artifacts: Mapping[str, StoredArtifact]
    runs: Mapping[str, StoredRun]
    partial: Mapping[str, tuple[FileFact, ...]]
    temporary: tuple[FileFact, ...] = ()
    uploads: tuple[Upload, ...] = ()

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """What every artifact was made from."""
        return {address: artifact.parents for address, artifact in self.artifacts.items()}

    def needed_by(self, run: StoredRun) -> set[str]:
        """Return what a run refers to, with all that this was made from; also what is not there."""
        return reachable(run.refers, self.parents)

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """Which runs refer to an address, directly or to something made from it."""
        users: dict[str, list[str]] = defaultdict(list)
        for run_id, run in sorted(self.runs.items()):
            for address in self.needed_by(run):
                users[address].append(run_id)
        return dict(users)

    def resolve(self, token: str) -> tuple[str, str]:
        """Return ("run", run id) or ("artifact", address) for a name, a URL, or an unambiguous beginning of one.

        Raises StoreError that names the candidates.
        """
        name = token.removeprefix(self.url).strip("/").removeprefix("artifacts/").removeprefix("runs/")
        known = [*self.runs, *self.artifacts]
        found = unambiguous(token, name, known, "run or artifact", f"store {self.url}")
        return ("run" if found in self.runs else "artifact"), found


def reachable(roots: Iterable[str], parents: Mapping[str, Iterable[str]]) -> set[str]:
    """Return `roots` and all their ancestors."""
    found: set[str] = set()
    ahead = list(roots)
    while ahead:
        address = ahead.pop()
        if address not in found:
            found.add(address)
            ahead.extend(parents.get(address, ()))
    return found


def name_of(fact: FileFact) -> str:
    """Return the last part of a file's path."""
    return fact.path.rpartition("/")[2]


def beside(call: Callable[[Item], Result], items: Iterable[Item], workers: int = WORKERS) -> list[Result]:
    """Return the results of a call for each item, several at a time; one worker means: here, in order."""
    if workers == 1:
        return [call(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(call, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_inventory(store: Store, workers: int = WORKERS, *, deleting: bool = False) -> Inventory:
    """Read what a store holds. Raises StoreError if any of it cannot be read: what is not known is not guessed.

    Who is about to delete asks for the store's own clock, wherever that takes a write; else nothing is written.
    """
    backend = Backend(store.url)
    now = backend.now(probing=deleting)
    folders, temporary = _grouped(store.walk("artifacts"), 3)
    partial, partial_temporary = _grouped(store.walk("partial"), 3)
    artifacts = beside(lambda entry: _read_artifact(store, *entry), folders.items(), workers)
    # The journals last: what a run wanted while the rest was read is in them.
    runs, run_temporary = _read_runs(store, {}, workers)
    return Inventory(
        url=store.url,
        now=now,
        artifacts={artifact.address: artifact for artifact in artifacts},
        runs=runs,
        partial={address: tuple(facts) for address, facts in partial.items()},
        temporary=(*temporary, *partial_temporary, *run_temporary, *backend.probes()),
        uploads=tuple(backend.uploads()),
    )


def read_runs(store: Store, known: Mapping[str, StoredRun], workers: int = WORKERS) -> dict[str, StoredRun]:
    """Read what has changed of the runs since they were `known`."""
    return _read_runs(store, known, workers)[0]


def _read_runs(
    store: Store, known: Mapping[str, StoredRun], workers: int
) -> tuple[dict[str, StoredRun], list[FileFact]]:
    folders, temporary = _grouped(store.walk("runs"), 2)

    def read(entry: tuple[str, list[FileFact]]) -> StoredRun:
        run_id, facts = entry
        before = known.get(run_id)
        return before if before is not None and before.files == tuple(facts) else _read_run(store, run_id, facts)

    return {run.run_id: run for run in beside(read, folders.items(), workers)}, temporary


def _grouped(facts: Iterable[FileFact], depth: int) -> tuple[dict[str, list[FileFact]], list[FileFact]]:
    """Return files by the folder they belong to, `depth` parts down less the first; and temporary ones apart."""
    folders: dict[str, list[FileFact]] = defaultdict(list)
    temporary = []
    for fact in facts:
        parts = fact.path.split("/")
        if TEMPORARY.search(fact.path):
            temporary.append(fact)
        elif len(parts) > depth:
            folders["/".join(parts[1:depth])].append(fact)
    return dict(folders), temporary


def _read_artifact(store: Store, address: str, facts: list[FileFact]) -> StoredArtifact:
    files = tuple(facts)
    if not any(fact.path == f"artifacts/{address}/{MANIFEST}" for fact in facts):
        return StoredArtifact(address, files, None, "half: it has no manifest")
    data = store.read("artifacts", address, MANIFEST)
    if data is None:  # deleted a moment ago
        rest = tuple(fact for fact in files if name_of(fact) != MANIFEST)
        return StoredArtifact(address, rest or files, None, "half: it has no manifest")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        return StoredArtifact(address, files, None, f"its manifest cannot be understood: {reason(error)}")
    if manifest.address != address:
        words = f"its manifest cannot be understood: it is that of {manifest.address}"
        return StoredArtifact(address, files, None, words)
    problems = problems_of(manifest, {name_of(fact): fact.size for fact in files})
    return StoredArtifact(address, files, manifest, f"damaged: {'; '.join(problems)}" if problems else None)


def _read_run(store: Store, run_id: str, facts: list[FileFact]) -> StoredRun:
    """Read a run's journal; without one, what its report and summaries name."""
    names = {fact.path.removeprefix(f"runs/{run_id}/") for fact in facts}
    documents = {}
    for name in (JOURNAL, *SUMMARIES, *([] if JOURNAL in names else [REPORT])):
        data = store.read("runs", run_id, name) if name in names else None
        if data is not None:
            documents[name] = data
    try:
        told = understood(documents)
    except ValueError as error:
        return StoredRun(run_id, tuple(facts), "unreadable", problem=str(error))
    return StoredRun(
        run_id,
        tuple(facts),
        "done" if names & {*SUMMARIES, REPORT} else told.state or "empty",
        told.artifacts,
        told.wanted,
        told.name,
        told.seed,
        told.started,
        told.tracking,
        told.models,
    )

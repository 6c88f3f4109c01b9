"""Deleting garbage beside runs that may take it at this very moment.

A run writes down an address before it looks for it. Here, manifests go first, and then the journals are read again.
So whoever took an artifact before its manifest went is seen, and the manifest put back; whoever comes later finds none,
and makes the artifact again, of files of its own: what lay there before is taken over by nobody. Files are deleted by
the names they had when the store was listed. Ended at any moment, all of this may be done again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from btm_core.storage import Store
from btm_core.storage.manifest import MANIFEST
from tasks.housekeeping.backend import Backend
from tasks.housekeeping.garbage import Garbage, Pins, Registered, pins
from tasks.housekeeping.inventory import TEMPORARY, WORKERS, Inventory, beside, read_runs

__all__ = ["Swept", "sweep"]

BATCH = 100
"""Artifacts whose manifests are away while the journals are read."""


@dataclass
class Swept:
    """What was deleted, and what was not after all: a run took it, or it changed."""

    deleted: list[Garbage] = field(default_factory=list)
    spared: list[Garbage] = field(default_factory=list)


def sweep(
    store: Store,
    inventory: Inventory,
    items: Sequence[Garbage],
    grace: timedelta,
    registered: Registered,
    tell: Callable[[int], None] = lambda count: None,
    workers: int = WORKERS,
) -> Swept:
    """Delete `items`; `tell` is called with how many are done. Raises StoreError."""
    began, runs = time.monotonic(), inventory.runs
    backend = Backend(store.url)

    def look() -> Pins:
        """Read the journals again, of which most have not changed; time has gone on by the store's clock."""
        nonlocal runs
        runs = read_runs(store, runs, workers)
        now = inventory.now + timedelta(seconds=time.monotonic() - began)
        return pins(runs.values(), inventory.parents, now, grace, registered)

    swept = Swept()
    # Runs last: while their journals are there, an interrupted sweep tells the same reasons when it is run again.
    for batch in _batches(sorted(items, key=lambda item: item.kind == "run")):
        pinned = look()
        free = [item for item in batch if not pinned.keep(item)]
        manifests = beside(lambda item: _take_manifest(store, item), free, workers)
        taken = [(item, data) for item, data in zip(free, manifests, strict=True) if data is not None]
        try:
            pinned = look()
        except BaseException:
            for item, data in taken:
                _put_back(store, item, data)
            raise
        gone = [item for item, _ in taken if not pinned.keep(item)]
        for item, data in taken:
            if pinned.keep(item):
                _put_back(store, item, data)
        beside(lambda item: _delete(store, backend, item), gone, workers)
        swept.deleted += gone
        swept.spared += [item for item in batch if item not in gone]
        tell(len(swept.deleted) + len(swept.spared))
    return swept


def _batches(items: Sequence[Garbage]) -> Iterator[Sequence[Garbage]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _take_manifest(store: Store, item: Garbage) -> bytes | None:
    """Take away an artifact's manifest and return it, nothing of all else; None if the item has changed."""
    if item.kind not in ("artifact", "half"):
        return b""
    present = [fact for fact in store.walk("artifacts", item.name) if not TEMPORARY.search(fact.path)]
    if sorted(present, key=lambda fact: fact.path) != sorted(item.files, key=lambda fact: fact.path):
        return None
    if item.kind == "half":
        return b""
    manifest = store.read("artifacts", item.name, MANIFEST)
    store.remove("artifacts", item.name, MANIFEST)
    return manifest


def _put_back(store: Store, item: Garbage, manifest: bytes) -> None:
    """Put a manifest back, unless somebody has made the artifact again."""
    if manifest and store.read("artifacts", item.name, MANIFEST) is None:
        store.write(manifest, "artifacts", item.name, MANIFEST)


def _delete(store: Store, backend: Backend, item: Garbage) -> None:
    if item.upload is not None:
        backend.abort(item.upload)
    for fact in item.files:
        if fact.path.endswith(f"/{MANIFEST}") and item.kind == "artifact":
            continue  # it went first; one that is there is somebody else's
        store.remove(fact.path)
        backend.prune(fact.path)

"""What of a store nobody needs, and why: decided on plain data, touching nothing.

Kept, always: what is younger than the grace period; what a run refers to that is done, that runs, or that ended without
a result within the grace period, with all that this was made from; what a registered model's run refers to.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from btm_core.errors import StoreError
from btm_core.storage import FileFact
from btm_core.storage.manifest import MANIFEST
from tasks.housekeeping.backend import Upload
from tasks.housekeeping.inventory import Inventory, StoredArtifact, StoredRun, name_of, reachable

__all__ = ["Garbage", "Pins", "Registered", "garbage", "pins"]

SILENCE = timedelta(hours=1)
"""A run whose journal was not refreshed (every minute) for so long may be dead; before, it never counts as such."""


@dataclass(frozen=True)
class Registered:
    """What registered models need: runs and addresses, each with the model's name and version."""

    asked: str
    """Whom: the tracking server, or why nobody."""
    runs: Mapping[str, str] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pins:
    """What must stay. `live`: addresses and run ids of runs under way, of which not a stray file is touched."""

    addresses: frozenset[str]
    live: frozenset[str]

    def keep(self, item: "Garbage") -> bool:
        """Whether something stays. Leftovers in the folder of what is needed may go, if nobody is at work there."""
        return item.owner in (self.addresses if item.kind in ("artifact", "half") else self.live)


@dataclass(frozen=True)
class Garbage:
    """Something that may go. The files are in the order in which they are deleted: a manifest first."""

    kind: str
    """artifact, half, surplus, partial, temporary, upload or run."""
    name: str
    reason: str
    modified: datetime
    files: tuple[FileFact, ...] = ()
    upload: Upload | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.upload.size if self.upload is not None else sum(fact.size for fact in self.files)

    @property
    def owner(self) -> str:
        """The address or the run id that it belongs to."""
        return owner(self.upload.path if self.upload is not None else self.files[0].path)


def owner(path: str) -> str:
    """Return the address or the run id that a file of the store belongs to."""
    parts = path.split("/")
    return parts[1] if parts[0] == "runs" and len(parts) > 1 else "/".join(parts[1:3])


def is_live(run: StoredRun, now: datetime, grace: timedelta) -> bool:
    """Whether a run may still be under way: it has not ended, and was heard of not too long ago."""
    return run.state == "running" and now - run.beat < max(grace, SILENCE)


def keeps(run: StoredRun, now: datetime, grace: timedelta) -> bool:
    """Whether what a run refers to is to stay. What has no result is kept for a while: to go on with."""
    return run.state in ("done", "unreadable") or is_live(run, now, grace) or now - run.beat < grace


def pins(
    runs: Iterable[StoredRun],
    parents: Mapping[str, Iterable[str]],
    now: datetime,
    grace: timedelta,
    registered: Registered,
) -> Pins:
    """Return what must stay. Raises StoreError if that cannot be known."""
    roots, live = set(registered.addresses), set()
    for run in runs:
        if run.state == "unreadable":
            raise StoreError(
                f"what run {run.run_id} needs is not known ({run.problem}), so nothing may be deleted; mend it, or "
                f"give it up with: btm store rm {run.run_id} --delete"
            )
        if keeps(run, now, grace) or run.run_id in registered.runs:
            roots |= run.refers
        if is_live(run, now, grace):
            live |= {run.run_id, *run.refers}
    return Pins(frozenset(reachable(roots, parents)), frozenset(live))


def garbage(inventory: Inventory, grace: timedelta, registered: Registered) -> list[Garbage]:
    """Return what may go. Raises StoreError if it cannot be known what must stay."""
    pinned = pins(inventory.runs.values(), inventory.parents, inventory.now, grace, registered)
    for address in sorted(pinned.addresses & inventory.artifacts.keys()):
        artifact = inventory.artifacts[address]
        if artifact.manifest is None and artifact.has_manifest:
            raise StoreError(
                f"artifact {address} is needed, and {artifact.problem}: what it was made from is not known, so nothing "
                f"may be deleted; mark it as damaged with: btm store verify {address} --mark"
            )
    found = [
        *(_of_artifact(artifact, inventory, pinned) for artifact in inventory.artifacts.values()),
        *(_of_partial(address, files, inventory) for address, files in inventory.partial.items()),
        *(_of_run(run, inventory, grace, registered) for run in inventory.runs.values()),
        *(_of_temporary(fact) for fact in inventory.temporary),
        *(Garbage("upload", u.path, "an upload that was not ended", u.modified, (), u) for u in inventory.uploads),
    ]
    old = [item for item in found if item is not None and inventory.now - item.modified >= grace]
    return [item for item in old if not pinned.keep(item)]


def _of_artifact(artifact: StoredArtifact, inventory: Inventory, pinned: Pins) -> Garbage | None:
    """Return an artifact that nobody needs; of others the files that their manifest does not name."""
    if artifact.address in pinned.addresses:
        if not artifact.surplus:
            return None
        newest = max(fact.modified for fact in artifact.surplus)
        return Garbage("surplus", artifact.address, "files that its manifest does not name", newest, artifact.surplus)
    manifest = [fact for fact in artifact.files if name_of(fact) == MANIFEST]
    files = (*manifest, *(fact for fact in artifact.files if name_of(fact) != MANIFEST))
    if not manifest:
        return Garbage("half", artifact.address, "it has no manifest", artifact.modified, files)
    users = inventory.users.get(artifact.address, ())
    reason = f"only runs without a result refer to it: {', '.join(users)}" if users else "no run refers to it"
    return Garbage("artifact", artifact.address, reason, artifact.modified, files)


def _of_partial(address: str, files: tuple[FileFact, ...], inventory: Inventory) -> Garbage:
    done = address in inventory.artifacts and inventory.artifacts[address].problem is None
    reason = "its stage has ended" if done else "its stage was not gone on with"
    return Garbage("partial", address, reason, max(fact.modified for fact in files), files)


def _of_run(run: StoredRun, inventory: Inventory, grace: timedelta, registered: Registered) -> Garbage | None:
    if keeps(run, inventory.now, grace) or run.run_id in registered.runs:
        return None
    reasons = {
        "running": "it died, and left no result",
        "failed": "it failed, and left no result",
        "stopped": "it was stopped, and left no result",
        "empty": "it holds no record of a run",
    }
    return Garbage("run", run.run_id, reasons[run.state], run.modified, run.files)


def _of_temporary(fact: FileFact) -> Garbage:
    return Garbage("temporary", fact.path, "its writer left it behind", fact.modified, (fact,))

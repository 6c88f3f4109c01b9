"""Reading everything: does each artifact hold what its manifest says?"""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from btm_core.storage import Store
from tasks.housekeeping.inventory import Inventory, beside

__all__ = ["Finding", "Verdict", "verify"]

READERS = 8
TELL_SECONDS = 2.0


@dataclass(frozen=True)
class Finding:
    """What is wrong with an artifact, in words."""

    address: str
    problems: list[str]
    runs: list[str]
    """Runs that refer to it."""
    absent: bool = False
    """Whether it counts as absent by now: the next run that needs it makes it again."""


@dataclass(frozen=True)
class Verdict:
    """`damaged` is what is wrong; `leftovers` are paths of what is no part of any artifact, which harms nobody."""

    damaged: list[Finding]
    leftovers: list[str]
    artifacts: int
    bytes: int
    seconds: float


def verify(
    store: Store,
    inventory: Inventory,
    addresses: Collection[str] | None = None,
    *,
    mark: bool = False,
    tell: Callable[[int, int, int, float], None] = lambda artifacts, of, count, seconds: None,
) -> Verdict:
    """Read all artifacts, or those at `addresses`, several at a time; each file streams through.

    `tell` is called every few seconds with artifacts done, how many there are, bytes read and seconds passed. With
    `mark`, what is damaged is marked as such.
    """
    chosen = set(inventory.artifacts if addresses is None else addresses)
    whole = sorted(
        address for address in chosen & inventory.artifacts.keys() if inventory.artifacts[address].has_manifest
    )
    began = told = time.monotonic()
    lock, done, count = threading.Lock(), 0, 0

    def note(size: int, artifacts: int = 0) -> None:
        nonlocal told, done, count
        with lock:
            done += artifacts
            count += size
            now = time.monotonic()
            if now - told < TELL_SECONDS:
                return
            told = now
        tell(done, len(whole), count, now - began)

    def check(address: str) -> list[str]:
        problems = store.check(address, note, mark=mark)
        note(0, 1)
        return problems

    found = {
        address: problems for address, problems in zip(whole, beside(check, whole, READERS), strict=True) if problems
    }
    made = {address for run in inventory.runs.values() if run.state == "done" for address in run.artifacts}
    for address in (chosen | (made if addresses is None else set())) & made - set(whole):
        found[address] = ["it has no manifest" if address in inventory.artifacts else "it is gone"]
    damaged = [
        Finding(address, problems, inventory.users.get(address, []), mark or _is_absent(inventory, address))
        for address, problems in sorted(found.items())
    ]
    return Verdict(damaged, _leftovers(inventory, chosen, made), len(whole), count, time.monotonic() - began)


def _is_absent(inventory: Inventory, address: str) -> bool:
    """Whether a run that looks for what is not whole finds nothing: it is gone, marked, or its listing shows it."""
    artifact = inventory.artifacts.get(address)
    return artifact is None or artifact.problem is not None


def _leftovers(inventory: Inventory, chosen: Collection[str], made: Collection[str]) -> list[str]:
    """Return the paths of files that no manifest names, in the folders of the chosen artifacts."""
    paths = [fact.path for fact in inventory.temporary if "/".join(fact.path.split("/")[1:3]) in chosen]
    for address in sorted(chosen & inventory.artifacts.keys()):
        artifact = inventory.artifacts[address]
        half = not artifact.has_manifest and address not in made
        paths += [fact.path for fact in (artifact.files if half else artifact.surplus)]
    return paths

"""What a run will do: Algorithm 1 walked from end to end, each step looked up in the store and none of them done.

`flows.btm.everything` is what is walked, the same as a run executes; a step whose artifact is not there is answered by
a placeholder. What follows a placeholder cannot be in the store: its address is made of its parents' digests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from btm_core.config import ExperimentConfig
from btm_core.data.catalog import Catalog
from btm_core.storage import Artifact, Store
from flows.btm import everything
from flows.work import standing_in
from tasks.data import PrepareData, prepare_data, unread_images
from tasks.housekeeping.inventory import beside
from tasks.past import epochs_done
from tasks.settings import RuntimeSettings
from tasks.step import Step

__all__ = ["Planned", "Walk", "walk"]

READ_BYTES = 256e6
"""Image files that were never read here are read for a plan if they are no more than that: a second or two."""
NOT_READ = "not read"


@dataclass(frozen=True)
class Planned:
    """A step of the run.

    - turn: steps of one turn are asked for beside each other, and all end before the next turn.
    - pack: within a turn, steps of one pack are one worker's.
    - state: found (in the store), to do, or unknown: what the images hold is not known, and all depends on that.
    - epochs_done: after which epoch it goes on, if its state was saved.
    """

    step: Step
    turn: int
    pack: int
    state: str
    epochs_done: int = 0


@dataclass
class Walk:
    """What was asked for on the way, in order, and which files would have to be read first to know more."""

    planned: list[Planned] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    """Image files whose content is not known, and their sizes in bytes."""

    def steps(self, stage: str) -> list[Planned]:
        """Return those of a stage."""
        return [one for one in self.planned if one.step.stage == stage]


def walk(experiment: ExperimentConfig, settings: RuntimeSettings, catalog: Catalog) -> Walk:
    """Walk all of a run without doing any of it; `catalog` is what a scan found of the data."""
    unread = unread_images(catalog, settings.cache)
    elsewhere = "://" in (catalog.root or "")
    too_much = bool(unread) and (elsewhere or sum(unread.values()) > READ_BYTES)
    if too_much:
        prepare = _not_read(experiment)
    else:
        prepare = prepare_data(experiment.name, experiment.data, settings.cache, catalog, keep=False)
    store = Store(settings.store_url)
    unknown = too_much and any(True for _ in store.walk("artifacts", "data"))  # where there are no data, all is to do
    lookup = _Lookup(store, "unknown" if unknown else "to do")
    with standing_in(lookup):
        everything(experiment, settings, prepare)
    return Walk(lookup.planned, unread if unknown else {})


def _not_read(experiment: ExperimentConfig) -> PrepareData:
    """Return a step in place of the one that cannot be known before the images are read."""
    data = experiment.data
    size = data.input.size if data.input.decode_once else None
    return PrepareData(
        name=experiment.name, source=data, content=NOT_READ, hashes={}, size=size, channels=data.input.channels
    )


class _Lookup:
    """Answers steps from the store, or with placeholders; notes all that was asked."""

    def __init__(self, store: Store, absent: str):
        self.planned: list[Planned] = []
        self._store, self._absent = store, absent
        self._made_up: set[str] = set()
        self._turns = 0

    def __call__(self, packs: Sequence[Sequence[Step]]) -> list[list[Artifact]]:
        answers = beside(self._answer, [step for pack in packs for step in pack])
        rest = iter(answers)
        artifacts = []
        for number, pack in enumerate(packs):
            own = [next(rest) for _ in pack]
            artifacts.append([artifact for artifact, _, _ in own])
            for step, (artifact, found, done) in zip(pack, own, strict=True):
                self._made_up |= set() if found else {artifact.address}
                state = "found" if found else self._absent
                self.planned.append(Planned(step, self._turns, number, state, done))
        self._turns += 1
        return artifacts

    def _answer(self, step: Step) -> tuple[Artifact, bool, int]:
        """Return the artifact, whether it is a real one, and how many epochs of it are done."""
        address, done = step.address, 0
        known = not self._made_up & set(step.parents().values())
        if known and not (isinstance(step, PrepareData) and step.content == NOT_READ):
            if (found := self._store.find(address)) is not None:
                return found, True, 0
            done = epochs_done(self._store, address) if step.in_worker else 0
        return Artifact(stage=step.stage, address=address, digest=f"to be made: {address}"), False, done

"""What a running step has: folders, the store, a device, someone who listens; and how it trains there."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btm_core.errors import StoreUnavailableError
from btm_core.storage import Artifact, Store, fetch_file
from tasks.saved_states import STATES, read_state, saved_states, write_state

if TYPE_CHECKING:
    import torch

    from btm_core.data.pixel_store import PixelStore
    from btm_core.training import EpochRecord, Trainer

__all__ = ["RECORDS", "SAVE_SECONDS", "Emit", "Workspace", "train_together"]

log = logging.getLogger(__name__)

RECORDS = "records.jsonl"
SAVE_SECONDS = 30.0
"""Longest wait of a training for a store that is away, to keep a checkpoint."""
Emit = Callable[[dict[str, Any]], None]


@dataclass
class Workspace:
    """What a running step has: the store, folders to write to, a device, and someone who listens.

    - processes: how many train together; `rank` is which of them this is. Only rank 0 writes.
    - pixels: where decoded images are kept.
    - compiled: whether long trainings are to be compiled.
    - sharers: workers that use the device, this one among them.
    - pack: how many trainings this worker was given to do at once, this one among them.
    """

    store: Store
    address: str
    output: Path
    scratch: Path
    emit: Emit
    device_name: str = "cpu"
    checkpoint_seconds: float = 10.0
    processes: int = 1
    rank: int = 0
    pixels: "PixelStore | None" = None
    compiled: bool = False
    sharers: int = 1
    pack: int = 1
    records: list[dict[str, Any]] = field(default_factory=list)
    _kept: str = field(default=STATES[-1], init=False)
    """The saved state to go on from, which the next one leaves alone."""

    @property
    def device(self) -> "torch.device":
        """The device to compute on."""
        import torch

        if self.device_name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device_name)

    def fetch(self, artifact: Artifact, name: str) -> Path:
        """Return a verified local copy of an artifact's file."""
        return self.store.fetch(artifact, name, self.scratch)

    def train(self, trainer: "Trainer") -> None:
        """Run a trainer to its end: go on from a saved state, report each epoch, save the state now and then."""
        self.restore(trainer)
        _run([self], [trainer], ([record] for record in trainer))

    def members_that_fit(self, trainer: "Trainer") -> int:
        """Return how many networks like a trainer's may train at once in half of a worker's part of free memory."""
        import torch

        from btm_core.packing import training_bytes
        from tasks.system import available_memory

        on_gpu = self.device.type == "cuda"
        free = torch.cuda.mem_get_info(self.device)[0] if on_gpu else available_memory()
        return max(1, free // self.sharers // 2 // training_bytes(trainer))

    def report(self, record: "EpochRecord") -> None:
        """Note what an epoch did, and tell of it."""
        self.records.append(record.to_json())
        self.emit({"event": "epoch", **record.to_json()})

    def write_records(self) -> None:
        """Write down what every epoch did."""
        lines = [json.dumps(record) for record in self.records]
        (self.output / RECORDS).write_text("\n".join(lines) + "\n")

    def save(self, trainer: "Trainer") -> None:
        """Keep a trainer's state in the store, to go on from."""
        path = self.scratch / "state.safetensors"
        write_state(trainer.state_dict(), self.records, path)
        [name] = set(STATES) - {self._kept}
        try:
            self.store.within(SAVE_SECONDS).put(path, "partial", self.address, name)
        except StoreUnavailableError as error:  # it may be back for the next one, and training goes on
            log.warning("no checkpoint of %s was kept at epoch %d: %s", self.address, trainer.epoch, error)
        else:
            self._kept = name

    def restore(self, trainer: "Trainer") -> None:
        """Put a trainer where its newest usable state is, if there is one."""
        for _, name in saved_states(self.store, self.address):
            where, copy = self.store.locate("partial", self.address, name), self.scratch / name
            try:
                fetch_file(where, copy)
                state, records = read_state(copy)
                trainer.load_state_dict(state)
            except (FileNotFoundError, ValueError) as error:  # a GPU without room is not the state's fault
                log.warning("%s is unusable (%s); going on from an earlier state, or starting anew", where, error)
                continue
            self.records, self._kept = records, name
            self.emit({"event": "resumed", "epoch": trainer.epoch, "epochs": trainer.config.epochs})
            return


@dataclass
class Pace:
    """When the next state is to be saved, in seconds of one clock.

    That is after `seconds`, or nine times as long as the last one took: so large states on a slow store take a tenth of
    the time at most. With `seconds` 0 it is after every epoch.
    """

    seconds: float
    last: float
    took: float = 0.0

    def due(self, now: float) -> bool:
        """Return whether it is time."""
        return now - self.last >= max(self.seconds, 9 * self.took) or self.seconds == 0

    def saved(self, begin: float, end: float) -> None:
        """Note that a state was saved."""
        self.last, self.took = end, end - begin


def _run(works: Sequence[Workspace], trainers: "Sequence[Trainer]", epochs: "Iterable[Sequence[EpochRecord]]") -> None:
    """Go through the epochs of trainers that train together: report each, and save their states now and then."""
    pace = Pace(works[0].checkpoint_seconds, time.monotonic())
    for records in epochs:
        for work, record in zip(works, records, strict=True):
            work.report(record)
        begin = time.monotonic()
        if works[0].rank == 0 and records[0].epoch < records[0].epochs and pace.due(begin):
            for work, trainer in zip(works, trainers, strict=True):
                work.save(trainer)
            pace.saved(begin, time.monotonic())
    if works[0].rank == 0:
        for work in works:
            work.write_records()


def train_together(works: Sequence[Workspace], trainers: "Sequence[Trainer]") -> Iterator[int]:
    """Run trainers to their ends, in packs where they can be packed; yield the numbers of those that have ended.

    Each has a workspace and saved states of its own, so what was begun in a pack may go on alone, and the other way
    round.
    """
    from btm_core.packing import PackTrainer, can_pack

    for work, trainer in zip(works, trainers, strict=True):
        work.pack = len(works)
        work.restore(trainer)
    numbers = sorted(range(len(trainers)), key=lambda number: trainers[number].epoch)
    for _, group in groupby(numbers, key=lambda number: trainers[number].epoch):
        alike = list(group)
        size = works[0].members_that_fit(trainers[alike[0]]) if len(alike) > 1 else 1
        for start in range(0, len(alike), size):
            chosen = alike[start : start + size]
            pack, own = [trainers[number] for number in chosen], [works[number] for number in chosen]
            if len(pack) > 1 and can_pack(pack):
                _run(own, pack, PackTrainer(pack))
                yield from chosen
                continue
            for number in chosen:
                _run([works[number]], [trainers[number]], ([record] for record in trainers[number]))
                yield number

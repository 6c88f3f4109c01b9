"""A step: a frozen description of work, whose identity is its address in the store."""

import json
import logging
import os
import platform
import sys
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from btm_core.config import Section, canonical_digest
from btm_core.errors import StoreError, StoreUnavailableError
from btm_core.storage import Artifact, Store

if TYPE_CHECKING:
    import torch

    from btm_core.training import EpochRecord, Trainer

__all__ = ["RECORDS", "Emit", "Step", "Workspace", "perform"]

log = logging.getLogger(__name__)

RECORDS = "records.jsonl"
STATE = "state.safetensors"
SAVE_SECONDS = 30.0
"""Longest wait of a training for a store that is away, to keep a checkpoint."""
Emit = Callable[[dict[str, Any]], None]


class Step(Section):
    """What to compute. Fields are configuration (hashed), artifacts (hashed by digest), or marked NOT_IDENTITY.

    Only `btm_core.storage` and the standard library are imported with a step, so that a flow that finds everything
    done never imports torch; `run` imports what it computes with.
    """

    stage: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when the same fields come to mean another result."""
    in_worker: ClassVar[bool] = True
    """Whether it runs in a process of its own."""
    runs_beside_others: ClassVar[bool] = False
    """Whether several of its kind run at once, each with few threads."""
    on_several_gpus: ClassVar[bool] = False
    """Whether it can use `pretrain_gpus` GPUs, one a process."""

    @property
    @abstractmethod
    def readable(self) -> str:
        """The part of the address that people read."""

    @abstractmethod
    def run(self, work: "Workspace") -> None:
        """Read inputs, compute, and write the artifact's files to `work.output`."""

    def identity(self) -> dict[str, Any]:
        """Return the values that determine the result: sections, and digests of artifacts."""
        values = super().identity()
        for name, value in values.items():
            if isinstance(value, Artifact):
                values[name] = value.digest
            elif isinstance(value, tuple) and value and isinstance(value[0], Artifact):
                values[name] = [artifact.digest for artifact in value]
        return {"stage": self.stage, "version": self.version, **values}

    def parents(self) -> dict[str, str]:
        """Return the addresses of the artifacts this step reads, by role."""
        found = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Artifact):
                found[name] = value.address
            elif isinstance(value, tuple):
                found |= {f"{name}[{i}]": item.address for i, item in enumerate(value) if isinstance(item, Artifact)}
        return found

    @property
    def address(self) -> str:
        """`<stage>/<readable>-<hash>`: equal work has an equal address on any machine."""
        return f"{self.stage}/{self.readable}-{canonical_digest(self.identity())[:16]}"


@dataclass
class Workspace:
    """What a running step has: the store, folders to write to, a device, and someone who listens.

    - processes: how many train together; `rank` is which of them this is. Only rank 0 writes.
    """

    store: Store
    address: str
    output: Path
    scratch: Path
    emit: Emit
    device_name: str = "cpu"
    checkpoint_seconds: float = 30.0
    processes: int = 1
    rank: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)

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
        self._restore(trainer)
        saved = time.monotonic()
        for record in trainer:
            self._report(record)
            due = time.monotonic() - saved >= self.checkpoint_seconds and record.epoch < record.epochs
            if due and self.rank == 0:
                self._save(trainer)
                saved = time.monotonic()
        if self.rank != 0:
            return
        lines = [json.dumps(record) for record in self.records]
        (self.output / RECORDS).write_text("\n".join(lines) + "\n")

    def _report(self, record: "EpochRecord") -> None:
        self.records.append(record.to_json())
        self.emit({"event": "epoch", **record.to_json()})

    @property
    def _state_path(self) -> tuple[str, ...]:
        return ("partial", self.address, STATE)

    def _save(self, trainer: "Trainer") -> None:
        from btm_core.checkpoints import save_tensors

        path = self.scratch / STATE
        save_tensors(trainer.state_dict(), path, {"records": json.dumps(self.records)})
        try:
            self.store.within(SAVE_SECONDS).put(path, *self._state_path)
        except StoreUnavailableError as error:  # it may be back for the next one, and training goes on
            log.warning("no checkpoint of %s was kept at epoch %d: %s", self.address, trainer.epoch, error)

    def _restore(self, trainer: "Trainer") -> None:
        from btm_core.errors import CheckpointError
        from btm_core.tensor_files import load_tensors, read_header

        data = self.store.read(*self._state_path)
        if data is None:
            return
        path = self.scratch / STATE
        path.write_bytes(data)
        try:
            with path.open("rb") as file:
                records = json.loads(read_header(file, str(path)).metadata["records"])
            trainer.load_state_dict(load_tensors(path))
        except (CheckpointError, KeyError, ValueError, RuntimeError) as error:
            log.warning("the saved state of %s is unusable (%s); starting this stage anew", self.address, error)
            return
        self.records = records
        self.emit({"event": "resumed", "epoch": trainer.epoch, "epochs": trainer.config.epochs})


def perform(
    step: Step, store: Store, emit: Emit, device: str = "cpu", checkpoint_seconds: float = 30.0, processes: int = 1
) -> Artifact:
    """Run a step here and now, and publish its artifact."""
    store = store.telling(lambda transfer: emit({"event": "transfer", **asdict(transfer)}))
    with tempfile.TemporaryDirectory(prefix="btm-") as folder:
        work = Workspace(
            store=store,
            address=step.address,
            output=Path(folder, "output"),
            scratch=Path(folder, "scratch"),
            emit=emit,
            device_name=device,
            checkpoint_seconds=checkpoint_seconds,
            processes=processes,
        )
        work.output.mkdir()
        work.scratch.mkdir()
        step.run(work)
        artifact = store.publish(
            step.address,
            work.output,
            config=step.identity(),
            parents=step.parents(),
            versions=versions(),
            host={**host_facts(), "processes": processes},
            logs=(RECORDS,),
        )
    with suppress(StoreError):  # it is made; `btm store gc` clears away what is left
        store.within(SAVE_SECONDS).remove("partial", step.address)
    return artifact


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {name: version(name) for name in ("btm", "torch", "torchvision", "numpy", "pillow", "safetensors")}


def host_facts() -> dict[str, Any]:
    """Return facts on this machine that help to understand a result; no names, no addresses."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None,
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }

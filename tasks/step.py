"""A step: a frozen description of work, whose identity is its address in the store."""

import os
import platform
import sys
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from btm_core.config import Section, canonical_digest
from btm_core.errors import StoreError
from btm_core.storage import Artifact, Store
from tasks.workspace import RECORDS, SAVE_SECONDS, Emit, Workspace

if TYPE_CHECKING:
    from btm_core.data.pixel_store import PixelStore

__all__ = ["Step", "perform", "perform_together"]


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
    done_together: ClassVar[bool] = False
    """Whether those of one order are done at once, by `run_together`, or in turn."""

    @property
    @abstractmethod
    def readable(self) -> str:
        """The part of the address that people read."""

    @abstractmethod
    def run(self, work: Workspace) -> None:
        """Read inputs, compute, and write the artifact's files to `work.output`."""

    @classmethod
    def run_together(cls, steps: Sequence[Self], works: Sequence[Workspace]) -> Iterator[int]:
        """Do what `run` does for several steps of a kind, each in its workspace; yield the number of each that is done.

        It is published before the next are begun.
        """
        for number, (step, work) in enumerate(zip(steps, works, strict=True)):
            step.run(work)
            yield number

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


def perform(step: Step, store: Store, emit: Emit, **options: Any) -> Artifact:
    """Run a step here and now, and publish its artifact; options are those of `perform_together`."""
    [artifact] = perform_together([step], store, lambda address, event: emit(event), **options)
    return artifact


def perform_together(
    steps: Sequence[Step],
    store: Store,
    emit: Callable[[str, dict[str, Any]], None],
    *,
    device_name: str = "cpu",
    checkpoint_seconds: float = 10.0,
    processes: int = 1,
    pixels: "PixelStore | None" = None,
    compiled: bool = False,
    sharers: int = 1,
) -> Iterator[Artifact]:
    """Run steps of one kind here and now, at once; yield each one's artifact when it is published.

    `emit` hears news, and whose they are.
    """
    with tempfile.TemporaryDirectory(prefix="btm-") as folder:

        def workspace(number: int, step: Step) -> Workspace:
            tell = partial(emit, step.address)
            output, scratch = Path(folder, f"output-{number}"), Path(folder, f"scratch-{number}")
            output.mkdir()
            scratch.mkdir()
            return Workspace(
                store=store.telling(lambda transfer: tell({"event": "transfer", **asdict(transfer)})),
                address=step.address,
                output=output,
                scratch=scratch,
                emit=tell,
                device_name=device_name,
                checkpoint_seconds=checkpoint_seconds,
                processes=processes,
                pixels=pixels,
                compiled=compiled,
                sharers=sharers,
            )

        works = [workspace(number, step) for number, step in enumerate(steps)]
        started = time.monotonic()
        for number in type(steps[0]).run_together(steps, works):
            yield _publish(steps[number], works[number], time.monotonic() - started)
            started = time.monotonic()


def _publish(step: Step, work: Workspace, seconds: float) -> Artifact:
    """Publish what a step made. `seconds` are those since the one before it: of steps that are done at once, the first
    has nearly all, and only their sum means anything.
    """
    artifact = work.store.publish(
        step.address,
        work.output,
        config=step.identity(),
        parents=step.parents(),
        versions=versions(),
        host={**host_facts(), "processes": work.processes, "pack": work.pack, "seconds": round(seconds, 3)},
        logs=(RECORDS,),
    )
    with suppress(StoreError):  # it is made; `btm store gc` clears away what is left
        work.store.within(SAVE_SECONDS).remove("partial", step.address)
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
        "gpu_name": _gpu_name(),
    }


def _gpu_name() -> str | None:
    """Return the kind of GPU that this process uses, if it uses one."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_initialized() else None

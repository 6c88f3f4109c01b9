"""Executing steps: take what is in the store, and do the rest, each in a process of its own.

The local engine: one worker process an order, its GPU through CUDA_VISIBLE_DEVICES, its threads fixed (they decide the
last bits of a result on the CPU), a deadline on the process, its last words in the error.
"""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from btm_core import errors
from btm_core.errors import BTMError
from btm_core.storage import Artifact, Store
from tasks.events import publish
from tasks.settings import RuntimeSettings
from tasks.step import Step, perform

__all__ = ["DeadlineError", "WorkerDiedError", "WorkerError", "execute"]

log = logging.getLogger(__name__)


class WorkerError(RuntimeError):
    """A worker process ended without finishing its work; running it again goes on from its last checkpoint."""


class WorkerDiedError(WorkerError):
    """The worker died of something that may not happen again."""


class DeadlineError(WorkerError):
    """The worker took longer than it may."""


def execute(steps: Sequence[Step], settings: RuntimeSettings) -> list[Artifact]:
    """Return the artifacts of `steps`, all of one kind; those not in the store are made, in one worker process."""
    store = Store(settings.store_url)
    found = {step.address: store.find(step.address) for step in steps}
    todo = [step for step in steps if found[step.address] is None]
    for step in steps:
        publish({"event": "cached" if found[step.address] else "started", "step": step.address, "stage": step.stage})
    if todo and todo[0].in_worker:
        found |= _in_process(todo, settings)
    else:
        for step in todo:
            found[step.address] = perform(step, store, publish)
            publish({"event": "done", "step": step.address, "stage": step.stage})
    artifacts = [found[step.address] for step in steps]
    return [artifact for artifact in artifacts if artifact is not None]


def _in_process(steps: Sequence[Step], settings: RuntimeSettings) -> dict[str, Artifact | None]:
    free = _slots(settings)
    slot = free.get()
    try:
        return _run_worker(steps, settings, slot)
    finally:
        free.put(slot)


_slots_lock = threading.Lock()
_slots_of: dict[RuntimeSettings, "queue.Queue[str | None]"] = {}


def _slots(settings: RuntimeSettings) -> "queue.Queue[str | None]":
    """Return the one queue of free slots of a run, whichever thread asks first."""
    with _slots_lock:
        if settings not in _slots_of:
            slots = _slots_of[settings] = queue.Queue()
            for slot in settings.slots():
                slots.put(slot)
        return _slots_of[settings]


def _run_worker(steps: Sequence[Step], settings: RuntimeSettings, gpu: str | None) -> dict[str, Artifact | None]:
    threads = settings.finetune_threads if steps[0].runs_beside_others else settings.threads
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what torch asks for to be deterministic on CUDA
    environment["CUDA_VISIBLE_DEVICES"] = "" if gpu is None else gpu
    # The worker runs the code that this process runs, and never a tasks.py of the folder it is started in (-P).
    here = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    order = {
        "steps": [step.model_dump(mode="json") for step in steps],
        "store": settings.store_url,
        "device": settings.device if gpu is not None or settings.device == "cuda" else "cpu",
        "threads": threads,
        "checkpoint_seconds": settings.checkpoint_seconds,
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tasks.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin and process.stdout and process.stderr
    last_words: deque[str] = deque(maxlen=20)
    reader = threading.Thread(target=_drain, args=(process.stderr, last_words, steps[0].address), daemon=True)
    reader.start()
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        process.kill()

    deadline = threading.Timer(settings.deadline_hours * 3600, stop)
    deadline.daemon = True
    deadline.start()
    results: dict[str, Artifact | None] = {}
    refusal: BTMError | None = None
    try:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "done":
                results[event["step"]] = Artifact.model_validate(event["artifact"])
            elif event["event"] == "error":
                refusal = _as_error(event)
                continue
            publish({**event, "stage": steps[0].stage})
        code = process.wait()
    finally:
        deadline.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            pipe.close()
        reader.join()
    if refusal is not None:
        raise refusal
    if code != 0:
        how = f"was killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if expired.is_set():
            how = f"passed its deadline of {settings.deadline_hours:g} h and was stopped"
        words = "".join(f"\n  {word}" for word in last_words)
        kind = DeadlineError if expired.is_set() else WorkerDiedError
        raise kind(f"the worker of {steps[0].address} {how}; its last words:{words or ' none'}")
    return results


def _as_error(event: dict[str, Any]) -> BTMError:
    kind = getattr(errors, event["type"], BTMError)
    error: BTMError = kind(event["message"])
    return error


def _drain(pipe: IO[str], last_words: "deque[str]", address: str) -> None:
    with pipe:
        for line in pipe:
            last_words.append(line.rstrip())
            log.debug("%s: %s", address, line.rstrip())

"""Worker processes: one a slot, warm, each an OS process of its own that may die alone and is then replaced.

An order goes in as one line of JSON, events come out as lines of JSON. A worker imports torch once, and then takes one
order after another. It ends when its standard input closes: whatever becomes of this process, no orphan holds a GPU.

`pebble.ProcessPool` was tried (5.2): it replaces a killed process and stops a late one, but its processes outlive a
killed parent, cannot be tied to a GPU, and tell nothing before they end.
"""

import contextlib
import json
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from btm_core import errors
from btm_core.errors import BTMError
from tasks.engines.orders import steps_to_json
from tasks.events import Event
from tasks.outage import raise_if_unusable
from tasks.settings import RuntimeSettings
from tasks.step import Step
from tasks.stopping import on_stop, stopping

__all__ = ["DeadlineError", "Worker", "WorkerDiedError", "WorkerError", "run_in_pool", "warm"]

output = logging.getLogger("tasks.engines.output")
"""What workers print. Prefect shows it in the run's logs."""


SCRATCH = "btm-worker-"
READER_SECONDS = 5.0
"""Longest wait for a dead worker's last words: whoever left its process group may hold the pipe."""


class WorkerError(RuntimeError):
    """A worker ended without finishing its work; running it again goes on from its last checkpoint."""


class WorkerDiedError(WorkerError):
    """The worker died of something that may not happen again."""


class DeadlineError(WorkerError):
    """The worker took longer than it may."""


class Worker:
    """A worker process on one slot, started when there is an order and it is not running."""

    def __init__(self, gpu: str | None):
        self.gpu = gpu
        self._process: subprocess.Popen[str] | None = None
        self._words: deque[str] = deque(maxlen=20)
        self._unread: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None
        self._scratch: str | None = None

    def run(self, order: dict[str, Any], what: str, deadline_seconds: float) -> Iterator[Event]:
        """Yield the events of an order. `what` names it in errors.

        Raises the BTMError that the worker reports; DeadlineError; WorkerDiedError with the worker's last words.
        """
        process = self.ready()
        assert process.stdin and process.stdout
        self._words.clear()
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _kill(process)

        deadline = threading.Timer(deadline_seconds, expire)
        deadline.daemon = True
        deadline.start()
        refusal: BTMError | None = None
        try:
            _write_line(process.stdin, json.dumps(order))
            for line in process.stdout:
                self._log_output()
                event = json.loads(line)
                if event["event"] == "idle":
                    break
                if event["event"] == "error":
                    refusal = _as_error(event)
                else:
                    yield event
            else:
                raise self._obituary(process, what, deadline_seconds if expired.is_set() else None)
        except BaseException:  # nobody will read what else it says
            self.kill()
            raise
        finally:
            deadline.cancel()
        if refusal is not None:
            raise refusal

    def stop(self) -> None:
        """Kill the process, from another thread than that which runs the order."""
        process, scratch = self._process, self._scratch
        if process is not None:
            _kill(process)
            process.wait()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)

    def kill(self) -> None:
        """Kill the process, if it runs, and forget it."""
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        process.wait()
        if self._reader is not None:
            self._reader.join(READER_SECONDS)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close(pipe)

    @property
    def pid(self) -> int | None:
        """Process id, None if it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def ready(self) -> "subprocess.Popen[str]":
        """Return its process, started if it does not run."""
        if self.pid is None:
            self.kill()
            self._start()
        assert self._process is not None
        return self._process

    def _start(self) -> None:
        if stopping.is_set():
            raise WorkerError("no worker is started any more: this process is being stopped")
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": self.gpu or ""}
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what torch asks for to be deterministic on CUDA
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = "1"  # each order says how many torch may use
        # Layers' outputs come and go by the megabyte. Given back to the system each time, a fifth of an evaluation on a
        # CPU is the kernel's clearing of pages (docs/log.md, 2026-11-26).
        environment |= {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
        environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # by itself, not by processes that may outlive it
        # The worker runs the code that this process runs, and never a tasks.py of the folder it is started in (-P).
        here = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        # Its temporary files, of which nothing is to be left whoever is killed: see also `tasks.engines.worker`.
        environment["TMPDIR"] = self._scratch = tempfile.mkdtemp(prefix=SCRATCH)
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            process_group=0,  # Ctrl-C is this process's to handle
        )
        assert process.stderr
        self._reader = threading.Thread(target=self._drain, args=(process.stderr,), daemon=True)
        self._reader.start()

    def _drain(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self._words.append(line.rstrip())
                self._unread.put(line.rstrip())

    def _log_output(self) -> None:
        """Log what was printed since; on the thread of the order, under whose run Prefect then files it."""
        while not self._unread.empty():
            output.info("%s", self._unread.get())

    def _obituary(self, process: "subprocess.Popen[str]", what: str, deadline: float | None) -> WorkerError:
        code = process.wait()
        if self._reader is not None:
            self._reader.join(READER_SECONDS)
        self._log_output()
        words = "".join(f"\n  {word}" for word in self._words) or " none"
        if deadline is not None:
            how = f"passed its deadline of {deadline / 3600:g} h and was stopped"
            return DeadlineError(f"the worker of {what} {how}; its last words:{words}")
        how = f"was killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return WorkerDiedError(f"the worker of {what} {how}; its last words:{words}")


_lock = threading.Lock()
_pools: dict[RuntimeSettings, "queue.LifoQueue[Worker]"] = {}


def pool_of(settings: RuntimeSettings) -> "queue.LifoQueue[Worker]":
    """Return the one queue of free workers of a run, whichever thread asks first; the last used, a warm one, on top."""
    with _lock:
        if settings not in _pools:
            pool = _pools[settings] = queue.LifoQueue()
            for gpu in settings.slots():
                pool.put(Worker(gpu))
        return _pools[settings]


def warm(settings: RuntimeSettings) -> None:
    """Start the worker that takes the first order of a run: it imports torch, for seconds, while others do else."""
    free = pool_of(settings)
    worker = free.get()
    try:
        worker.ready()
    finally:
        free.put(worker)  # on top


def run_in_pool(steps: Sequence[Step], settings: RuntimeSettings) -> Iterator[Event]:
    """Yield the events of `steps`, all of one kind, done one after another by the first free worker."""
    threads = settings.finetune_threads if steps[0].runs_beside_others else settings.threads
    processes = settings.pretrain_gpus if steps[0].on_several_gpus else 1
    slots = settings.slots()
    free = pool_of(settings)
    taken = take(free, processes)
    # Which GPUs a process sees is settled when it starts: for several there is a worker of their own.
    worker = taken[0] if len(taken) == 1 else Worker(",".join(part.gpu or "" for part in taken))
    try:
        raise_if_unusable(settings.store_url)  # somebody found out while this one waited
        order = {
            "steps": steps_to_json(steps),
            "store": settings.store_url,
            "device": settings.device if worker.gpu is not None or settings.device == "cuda" else "cpu",
            "threads": threads,
            "checkpoint_seconds": settings.checkpoint_seconds,
            "processes": processes,
            "compiled": settings.compiled,
            "sharers": slots.count(worker.gpu),
            "pixels": (settings.pixels_gb, settings.pixels_disk_gb, len(slots)),
        }
        with on_stop(worker.stop):
            yield from worker.run(order, steps[0].address, settings.deadline_hours * 3600 * len(steps))
    finally:
        if worker not in taken:
            worker.kill()
        for part in taken:
            free.put(part)


_taking = threading.Lock()


def take(free: "queue.LifoQueue[Worker]", processes: int) -> list[Worker]:
    """Wait for workers of so many different GPUs and take them out of the queue; on the CPU, one is enough.

    Several may be of one GPU. One taker at a time: two that each hold a part would wait for each other.
    """
    with _taking:
        taken = [free.get()]
        spare: list[Worker] = []
        while taken[0].gpu is not None and len(taken) < processes:
            worker = free.get()
            (spare if worker.gpu in {other.gpu for other in taken} else taken).append(worker)
        for worker in spare:
            free.put(worker)
    return taken


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kill a worker with what it started: a child would hold its pipes open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _write_line(pipe: IO[str], line: str) -> None:
    """Write a line to a worker; one that has just died is noticed when its events end."""
    with contextlib.suppress(BrokenPipeError):
        pipe.write(line + "\n")
        pipe.flush()


def _close(pipe: IO[str]) -> None:
    with contextlib.suppress(BrokenPipeError):  # it holds an order that nobody takes any more
        pipe.close()


def _as_error(event: Event) -> BTMError:
    kind = getattr(errors, event["type"], BTMError)
    error: BTMError = kind(event["message"])
    return error

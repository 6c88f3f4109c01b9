"""What engines on other machines share: the far end does the work, the near end follows it through the store.

The far end is the local engine over there: one worker process, with its retries and its deadline. It writes down each
epoch in `partial/<address>/progress.json`. The near end asks the cluster how things stand, reads what was written, and
takes an artifact in the store for what it is: done, whatever the cluster says.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from btm_core import errors
from btm_core.errors import BTMError, StoreError
from btm_core.storage import Store
from tasks.engines.orders import steps_from_json, steps_to_json
from tasks.engines.pool import DeadlineError, WorkerDiedError, WorkerError
from tasks.events import Event, listening
from tasks.execution import execute
from tasks.settings import RuntimeSettings
from tasks.step import Step
from tasks.workspace import RECORDS

__all__ = ["FAILURES", "Job", "Outcome", "RemoteOrder", "carry_out", "follow", "remote_order", "settings_here"]

log = logging.getLogger(__name__)

PROGRESS, HEARTBEAT = "progress.json", "heartbeat"
WRITE_SECONDS, BEAT_SECONDS = 2.0, 10.0
BRIEF_SECONDS = 10.0
"""Longest wait for a store that is away, where the next news will do."""
GRACE_SECONDS = 600.0
"""What a far end has beyond its own deadlines, to say itself how it ended."""
SETTINGS = (
    *("store", "device", "gpu_share", "pretrain_gpus", "threads", "finetune_threads"),
    *("checkpoint_seconds", "deadline_hours", "retries", "pixels_gb", "pixels_disk_gb", "compiled"),
)
"""What the far end is told; where its own things lie, and which GPUs it has, is its own affair."""


class RemoteOrder(BaseModel):
    """Steps, and how to do them, as JSON."""

    model_config = ConfigDict(frozen=True)

    first: str
    """Address of the first step, to call it by."""
    steps: list[dict[str, Any]]
    settings: dict[str, Any]
    token: str
    """Names this order: the far end's heartbeat carries it."""

    def has_begun(self, store: Store) -> bool:
        """Whether a far end is at work on this very order."""
        return _heartbeat(store, self.first).startswith(self.token)


FAILURES = ("Refused", "DeadlinePassed", "WorkerDied")


class Outcome(BaseModel):
    """How a far end ended: `Done`, or one of FAILURES."""

    model_config = ConfigDict(frozen=True)

    name: str
    message: str = ""

    def raise_error(self) -> None:
        """Raise what the far end ran into, if anything. A worker that died there was retried there."""
        if self.name == "Refused":
            kind, _, message = self.message.partition(": ")
            raise getattr(errors, kind, BTMError)(message)
        if self.name == "DeadlinePassed":
            raise DeadlineError(self.message)
        if self.name == "WorkerDied":
            raise WorkerError(self.message)


def remote_order(steps: Sequence[Step], settings: RuntimeSettings) -> RemoteOrder:
    """Return what the far end needs to know."""
    # As a URL: the far end works in another folder.
    told = {name: getattr(settings, name) for name in SETTINGS} | {"store": Store(settings.store_url).url}
    return RemoteOrder(first=steps[0].address, steps=steps_to_json(steps), settings=told, token=uuid.uuid4().hex)


def settings_here(order: RemoteOrder, steps: Sequence[Step]) -> RuntimeSettings:
    """Return the settings of the far end: as many GPUs as the order has processes, of those that it sees.

    Others may share the one GPU of an order of one process: they have slots, too, so that their part of memory is left.
    """
    processes = order.settings["pretrain_gpus"] if steps[0].on_several_gpus else 1
    here = {"engine": "local", "gpus": None, "pretrain_gpus": processes}
    settings = RuntimeSettings(**{**order.settings, **here})
    gpus = min(processes, settings.gpu_count())
    shared = gpus and processes == 1
    slots = int(1 / settings.gpu_share) if shared else processes
    return settings.model_copy(update={"workers": slots, "gpus": gpus or None})


def carry_out(order: RemoteOrder) -> Outcome:
    """The far end: do the steps here, in a worker process, and write down how they go."""
    steps = steps_from_json(order.steps)
    settings = settings_here(order, steps)
    brief = Store(settings.store_url).within(BRIEF_SECONDS)
    try:
        with _beating(order, brief), _writing_progress(brief):
            execute(steps, settings)
        with suppress(StoreError):
            brief.remove("partial", order.first)  # the last heartbeat
    except BTMError as error:
        return Outcome(name="Refused", message=f"{type(error).__name__}: {error}")
    except DeadlineError as error:
        return Outcome(name="DeadlinePassed", message=str(error))
    except WorkerError as error:
        return Outcome(name="WorkerDied", message=str(error))
    return Outcome(name="Done")


@contextmanager
def _beating(order: RemoteOrder, store: Store) -> Iterator[None]:
    """Write a heartbeat to the store, now and every few seconds while the block runs."""
    ended = threading.Event()

    def beat(number: int) -> None:
        store.write(f"{order.token} {number}".encode(), "partial", order.first, HEARTBEAT)

    def keep_beating() -> None:
        number = 0
        while not ended.wait(BEAT_SECONDS):
            number += 1
            try:
                beat(number)
            except StoreError as error:  # if it stays away, the work itself will say so
                log.warning("no heartbeat of %s could be written: %s", order.first, error)

    beat(0)
    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _heartbeat(store: Store, address: str) -> str:
    return (store.read("partial", address, HEARTBEAT) or b"").decode()


@contextmanager
def _writing_progress(store: Store) -> Iterator[None]:
    """Keep `progress.json` of the steps that run in this block up to date, every few seconds."""
    epochs: dict[str, list[Event]] = {}
    written: dict[str, float] = {}

    def note(event: Event) -> None:
        address = event["step"]
        if event["event"] == "epoch":
            epochs.setdefault(address, []).append(event)
            if time.monotonic() - written.get(address, -WRITE_SECONDS) >= WRITE_SECONDS:
                written[address] = time.monotonic()
                try:
                    store.write(json.dumps(epochs[address]).encode(), "partial", address, PROGRESS)
                except StoreError as error:  # nobody dies of a progress display
                    log.warning("the progress of %s could not be written: %s", address, error)
        elif event["event"] == "done" and address in written:  # written after the worker had cleared up, perhaps
            with suppress(StoreError):
                store.remove("partial", address)

    with listening(note):
        yield


class Job(Protocol):
    """Work that was given to a cluster."""

    def look(self) -> Literal["pending", "running", "done"]:
        """Return how things stand. Raises WorkerDiedError if it was lost, and what `Outcome.raise_error` raises."""

    def cancel(self) -> None:
        """Stop it; a job that has ended is left alone."""


class _Cluster:
    """What the threads that follow jobs know together."""

    def __init__(self) -> None:
        self.jobs = 0
        self.sign_of_life = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def job(self) -> Iterator[None]:
        with self._lock:
            self.jobs += 1
        try:
            yield
        finally:
            with self._lock:
                self.jobs -= 1

    @property
    def poll_seconds(self) -> float:
        """200 jobs are not to flood a server."""
        return max(1.0, 0.1 * self.jobs)


_cluster = _Cluster()


def follow(steps: Sequence[Step], settings: RuntimeSettings, job: Job) -> Iterator[Event]:
    """Yield the events of steps that a cluster does, until all their artifacts are in the store.

    Whoever calls this has `job.cancel` called if the process is stopped.

    Ends when nothing runs on the cluster for `pending_minutes` (a job may wait for others as long as it takes), when
    a far end gives no sign of life for `silence_minutes`, and soon after the far end's own deadlines.
    """
    store = Store(settings.store_url)
    brief = store.within(BRIEF_SECONDS)
    told = dict.fromkeys((step.address for step in steps), 0)
    # As the far end counts: a deadline for each of its steps, and for each time that it tries them.
    limit = settings.deadline_hours * 3600 * len(steps) * (settings.retries + 1) + GRACE_SECONDS
    asked, started = time.monotonic(), None
    heartbeat, heard = "", 0.0
    with _cluster.job():
        try:
            while (state := job.look()) != "done":
                now = time.monotonic()
                if state == "running":
                    started = started or now
                    heard = heard or now
                    try:
                        beat, news = _heartbeat(brief, steps[0].address), list(_progress(brief, told))
                    except StoreError as error:  # one that stays away counts as silence
                        log.warning("the store could not be read: %s", error)
                        beat, news = heartbeat, []
                    if beat != heartbeat:
                        heartbeat, heard = beat, now
                        _cluster.sign_of_life = now
                    yield from news
                    if now - heard > settings.silence_minutes * 60:
                        raise WorkerDiedError(
                            f"{steps[0].address} has given no sign of life for {settings.silence_minutes:g} minutes"
                        )
                    if now - started > limit:
                        raise DeadlineError(f"{steps[0].address} did not end within {limit / 3600:.1f} h, with retries")
                elif now - max(asked, _cluster.sign_of_life) > settings.pending_minutes * 60:
                    raise WorkerError(
                        f"nobody started {steps[0].address}, nor anything else, in {settings.pending_minutes:g} min; "
                        f"does a worker serve the {settings.engine}? (BTM_PENDING_MINUTES waits longer)"
                    )
                time.sleep(_cluster.poll_seconds)
        except (WorkerDiedError, DeadlineError):
            if any(store.find(address) is None for address in told):
                job.cancel()
                raise
        except BaseException:
            job.cancel()
            raise
    for step in steps:
        yield from _finished(store, step, told[step.address])


def _progress(store: Store, told: dict[str, int]) -> Iterator[Event]:
    """Yield the epochs that the far end has written down since."""
    for address, last in told.items():
        data = store.read("partial", address, PROGRESS)
        for event in json.loads(data) if data else []:
            if event["epoch"] > last:
                told[address] = event["epoch"]
                yield event


def _finished(store: Store, step: Step, last: int) -> Iterator[Event]:
    """Yield the epochs that were not told yet, and the artifact."""
    artifact = store.find(step.address)
    if artifact is None:
        raise WorkerError(
            f"{step.address} is said to be done, but store {store.url} does not hold it; do all workers see this store?"
        )
    data = store.read_file(artifact, RECORDS)
    for line in data.decode().splitlines() if data else []:
        record = json.loads(line)
        if record["epoch"] > last:
            yield {"event": "epoch", "step": step.address, **record}
    yield {"event": "done", "step": step.address, "artifact": artifact.model_dump()}

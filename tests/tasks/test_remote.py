"""The far end and the near end, with a thread in place of a cluster."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from test_pool import pretrain, the_worker

from btm_core.errors import NonFiniteLossError
from btm_core.storage import Store
from tasks.engines.pool import DeadlineError, WorkerDiedError, WorkerError
from tasks.engines.remote import Outcome, RemoteOrder, _cluster, carry_out, follow, remote_order, settings_here
from tasks.settings import RuntimeSettings


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[RuntimeSettings]:
    settings = RuntimeSettings(
        home=tmp_path / ".btm", workers=1, checkpoint_seconds=0, retries=0, pending_minutes=1 / 60
    )
    yield settings
    the_worker(settings).kill()


class ThreadJob:
    """A far end in a thread of this process."""

    def __init__(self, order: RemoteOrder):
        self.outcome: Outcome | None = None
        self.cancelled = False
        self._thread = threading.Thread(target=self._work, args=(order,))
        self._thread.start()

    def _work(self, order: RemoteOrder) -> None:
        self.outcome = carry_out(RemoteOrder.model_validate_json(order.model_dump_json()))

    def look(self) -> Literal["pending", "running", "done"]:
        if self._thread.is_alive():
            return "running"
        assert self.outcome is not None
        self.outcome.raise_error()
        return "done"

    def cancel(self) -> None:
        self.cancelled = True


class SilentJob:
    """A far end that says the same thing for ever."""

    def __init__(self, state: Literal["pending", "running", "done"]):
        self.state: Literal["pending", "running", "done"] = state
        self.cancelled = False

    def look(self) -> Literal["pending", "running", "done"]:
        return self.state

    def cancel(self) -> None:
        self.cancelled = True


def test_every_epoch_is_told_once_and_in_order(settings: RuntimeSettings) -> None:
    step = pretrain(settings, epochs=30)
    events = list(follow([step], settings, ThreadJob(remote_order([step], settings))))
    assert [event["epoch"] for event in events[:-1]] == list(range(1, 31))
    assert events[-1]["event"] == "done"
    store = Store(settings.store_url)
    assert store.find(step.address) is not None
    for name in ("heartbeat", "progress.json"):
        assert store.read("partial", step.address, name) is None


@pytest.mark.parametrize(
    ("share", "gpus", "visible", "slots"),
    [
        (1, 1, "3", ["3"]),
        (0.25, 1, "3", ["3"] * 4),
        (0.5, 1, "0,1,2,3", ["0", "0"]),
        (0.5, 3, "5,6,7", ["5", "6", "7"]),
        (0.5, 2, "5,6,7", ["5", "6"]),
        (0.5, 1, "", [None]),
    ],
)
def test_a_far_end_leaves_room_for_those_that_share_its_gpu(
    settings: RuntimeSettings,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    gpus: int,
    visible: str,
    slots: list[str | None],
) -> None:
    """Memory is shared out among slots. How many workers the near end has says nothing of this machine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    steps = [pretrain(settings)]
    near = settings.model_copy(update={"workers": 8, "gpu_share": share, "pretrain_gpus": gpus})
    assert settings_here(remote_order(steps, near), steps).slots() == slots


def test_an_error_of_the_input_arrives_as_what_it_is(settings: RuntimeSettings) -> None:
    step = pretrain(settings, lr=1e9)
    job = ThreadJob(remote_order([step], settings))
    with pytest.raises(NonFiniteLossError, match="the loss became nan"):
        list(follow([step], settings, job))


@pytest.mark.parametrize(
    ("outcome", "message", "kind"),
    [
        ("DeadlinePassed", "why", DeadlineError),
        ("WorkerDied", "why", WorkerError),
        ("Refused", "NonFiniteLossError: why", NonFiniteLossError),
    ],
)
def test_outcomes_become_errors(outcome: str, message: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as error:
        Outcome(name=outcome, message=message).raise_error()
    assert str(error.value) == "why"
    assert not isinstance(error.value, WorkerDiedError)  # it was tried again there


def test_a_cluster_that_starts_nothing_is_given_up(settings: RuntimeSettings) -> None:
    step, job = pretrain(settings), SilentJob("pending")
    with pytest.raises(WorkerError, match="nobody started pretrain/small_cnn"):
        list(follow([step], settings, job))
    assert job.cancelled


def test_others_at_work_are_a_sign_of_life(settings: RuntimeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits behind others waits for as long as they work."""
    step, job = pretrain(settings), SilentJob("pending")
    looks = 0

    def look() -> Literal["pending", "running", "done"]:
        nonlocal looks
        looks += 1
        _cluster.sign_of_life = time.monotonic()  # another thread's job
        if looks == 4:
            carry_out(remote_order([step], settings))
        return "done" if looks == 4 else "pending"

    monkeypatch.setattr(job, "look", look)
    *_, last = follow([step], settings, job)  # three looks take longer than pending_minutes
    assert last["event"] == "done"


def test_heartbeats_differ(settings: RuntimeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.engines.remote.BEAT_SECONDS", 0.05)
    step, store = pretrain(settings, epochs=400), Store(settings.store_url)
    job = ThreadJob(remote_order([step], settings))
    heard: set[bytes] = set()
    while job.look() == "running" and len(heard) < 3:
        heard |= {store.read("partial", step.address, "heartbeat") or b""}
    assert len(heard) == 3
    the_worker(settings.model_copy(update={})).kill()
    job._thread.join()


def test_a_far_end_without_a_heartbeat_is_taken_for_dead(settings: RuntimeSettings) -> None:
    step, job = pretrain(settings), SilentJob("running")
    with pytest.raises(WorkerDiedError, match="no sign of life"):
        list(follow([step], settings.model_copy(update={"silence_minutes": 1 / 60}), job))
    assert job.cancelled


@pytest.mark.parametrize(
    ("steps", "end"), [(1, "did not end within 0.0 h, with retries"), (2, "is said to be done, but")]
)
def test_an_order_has_a_deadline_for_each_of_its_steps(
    settings: RuntimeSettings, monkeypatch: pytest.MonkeyPatch, steps: int, end: str
) -> None:
    """As at the far end. This one takes three looks, a second apart, and each step may take 1.8 seconds."""
    monkeypatch.setattr("tasks.engines.remote.GRACE_SECONDS", 0.0)
    job, looks = SilentJob("running"), iter(["running", "running", "running", "done"])
    monkeypatch.setattr(job, "look", lambda: next(looks))
    order = [pretrain(settings), pretrain(settings, epochs=3)][:steps]
    with pytest.raises(WorkerError, match=end):
        list(follow(order, settings.model_copy(update={"deadline_hours": 1.8 / 3600}), job))


def test_done_without_an_artifact_is_an_error(settings: RuntimeSettings) -> None:
    step = pretrain(settings)
    with pytest.raises(WorkerError, match="do all workers see this store"):
        list(follow([step], settings, SilentJob("done")))


def test_what_is_in_the_store_is_done_whatever_the_cluster_says(settings: RuntimeSettings) -> None:
    step = pretrain(settings)
    carry_out(remote_order([step], settings))

    class Crashed(SilentJob):
        def look(self) -> Literal["pending", "running", "done"]:
            raise WorkerDiedError("its last report was lost")

    *_, last = follow([step], settings, Crashed("running"))
    assert last["event"] == "done"

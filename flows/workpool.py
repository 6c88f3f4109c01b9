"""The work pool engine: each order is a flow run of the deployment `btm-step/<pool>`, executed by the pool's workers.

A run that CRASHED (its process or its machine died) is submitted again by `tasks.execution`. The Prefect server may be
away for a while: the work goes on without it, and its artifact in the store says that it is done.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling

from btm_core.config import canonical_digest
from btm_core.errors import ConfigError
from btm_core.storage import Store
from tasks.engines.pool import WorkerDiedError, WorkerError
from tasks.engines.remote import FAILURES, Outcome, follow, remote_order
from tasks.events import Event
from tasks.settings import RuntimeSettings
from tasks.step import Step
from tasks.stopping import on_stop, stopping

__all__ = ["STEP_FLOW", "run_on_work_pool"]

STEP_FLOW = "btm-step"
T = TypeVar("T")


def run_on_work_pool(steps: Sequence[Step], settings: RuntimeSettings) -> Iterator[Event]:
    """Yield the events of `steps`, done one after another by a worker of the pool."""
    job = _FlowRunJob(steps, settings)
    with on_stop(job.cancel):  # before it is there: a stop in the middle of its creation must find it
        job.submit()
        yield from follow(steps, settings, job)


class _FlowRunJob:
    """A flow run under way: one of before if there is any (its flow was killed, say), else a new one."""

    def __init__(self, steps: Sequence[Step], settings: RuntimeSettings):
        self._settings, self._what = settings, steps[0].address
        self._order = remote_order(steps, settings)
        self._store = Store(settings.store_url)
        self._patiently = Patience(settings.outage_minutes)
        self._client = get_client(sync_client=True)
        self._name = f"{steps[0].stage} {steps[0].readable}"
        self._submitting = threading.Lock()
        self._claimed: float | None = None
        self.flow_run_id: UUID | None = None

    def submit(self) -> None:
        """Take up the flow run of before, or create one."""
        with self._submitting:
            if stopping.is_set():
                raise WorkerError(f"{self._what} is not sent any more: this process is being stopped")
            self.flow_run_id = self._patiently(lambda: self._adopted() or self._created())

    def _tag(self) -> str:
        """Name the work for a search: its address, and what is done with it, in this store, on this pool."""
        others = f"+{canonical_digest(self._order.steps)[:16]}" if len(self._order.steps) > 1 else ""
        return f"{self._store.url}#{self._what}{others}@{self._settings.work_pool}"

    def _adopted(self) -> UUID | None:
        found = self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(
                {
                    "tags": {"all_": [self._tag()]},
                    "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}},
                }
            ),
            limit=1,
        )
        return found[0].id if found else None

    def _created(self) -> UUID:
        name = f"{STEP_FLOW}/{self._settings.work_pool}"
        try:
            flow_run = run_deployment(
                name,
                parameters={"order": self._order.model_dump(mode="json")},
                flow_run_name=self._name,
                tags=["btm-step", self._tag()],
                # A reply that is lost must not make two of it; another attempt is another order.
                idempotency_key=self._order.token,
                timeout=0,
            )
        except ObjectNotFound:
            raise ConfigError(
                f"the Prefect server knows no deployment {name}; register it with: "
                f"btm deploy --pool {self._settings.work_pool}"
            ) from None
        assert isinstance(flow_run, FlowRun)  # a thread has no event loop, so it is no coroutine
        return flow_run.id

    def look(self) -> Literal["pending", "running", "done"]:
        flow_run = self._patiently(self._read)
        state = flow_run.state
        if state is not None and state.type == StateType.PENDING:
            self._claimed = self._claimed or time.monotonic()
            if time.monotonic() - self._claimed > 3 * 60 * self._settings.silence_minutes:
                raise WorkerDiedError(f"flow run {flow_run.name!r} of {self._what} was claimed, and never started")
            return "pending"
        self._claimed = None
        if state is None or state.type == StateType.SCHEDULED:
            return "pending"
        if state.type in (StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED):
            return "running"
        if state.type == StateType.COMPLETED:
            return "done"
        message = state.message or state.name
        if state.type == StateType.CRASHED:
            raise WorkerDiedError(f"flow run {flow_run.name!r} of {self._what} crashed: {message}")
        if state.type == StateType.CANCELLED:
            raise WorkerError(f"flow run {flow_run.name!r} of {self._what} was cancelled")
        if state.name in FAILURES:
            Outcome(name=state.name, message=message).raise_error()
        raise WorkerError(f"flow run {flow_run.name!r} of {self._what} failed: {message}")

    def _read(self) -> FlowRun:
        assert self.flow_run_id is not None
        return self._client.read_flow_run(self.flow_run_id)

    def cancel(self) -> None:
        with self._submitting:
            if self.flow_run_id is None:
                return
        try:
            state = self._read().state
            if state is not None and not state.is_final():
                # Only who runs has a worker that ends it, and says so.
                ended: State[Any] = Cancelling() if state.type == StateType.RUNNING else Cancelled()
                self._client.set_flow_run_state(self.flow_run_id, ended, force=True)
        except (httpx.HTTPError, PrefectHTTPStatusError):
            return  # without a server there is nobody to tell


class Patience:
    """Calls the Prefect server, and waits out an outage: it restarts, or the network is away for a while."""

    def __init__(self, minutes: float):
        self._minutes = minutes

    def __call__(self, call: Callable[[], T]) -> T:
        """Return call(). Raises WorkerError if the server has been away for too long."""
        began = time.monotonic()
        while True:
            try:
                return call()
            except (httpx.TransportError, PrefectHTTPStatusError) as error:
                answered = isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500
                if answered:
                    raise
                if time.monotonic() - began > self._minutes * 60:
                    raise WorkerError(
                        f"the Prefect server has been away for {self._minutes:g} minutes: {error!r}; what the pool has "
                        "begun goes on, and the same command takes it up"
                    ) from None
            time.sleep(2.0)

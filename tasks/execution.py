"""Executing steps: take what is in the store, and have an engine do the rest; what dies is tried again.

An engine is a function that runs steps somewhere and yields their events. It must end: with the steps done, or with an
error that says why not. `tasks.engines.pool` is the one on this machine; all others run that one at their far end.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from btm_core.errors import StoreError
from btm_core.storage import Artifact, Store
from tasks.engines.pool import DeadlineError, WorkerDiedError, WorkerError, run_in_pool
from tasks.events import Event, publish
from tasks.journal import taken, wanted
from tasks.outage import remember
from tasks.settings import RuntimeSettings
from tasks.step import Step, perform
from tasks.stopping import stopping

__all__ = ["DeadlineError", "Engine", "WorkerDiedError", "WorkerError", "execute"]

log = logging.getLogger(__name__)

Engine = Callable[[Sequence[Step], RuntimeSettings], Iterator[Event]]


def execute(steps: Sequence[Step], settings: RuntimeSettings, engine: Engine = run_in_pool) -> list[Artifact]:
    """Return the artifacts of `steps`, all of one kind; those not in the store are made.

    What a worker died of is tried again `settings.retries` times, from the last checkpoint; a refused input and a
    passed deadline are not.
    """
    store = Store(settings.store_url)
    wanted(step.address for step in steps)  # before they are looked for: see tasks.journal
    found = {step.address: artifact for step in steps if (artifact := store.find(step.address)) is not None}
    for step in steps:
        publish({"event": "cached" if step.address in found else "started", "step": step.address, "stage": step.stage})
    for attempt in range(settings.retries + 1):
        todo = [step for step in steps if step.address not in found]
        try:
            if todo:
                found |= _run(todo, store, settings, engine)
            break
        except StoreError as error:
            remember(settings.store_url, error)
            raise
        except WorkerDiedError as error:
            if attempt == settings.retries or stopping.is_set():
                raise
            log.warning("%s\nTrying again (%d of %d).", error, attempt + 1, settings.retries)
            time.sleep(2.0**attempt)
            found |= {step.address: artifact for step in todo if (artifact := store.find(step.address)) is not None}
    taken(found)
    return [found[step.address] for step in steps]


def _tell(step: Step, event: Event) -> None:
    publish({**event, "step": step.address, "stage": step.stage})


def _run(steps: Sequence[Step], store: Store, settings: RuntimeSettings, engine: Engine) -> dict[str, Artifact]:
    """Make artifacts once, and publish what is heard of them."""
    if not steps[0].in_worker:
        made = {}
        for step in steps:
            made[step.address] = perform(step, store, partial(_tell, step))
            _tell(step, {"event": "done"})
        return made
    made = {}
    for event in engine(steps, settings):
        if event["event"] == "done":
            made[event["step"]] = Artifact.model_validate(event["artifact"])
        publish({**event, "stage": steps[0].stage})
    return made

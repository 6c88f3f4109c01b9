"""How a flow asks for work: one Prefect task executes any step, on any engine."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from btm_core.errors import ArtifactError, BTMError, StoreError
from btm_core.storage import Artifact, Store
from tasks.engines.pool import WorkerDiedError, WorkerError, run_in_pool
from tasks.events import publish
from tasks.execution import Engine, execute
from tasks.settings import RuntimeSettings
from tasks.step import Step

__all__ = ["Stand", "do", "each", "join", "mended", "standing_in", "together", "work"]

log = logging.getLogger("tasks.work")

MENDINGS = 5
"""A disk that damages more than that while one run lasts is not to be mended by trying."""
MAYBE_OF_ONE = (BTMError, WorkerDiedError)
"""Errors of a pack that one of its members may have caused."""
Result = TypeVar("Result")
Stand = Callable[[Sequence[Sequence[Step]]], Sequence[Sequence[Artifact]]]
"""Answers packs of steps that are asked for beside each other, in order, without doing them."""
_stand: ContextVar[Stand | None] = ContextVar("stand", default=None)


@contextmanager
def standing_in(stand: Stand) -> Iterator[None]:
    """Have `stand` answer all that is asked for in this block: a flow is walked, and nothing is run."""
    token = _stand.set(stand)
    try:
        yield
    finally:
        _stand.reset(token)


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,  # the store's addresses are the cache: they also know whether the artifact is still there
    persist_result=False,
    # No Prefect retries: they would run in this process, and know nothing of a worker's death (see `execute`).
)
def work(name: str, steps: list[Step], settings: RuntimeSettings) -> list[Artifact]:
    """Return the artifacts of steps, made in one process if they are not in the store."""
    return execute(steps, settings, engine_of(settings))


def engine_of(settings: RuntimeSettings) -> Engine:
    """Return what runs steps: this machine's pool, a Ray cluster, or a Prefect work pool."""
    if settings.engine == "ray":
        from tasks.engines.ray_cluster import run_on_ray

        return run_on_ray
    if settings.engine == "workpool":
        from flows.workpool import run_on_work_pool

        return run_on_work_pool
    return run_in_pool


def do(step: Step, settings: RuntimeSettings) -> Artifact:
    """Return the artifact of one step."""
    return each([step], settings)[0]


def each(steps: Sequence[Step], settings: RuntimeSettings) -> list[Artifact]:
    """Return the artifacts of steps that run beside each other. All end before errors, if any, are raised."""
    made, lost = join(steps, settings, quorum=len(steps))
    assert not lost
    return list(made.values())


def join(
    steps: Sequence[Step], settings: RuntimeSettings, quorum: int | None = None, pack: int = 1
) -> tuple[dict[int, Artifact], dict[int, str]]:
    """Wait for steps that run beside each other; return the artifacts made and why the others were lost, by position.

    With `pack`, so many are one worker's to do at once. What one of them dies of or is refused for need not keep the
    others, so then each is tried alone; not after a passed deadline, nor where it is the store. Every engine bounds its
    waits, so this one ends. Raises an error that names each lost step if fewer than `quorum` (default: all) were made;
    what was made stays in the store.
    """
    indices = range(len(steps))
    made, errors = _wait_for([indices[start : start + pack] for start in indices[::pack]], steps, settings)
    again = [index for index, error in errors.items() if pack > 1 and isinstance(error, MAYBE_OF_ONE)]
    again = [index for index in again if not isinstance(errors[index], StoreError)]
    if again:
        log.warning("%s\nDoing what is left one by one.", errors[again[0]])
        more, errors_alone = _wait_for([[index] for index in again], steps, settings)
        made = dict(sorted({**made, **more}.items()))
        errors = {index: error for index, error in {**errors, **errors_alone}.items() if index not in made}
    for damage in errors.values():
        if isinstance(damage, ArtifactError):  # of what they read, not of theirs: no reason to go on without them
            raise damage
    if errors and len(made) < (quorum or len(steps)):
        raise _as_one(steps, errors)
    lost = {index: str(error) for index, error in errors.items()}
    for index, reason in lost.items():
        log.warning("%s %s is lost: %s", steps[index].stage, steps[index].readable, reason)
    return made, lost


def _wait_for(
    packs: Sequence[Sequence[int]], steps: Sequence[Step], settings: RuntimeSettings
) -> tuple[dict[int, Artifact], dict[int, Exception]]:
    """Wait for packs of steps, given by position; return what was made, and the errors of the others."""
    if (stand := _stand.get()) is not None:
        answers = stand([[steps[index] for index in pack] for pack in packs])
        found = {i: made for pack, own in zip(packs, answers, strict=True) for i, made in zip(pack, own, strict=True)}
        return dict(sorted(found.items())), {}
    futures = []
    for step in steps:
        publish({"event": "queued", "step": step.address, "stage": step.stage})
    for pack in packs:
        several = f" and {len(pack) - 1} more" if len(pack) > 1 else ""
        name = f"{steps[pack[0]].stage} {steps[pack[0]].readable}{several}"
        futures.append(work.submit(name, [steps[index] for index in pack], settings))
    made: dict[int, Artifact] = {}
    errors: dict[int, Exception] = {}
    for pack, future in zip(packs, futures, strict=True):
        try:
            made |= zip(pack, future.result(), strict=True)
        except Exception as error:  # of a step, whatever it is: the others are waited for
            ended = _made(steps, pack, settings) if len(pack) > 1 else {}
            made |= ended
            errors |= {index: error for index in pack if index not in ended}
    return made, errors


def _made(steps: Sequence[Step], pack: Sequence[int], settings: RuntimeSettings) -> dict[int, Artifact]:
    """Return what was made of a pack before it came to its error, as far as the store can tell."""
    store, made = Store(settings.store_url), {}
    with suppress(StoreError):
        for index in pack:
            if (artifact := store.find(steps[index].address)) is not None:
                made[index] = artifact
    return made


def _as_one(steps: Sequence[Step], errors: dict[int, Exception]) -> Exception:
    """Return one error for those of several steps: the user's to mend if all of them are."""
    if len(errors) == 1:
        return next(iter(errors.values()))
    names = ", ".join(steps[index].readable for index in errors)
    reasons = "\n".join(dict.fromkeys(str(error) for error in errors.values()))
    message = f"{len(errors)} of {len(steps)} are lost ({names}); the others are kept:\n{reasons}"
    kinds = {type(error) for error in errors.values()}
    if all(issubclass(kind, BTMError) for kind in kinds):
        return kinds.pop()(message) if len(kinds) == 1 else BTMError(message)
    return WorkerError(message)


def mended(call: Callable[[], Result]) -> Result:
    """Return what `call` returns; if an artifact it took turns out to be damaged or gone, call it again.

    That artifact now counts as absent, and is made again; all others are found.
    """
    for _ in range(MENDINGS):
        try:
            return call()
        except ArtifactError as error:
            log.warning("%s\nMaking it again; all others are kept.", error)
    return call()


def together(steps: Sequence[Step], settings: RuntimeSettings) -> list[Artifact]:
    """Return the artifacts of small steps of one kind: one order, or one for each worker of this machine.

    They are shared out where a step is meant to run beside others; one order elsewhere, since each has its own cost.
    """
    spread = steps[0].runs_beside_others and settings.engine == "local"
    count = min(len(settings.slots()), len(steps)) if spread else 1
    shares = [list(range(len(steps)))[number::count] for number in range(count)]
    made, errors = _wait_for(shares, steps, settings)
    if errors:
        raise _as_one(steps, errors)
    return [made[index] for index in range(len(steps))]

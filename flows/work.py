"""How a flow asks for work: one Prefect task executes any step, one at a time, beside each other, or together."""

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from btm_core.storage import Artifact
from tasks.execution import WorkerDiedError, execute
from tasks.settings import RuntimeSettings
from tasks.step import Step

__all__ = ["do", "each", "together", "work"]


def _worker_died(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry what died, never what was refused: an error of the input stays an error."""
    return isinstance(state.result(raise_on_failure=False, _sync=True), WorkerDiedError)  # type: ignore[call-overload]


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,  # the store's addresses are the cache: they also know whether the artifact is still there
    persist_result=False,
    retries=2,
    retry_delay_seconds=1,
    retry_condition_fn=_worker_died,
)
def work(name: str, steps: list[Step], settings: RuntimeSettings) -> list[Artifact]:
    """Return the artifacts of steps, made in one process if they are not in the store."""
    return execute(steps, settings)


def do(step: Step, settings: RuntimeSettings) -> Artifact:
    """Return the artifact of one step."""
    return each([step], settings)[0]


def each(steps: Sequence[Step], settings: RuntimeSettings) -> list[Artifact]:
    """Return the artifacts of steps that run beside each other. All end before the first error, if any, is raised."""
    futures = [work.submit(f"{step.stage} {step.readable}", [step], settings) for step in steps]
    for future in futures:
        future.wait()
    return [future.result()[0] for future in futures]


def together(steps: Sequence[Step], settings: RuntimeSettings) -> list[Artifact]:
    """Return the artifacts of small steps of one kind, made in one process."""
    artifacts: list[Artifact] = work.submit(f"{steps[0].stage} {len(steps)} models", list(steps), settings).result()
    return artifacts

"""Balanced Training and Merging: Algorithm 1 of the paper as a Prefect flow."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from btm_core.config import ExperimentConfig
from btm_core.errors import CheckpointError
from btm_core.storage import Artifact
from flows.environment import guard_server
from tasks.data import prepare_data
from tasks.evaluate import Evaluate
from tasks.execution import WorkerDiedError, execute
from tasks.finetune import Finetune
from tasks.merge import Merge
from tasks.post_train import PostTrain
from tasks.pretrain import ImportStage1, Pretrain, RetrainHead
from tasks.run import Model, Run
from tasks.sample import SampleSubset
from tasks.settings import RuntimeSettings
from tasks.step import Step

__all__ = ["btm"]


@flow(
    name="btm",
    flow_run_name="{run_id}",
    # Threads wait for worker processes; how many of those run at a time is the engine's to decide.
    task_runner=ThreadPoolTaskRunner(max_workers=64),  # type: ignore[arg-type]
    persist_result=False,
    on_running=[guard_server],
)
def btm(experiment: ExperimentConfig, settings: RuntimeSettings, run_id: str) -> dict[str, Any]:
    """Run Algorithm 1, evaluate every model on the way, and report. Returns what `btm run --json` prints."""
    with Run(experiment, settings, run_id) as run:
        data = do(prepare_data(experiment.name, experiment.data, settings.cache), settings)
        shared = {
            "data": data,
            "view": experiment.data.input,
            "model": experiment.model,
            "seed": experiment.seed,
            "root": experiment.data.root,
        }

        # 1. Pre-train; a base that already handled imbalance gets a head that does not (section 3.3).
        stage1 = do(stage1_step(experiment, settings, shared), settings)
        base = stage1
        if experiment.fc is not None:
            base = do(RetrainHead(base=stage1, config=experiment.fc, **shared), settings)

        # 2. Sample N_D few-shot balanced subsets.
        subsets = each(SampleSubset.all(data, experiment.sampling, experiment.seed), settings)

        # 3. BTM: fine-tune the whole network on each, and average the weights.
        ingredients = each(
            [
                Finetune(base=base, subset=subset, index=index, config=experiment.finetune, **shared)
                for index, subset in enumerate(subsets)
            ],
            settings,
        )
        soup = do(Merge(ingredients=tuple(ingredients), config=experiment.merge), settings)

        # 4. Post-train the head; and, to compare with, that of stage 1 without BTM.
        starts = [soup, stage1] if experiment.evaluation.baseline else [soup]
        final, *baseline = each(
            [PostTrain(base=start, config=experiment.post_train, **shared) for start in starts], settings
        )

        models = [("stage 1", "pretrain", stage1)]
        models += [("stage 1 + post-train", "baseline", model) for model in baseline]
        models += [("stage 1 + FC", "fc", base)] if base != stage1 else []
        models += [(f"ingredient {index:02d}", "finetune", model) for index, model in enumerate(ingredients)]
        models += [("soup", "merge", soup), ("final", "post_train", final)]
        evaluations = together(
            [
                Evaluate(data=data, view=experiment.data.input, model=model, root=experiment.data.root)
                for _, _, model in models
            ],
            settings,
        )
        rows = [Model(*model, evaluation) for model, evaluation in zip(models, evaluations, strict=True)]
        return run.finish(data, subsets[0], rows)


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


def together(steps: list[Step], settings: RuntimeSettings) -> list[Artifact]:
    """Return the artifacts of small steps of one kind, made in one process."""
    artifacts: list[Artifact] = work.submit(f"{steps[0].stage} {len(steps)} models", steps, settings).result()
    return artifacts


def stage1_step(experiment: ExperimentConfig, settings: RuntimeSettings, shared: dict[str, Any]) -> Step:
    """Return the step that trains stage 1, or takes the checkpoint that the experiment names."""
    config = experiment.pretrain
    if config.checkpoint is not None:
        content = file_sha256("pretrain.checkpoint", config.checkpoint)
        return ImportStage1(source=config.checkpoint, content=content, **shared)
    initial = None if config.initial is None else file_sha256("pretrain.initial", config.initial)
    seed = experiment.seed if config.seed is None else config.seed
    return Pretrain(config=config, initial_content=initial, **{**shared, "seed": seed})


def file_sha256(key: str, url: str) -> str:
    """Return the sha256 of the local or remote file that configuration key `key` names."""
    try:
        with fsspec.open(str(Path(url).expanduser()) if "://" not in url else url, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{key} {url} cannot be read: {error}") from None

"""Balanced Training and Merging: Algorithm 1 of the paper as a Prefect flow."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from btm_core.config import ExperimentConfig
from btm_core.errors import CheckpointError
from btm_core.storage import Artifact, file_digest_at
from flows.flow_run import ended, own_run_id, run_name, worker_settings
from flows.prefect_pages import in_prefect, prefect_link, show_in_prefect
from flows.preflight import preflight
from flows.stopping import stop_at_once
from flows.work import do, each, join, mended, together
from tasks.data import PrepareData, prepare_data
from tasks.evaluate import evaluation_step
from tasks.finetune import Finetune, pack_size
from tasks.merge import ChosenMerge, Merge
from tasks.post_train import PostTrain
from tasks.pretrain import ImportStage1, Pretrain, RetrainHead
from tasks.run import Model, Run
from tasks.sample import SampleSubset
from tasks.settings import RuntimeSettings
from tasks.step import Step

__all__ = ["FLOW_OPTIONS", "Trained", "algorithm", "btm", "everything", "shared_inputs"]

FLOW_OPTIONS: dict[str, Any] = {
    "flow_run_name": run_name,
    # Threads wait for worker processes; how many of those run at a time is the engine's to decide.
    "task_runner": ThreadPoolTaskRunner(max_workers=64),
    "persist_result": False,
    "on_running": [stop_at_once],
}


@flow(name="btm", **FLOW_OPTIONS)
def btm(
    experiment: ExperimentConfig, settings: RuntimeSettings | None = None, run_id: str | None = None
) -> dict[str, Any]:
    """Run Algorithm 1, evaluate every model on the way, and report. Returns what `btm run --json` prints.

    Args:
        experiment: What is trained, on which data; its keys are those of a configuration file.
        settings: How it is run; leave it empty to take the worker's environment (BTM_ variables).
        run_id: Name of the run; leave it empty for a new one.
    """
    if settings is None:
        settings = worker_settings()
        preflight(experiment, settings)
    with in_prefect(), Run(experiment, settings, run_id or own_run_id(), prefect_link()) as run:

        def attempt() -> dict[str, Any]:
            trained, tested, validated = everything(experiment, settings)
            return run.finish(trained.data, trained.subsets[0], tested, validated, trained.lost)

        result = mended(attempt)
        show_in_prefect(result, settings)
        return ended(result, len(run.steps))  # type: ignore[return-value]  # Prefect hands the state's data on


@dataclass(frozen=True)
class Trained:
    """What Algorithm 1 makes on its way."""

    data: Artifact
    stage1: Artifact
    base: Artifact
    subsets: list[Artifact]
    ingredients: dict[int, Artifact]
    """By number of the subset."""
    lost: dict[int, str]
    """Why there is no ingredient of a subset, where `finetune.quorum` went on without it."""
    soup: Artifact
    final: Artifact
    baseline: Artifact | None
    """Stage 1 post-trained without BTM."""

    def models(self) -> list[tuple[str, str, Artifact]]:
        """Return (name, stage, weights) of every model, in the order of Table 12; the last is the final one."""
        models = [("stage 1", "pretrain", self.stage1)]
        models += [("stage 1 + post-train", "baseline", self.baseline)] if self.baseline is not None else []
        models += [("stage 1 + FC", "fc", self.base)] if self.base.stage == "fc" else []
        models += [(f"ingredient {i:02d}", "finetune", model) for i, model in self.ingredients.items()]
        models += [("soup", "merge", self.soup)]
        return models + ([("final", "post_train", self.final)] if self.final != self.soup else [])


def everything(
    experiment: ExperimentConfig, settings: RuntimeSettings, prepare: PrepareData | None = None
) -> tuple[Trained, list[Model], list[Model]]:
    """Run Algorithm 1, and evaluate every model on the way on the test split, and on validation if there is any.

    All that a run takes and makes is asked for in here, so whoever walks it (`flows.plan`) sees what a run will do.
    """
    trained = algorithm(experiment, settings, prepare)
    tested = evaluated(experiment, settings, trained, "test")
    has_validation = experiment.data.validation or experiment.data.validation_per_class
    return trained, tested, evaluated(experiment, settings, trained, "validation") if has_validation else []


def algorithm(experiment: ExperimentConfig, settings: RuntimeSettings, prepare: PrepareData | None = None) -> Trained:
    """Run Algorithm 1 of the paper. What the store holds is not made again.

    `prepare` is the step that makes the data, where somebody knows it.
    """
    data = do(prepare or prepare_data(experiment.name, experiment.data, settings.cache), settings)
    shared = shared_inputs(experiment, data)

    # 1. Pre-train; a base that already handled imbalance gets a head that does not (section 3.3).
    stage1 = do(stage1_step(experiment, shared), settings)
    base = stage1
    if experiment.fc is not None:
        base = do(RetrainHead(base=stage1, config=experiment.fc, **shared), settings)

    # 2. Sample N_D few-shot balanced subsets.
    subsets = each(SampleSubset.all(data, experiment.sampling, experiment.seed), settings)

    # 3. BTM: fine-tune the whole network on each, and average the weights.
    after = experiment.finetune.start == "post_trained"  # Table 8: no better, but one may want to see it
    start = do(post_train_step(experiment, base, shared), settings) if after else base
    finetunes = [
        Finetune(base=start, subset=subset, index=index, config=experiment.finetune, **shared)
        for index, subset in enumerate(subsets)
    ]
    ingredients, lost = join(finetunes, settings, experiment.finetune.quorum, pack_size(experiment, settings))
    soup = do(merge_step(experiment, ingredients, lost, subsets, data), settings)

    # 4. Post-train the head; and, to compare with, that of stage 1 without BTM.
    starts = ([] if after else [soup]) + ([stage1] if experiment.evaluation.baseline else [])
    heads = each([post_train_step(experiment, model, shared) for model in starts], settings)
    final = soup if after else heads[0]
    baseline = heads[-1] if experiment.evaluation.baseline else None
    return Trained(data, stage1, base, subsets, ingredients, lost, soup, final, baseline)


def evaluated(
    experiment: ExperimentConfig, settings: RuntimeSettings, trained: Trained, split: Literal["test", "validation"]
) -> list[Model]:
    """Evaluate every model on the way on a split."""
    models = trained.models()
    steps = [evaluation_step(experiment, trained.data, model, split) for _, _, model in models]
    return [Model(*model, evaluation) for model, evaluation in zip(models, together(steps, settings), strict=True)]


def shared_inputs(experiment: ExperimentConfig, data: Artifact) -> dict[str, Any]:
    """Return the fields that all training steps have in common."""
    return {
        "data": data,
        "view": experiment.data.input,
        "model": experiment.model,
        "seed": experiment.seed,
        "root": experiment.data.root,
    }


def stage1_step(experiment: ExperimentConfig, shared: dict[str, Any]) -> Step:
    """Return the step that trains stage 1, or takes the checkpoint that the experiment names."""
    config = experiment.pretrain
    if config.checkpoint is not None:
        content = file_sha256("pretrain.checkpoint", config.checkpoint)
        return ImportStage1(source=config.checkpoint, content=content, **shared)
    initial = None if config.initial is None else file_sha256("pretrain.initial", config.initial)
    seed = experiment.seed if config.seed is None else config.seed
    return Pretrain(config=config, initial_content=initial, **{**shared, "seed": seed})


def merge_step(
    experiment: ExperimentConfig,
    ingredients: dict[int, Artifact],
    lost: Iterable[int],
    subsets: list[Artifact],
    data: Artifact,
) -> Step:
    """Return the step that merges: 1 / N_D each, or by a criterion that is not the test split (Table 6)."""
    if experiment.merge.strategy == "uniform":
        return Merge(ingredients=tuple(ingredients.values()), lost=tuple(sorted(lost)))
    return ChosenMerge(
        ingredients=tuple(ingredients.values()),
        lost=tuple(sorted(lost)),
        subsets=tuple(subsets[index] for index in ingredients),
        config=experiment.merge,
        data=data,
        view=experiment.data.input,
        root=experiment.data.root,
    )


def post_train_step(experiment: ExperimentConfig, base: Artifact, shared: dict[str, Any]) -> Step:
    """Return the step that re-trains the head of `base`."""
    return PostTrain(base=base, config=experiment.post_train, **shared)


def file_sha256(key: str, url: str) -> str:
    """Return the sha256 of the local or remote file that configuration key `key` names."""
    try:
        return file_digest_at(url)[0]
    except OSError as error:
        raise CheckpointError(f"{key} {url} cannot be read: {error}") from None

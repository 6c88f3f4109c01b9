"""Flows of many runs: repetitions over seeds, the paper's ablations, and interpolation between models."""

import datetime
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from prefect import flow

from btm_core.ablations import Variant, subset_alert, variants
from btm_core.comparison import Row, comparison, comparison_html, comparison_markdown, curve_charts
from btm_core.config import ExperimentConfig
from btm_core.storage import Artifact, Store
from flows.btm import FLOW_OPTIONS, algorithm, btm, shared_inputs, stage1_step
from flows.work import do, each, mended, together
from tasks.data import prepare_data
from tasks.evaluate import RECALL, evaluation_step, predictions_of
from tasks.finetune import Finetune
from tasks.merge import Merge
from tasks.pretrain import RetrainHead
from tasks.run import Run
from tasks.sample import SampleSubset, UnionOfSubsets
from tasks.settings import RuntimeSettings

__all__ = ["ablate", "interpolate", "repeat"]

CURVES = (
    "lambda is the second model's share of the weights. The dashed line, if there is one, is the model trained on the "
    "union of both subsets."
)


@flow(name="btm-repeat", **FLOW_OPTIONS)
def repeat(experiment: ExperimentConfig, settings: RuntimeSettings, run_id: str, repeats: int) -> dict[str, Any]:
    """Run BTM for several seeds; report mean, standard deviation, and intervals of BTM's differences."""
    seeds = [experiment.seed + number for number in range(repeats)]
    runs = [
        btm(experiment.model_copy(update={"seed": seed}), settings, f"{run_id}-seed{seed}")  # each is a run of its own
        for seed in seeds
    ]
    store = Store(settings.store_url)
    rows = _over_runs([run["models"] for run in runs])
    validation = _over_runs([run["validation"] for run in runs]) if runs[0]["validation"] else []
    by_name = [{row["name"]: row for row in run["models"]} for run in runs]
    final = runs[0]["models"][-1]["name"]
    references = [name for name in ("stage 1 + post-train", "stage 1") if name in by_name[0]]
    differences = [_difference(store, by_name, reference, final) for reference in references]
    links = [{"seed": run["seed"], "run_id": run["run_id"], "report": run["report"]} for run in runs]
    facts = _facts(experiment, run_id, seeds, runs[0]["models"][-1]) | {"differences": differences, "runs": links}
    facts["warnings"] = [_lost(run) for run in runs if run["lost_ingredients"]]
    document = comparison(f"{experiment.name}: {repeats} repetitions", rows, validation=validation, **facts)
    return _publish(store, run_id, document)


@flow(name="btm-ablate", **FLOW_OPTIONS)
def ablate(
    experiment: ExperimentConfig, settings: RuntimeSettings, run_id: str, name: str, repeats: int = 1
) -> dict[str, Any]:
    """Run one of the paper's ablations (`btm_core.ablations`); what variants share is made once."""
    seeds = [experiment.seed + number for number in range(repeats)]
    title, configs = variants(experiment, name, seeds)
    store = Store(settings.store_url)
    with Run(experiment, settings, run_id) as run:
        rows: dict[tuple[str, ...], Row] = {}
        for variant, config in configs:
            for labels, figures in mended(partial(_figures, config, settings, store, variant)):
                rows.setdefault(tuple(labels.values()), Row(labels)).runs.append(figures)
        document = comparison(
            title, list(rows.values()), **_facts(experiment, run_id, seeds, next(iter(rows.values())).runs[0])
        )
        if name == "subsets":
            sizes = [
                (int(row["labels"]["subsets (N_D)"]), int(row["labels"]["shots (N_C)"])) for row in document["rows"]
            ]
            means = [row["summary"]["h_mean"]["mean"] for row in document["rows"]]
            document["warnings"] = subset_alert([(*size, mean) for size, mean in zip(sizes, means, strict=True)])
        return _publish(store, run_id, document | {"artifacts": sorted(run.steps)})


@flow(name="btm-interpolate", **FLOW_OPTIONS)
def interpolate(
    experiment: ExperimentConfig, settings: RuntimeSettings, run_id: str, shots: int = 5, points: int = 11
) -> dict[str, Any]:
    """Figures 1 and 2: from stage 1 to a fine-tuned model, and from one fine-tuned model to another, in weight space.

    Two balanced subsets A and B of `shots` images a class; fine-tuned on A, on B, and on their union, which is balanced
    no more. They start where BTM does: from the FC stage, if there is one.
    """
    with Run(experiment, settings, run_id) as run:
        document = mended(lambda: _interpolated(experiment, settings, run_id, shots, points))
        return _publish(run.store, run_id, document | {"artifacts": sorted(run.steps)}, CURVES)


def _interpolated(
    experiment: ExperimentConfig, settings: RuntimeSettings, run_id: str, shots: int, points: int
) -> dict[str, Any]:
    store = Store(settings.store_url)
    data = do(prepare_data(experiment.name, experiment.data, settings.cache), settings)
    shared = shared_inputs(experiment, data)
    start, base = "stage 1", do(stage1_step(experiment, shared), settings)
    if experiment.fc is not None:
        start, base = "stage 1 + FC", do(RetrainHead(base=base, config=experiment.fc, **shared), settings)
    sampling = experiment.sampling.model_copy(update={"num_subsets": 2, "shots": shots, "lists": ()})
    a, b = each(SampleSubset.all(data, sampling, experiment.seed), settings)
    union = do(UnionOfSubsets(subsets=(a, b)), settings)
    tuned = each(
        [
            Finetune(base=base, subset=subset, index=index, config=experiment.finetune, **shared)
            for index, subset in enumerate((a, b, union))
        ],
        settings,
    )
    shares = [number / (points - 1) for number in range(points)]
    paths = {f"{start} to A": (base, tuned[0]), "A to B": (tuned[0], tuned[1])}
    merges = [Merge(ingredients=ends, weights=(1 - share, share)) for ends in paths.values() for share in shares]
    between = together(merges, settings)
    figures = _evaluated(experiment, settings, store, data, [*between, tuned[2]])
    rows = [
        Row({"Path": path, "lambda": f"{share:.2f}"}, [figures[number * points + i]])
        for number, path in enumerate(paths)
        for i, share in enumerate(shares)
    ]
    rows.append(Row({"Path": "A union B", "lambda": ""}, [figures[-1]]))
    document = comparison(
        "Figures 1 and 2: interpolation between models",
        rows,
        **_facts(experiment, run_id, [experiment.seed], figures[0]),
    )
    document["curves"] = {
        path: _curves(shares, figures[number * points :][:points], figures[-1] if path == "A to B" else None)
        for number, path in enumerate(paths)
    }
    return document


def _lost(run: dict[str, Any]) -> str:
    subsets = ", ".join(f"{row['subset']:02d}" for row in run["lost_ingredients"])
    return f"the soup of seed {run['seed']} was made without the fine-tunes of subsets {subsets}, which were lost"


def _over_runs(runs: list[list[dict[str, Any]]]) -> list[Row]:
    """Return a row a model, with its figures of every run; the ingredients of all runs are one row before the soup."""
    names = [row["name"] for row in runs[0] if row["stage"] != "finetune"]
    rows = [Row({"Model": name}, [row for run in runs for row in run if row["name"] == name]) for name in names]
    ingredients = [row for run in runs for row in run if row["stage"] == "finetune"]
    soup = next(i for i, row in enumerate(rows) if row.runs[0]["stage"] == "merge")
    rows.insert(soup, Row({"Model": f"ingredients ({len(ingredients)})"}, ingredients))
    return rows


def _figures(
    config: ExperimentConfig, settings: RuntimeSettings, store: Store, variant: Variant
) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Run the algorithm; return labels and figures of the models that a variant shows."""
    trained = algorithm(config, settings)
    models = trained.models()
    if "all" in variant.models:
        chosen = [({"Model": name}, model) for name, _, model in models]
    else:
        by_stage = {stage: model for _, stage, model in models} | {"final": models[-1][2]}
        chosen = [
            (variant.labels | ({"model": label} if label else {}), by_stage[stage])
            for stage, label in variant.models.items()
        ]
    figures = _evaluated(config, settings, store, trained.data, [model for _, model in chosen])
    return [(labels, row) for (labels, _), row in zip(chosen, figures, strict=True)]


def _evaluated(
    config: ExperimentConfig, settings: RuntimeSettings, store: Store, data: Artifact, models: Sequence[Artifact]
) -> list[dict[str, Any]]:
    """Return the figures of models, without the per-class recalls."""
    evaluations = together([evaluation_step(config, data, model) for model in models], settings)
    rows = []
    for model, evaluation in zip(models, evaluations, strict=True):
        figures = {key: value for key, value in store.read_json(evaluation, RECALL).items() if key != "recall"}
        rows.append({"seed": config.seed, "artifact": model.address, "evaluation": evaluation.address, **figures})
    return rows


def _difference(store: Store, by_name: list[dict[str, Any]], first: str, second: str) -> dict[str, Any]:
    """Compare two models of every run, image by image."""
    from btm_core.statistics import paired_differences

    pairs = []
    for models in by_name:
        found = [store.find(models[name]["evaluation"]) for name in (first, second)]
        pairs.append([predictions_of(store, evaluation) for evaluation in found if evaluation is not None])
    targets = pairs[0][0][0]
    differences = paired_differences(targets, [a[1] for a, _ in pairs], [b[1] for _, b in pairs])
    return {"first": first, "second": second, "figures": {k: v.to_json() for k, v in differences.items()}}


def _facts(experiment: ExperimentConfig, run_id: str, seeds: list[int], row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "run_id": run_id,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "split": row.get("split", "test"),
        "split_hash": row.get("split_hash", ""),
        "seeds": seeds,
        "published": experiment.published,
        "experiment": experiment.model_dump(mode="json"),
        "warnings": [],
        "differences": [],
        "runs": [],
        "curves": {},
        "artifacts": [],
    }


def _publish(store: Store, run_id: str, document: dict[str, Any], note: str = "") -> dict[str, Any]:
    """Write the comparison as JSON, Markdown and HTML; return the document with their URLs."""
    texts = {
        "comparison.json": json.dumps(document, indent=1),
        "comparison.md": comparison_markdown(document),
        "comparison.html": comparison_html(document, curve_charts(document["curves"]), note),
    }
    urls = {name: store.write(text.encode(), "runs", run_id, name) for name, text in texts.items()}
    return document | {"report": urls["comparison.html"], "markdown": urls["comparison.md"]}


def _curves(shares: list[float], rows: list[dict[str, Any]], union: dict[str, Any] | None) -> dict[str, Any]:
    """Return what `btm_core.comparison.curve_charts` draws of one path."""
    names = ("h_mean", "g_mean")
    level = None if union is None else {name: union[name] for name in names}
    return {"lambda": shares, **{name: [row[name] for row in rows] for name in names}, "level": level}

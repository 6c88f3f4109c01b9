"""The plan as one JSON document: data, network, stages, time, storage, and what is worth a second look."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from btm_core.config import ExperimentConfig
from btm_core.data.catalog import Catalog
from btm_core.data.long_tail import class_counts, profile
from btm_core.planning import Measurement, cautions, network_size
from btm_core.sampling import shortfall
from btm_core.storage import Store
from flows.plan.timing import Place, Timing, probe
from flows.plan.walk import Planned, Walk
from tasks.data import PrepareData
from tasks.evaluate import Evaluate
from tasks.finetune import pack_size
from tasks.sample import SampleSubset
from tasks.saved_states import STATES
from tasks.settings import RuntimeSettings

__all__ = ["plan_document"]

STAGES = ("data", "pretrain", "fc", "sample", "finetune", "merge", "post_train", "evaluate")
MODELS = ("pretrain", "fc", "finetune", "merge", "post_train")
"""Stages whose artifact is a checkpoint."""
WORST = 5
"""Classes with the fewest images that are named."""
Past = Callable[[str], Sequence[Measurement]]


def plan_document(
    experiment: ExperimentConfig,
    settings: RuntimeSettings,
    catalog: Catalog,
    walk: Walk,
    past: Past,
    base: ExperimentConfig | None,
    *,
    probing: bool = False,
) -> dict[str, Any]:
    """Return the plan. `past` gives what was measured of a stage, newest first; `base` is the preset behind it all.

    With `probing`, stages of whose like nothing was measured are measured now.
    """
    store = Store(settings.store_url)
    timing = Timing(experiment, settings, catalog, walk, past)
    if probing:
        now = probe(timing, experiment, settings, walk)

        def measured(stage: str) -> list[Measurement]:
            return [*(one for one in now if one.conditions.stage == stage), *past(stage)]

        timing = Timing(experiment, settings, catalog, walk, measured)
    size = network_size(experiment.model.backbone, catalog.num_classes, experiment.data.input.channels)
    stages = [_stage(name, own, timing) for name in STAGES if (own := walk.steps(name))]
    storage = _storage(experiment, settings, catalog, walk, timing, size.parameters, size.checkpoint_bytes)
    storage["free_bytes"] = store.free_bytes()
    validation = catalog.validation
    held = None if validation is None else class_counts(validation.labels, catalog.num_classes)
    found = cautions(experiment, base, catalog.train_counts, held, storage["adds_bytes"], storage["free_bytes"])
    return {
        "name": experiment.name,
        "seed": experiment.seed,
        "store": store.url,
        "engine": settings.engine,
        "known": not walk.unread,
        "unread": {"files": len(walk.unread), "bytes": sum(walk.unread.values())},
        "to_train": [row["stage"] for row in stages if row["trains"] and row["to_do"]],
        "to_make": [row["stage"] for row in stages if row["to_do"]],
        "data": _data(experiment, catalog),
        "network": {"backbone": experiment.model.backbone, "precision": experiment.model.precision, **asdict(size)},
        "subsets": _subsets(experiment, catalog, timing),
        "stages": stages,
        "time": _time(stages),
        "storage": storage,
        "warnings": [asdict(caution) for caution in found],
    }


def _data(experiment: ExperimentConfig, catalog: Catalog) -> dict[str, Any]:
    return {
        "format": experiment.data.format,
        "root": catalog.root,
        "size": experiment.data.input.size,
        "channels": experiment.data.input.channels,
        "profile": asdict(profile(catalog.train_counts, catalog.uncarved_counts)),
        "splits": {split.name: len(split) for split in catalog.splits},
        "carved": catalog.carved,
    }


def _subsets(experiment: ExperimentConfig, catalog: Catalog, timing: Timing) -> dict[str, Any]:
    counts, shots = catalog.train_counts, experiment.sampling.shots
    short = sorted(shortfall(counts, shots).tolist(), key=lambda c: (counts[c], c))
    return {
        "num_subsets": experiment.sampling.num_subsets,
        "shots": shots,
        "images": timing.subset_images,
        "short_classes": len(short),
        "worst": [{"class": catalog.class_names[c], "images": int(counts[c])} for c in short[:WORST]],
        "listed": bool(experiment.sampling.lists),
    }


def _stage(name: str, planned: Sequence[Planned], timing: Timing) -> dict[str, Any]:
    """Return a stage's row: how many steps, what is there, and what there is to do."""
    left = [one for one in planned if one.state != "found"]
    example = (left or planned)[0]
    load, place = timing.workload(example.step), timing.place(example.step)
    loads = [(one, timing.workload(one.step)) for one in left]
    steps = sum(w.optimizer_steps - one.epochs_done * w.batches_per_epoch for one, w in loads if w and w.trains)
    trains = load is not None and load.trains
    row: dict[str, Any] = {
        "stage": name,
        "trains": trains,
        "steps": len(planned),
        "found": len(planned) - len(left),
        "to_do": len(left),
        "epochs": load.epochs if load is not None and trains else None,
        "batch_size": load.batch_size if load is not None and name != "data" else None,
        "optimizer_steps": steps,
        "images": sum(timing.images_left(one) for one in left),
        "where": place.text,
        "workers": place.workers,
        "packs": _largest_pack(left) if name == "finetune" else 1,
        "items": [_item(one, timing) for one in planned],
    }
    return row | _estimate(left, timing, place)


def _largest_pack(left: Sequence[Planned]) -> int:
    packs = [(one.turn, one.pack) for one in left]
    return max((packs.count(pack) for pack in set(packs)), default=1)


def _item(one: Planned, timing: Timing) -> dict[str, Any]:
    load = timing.workload(one.step)
    return {
        "name": one.step.readable,
        "state": one.state,
        "address": one.step.address if one.state == "found" else None,
        "epochs_done": one.epochs_done,
        "epochs": load.epochs if load is not None and load.trains else None,
    }


def _estimate(left: Sequence[Planned], timing: Timing, place: Place) -> dict[str, Any]:
    """Return how long a stage takes, and where that is known from; all of it None where it is not."""
    nothing = {"seconds": 0.0, "hours": 0.0, "wall_seconds": 0.0, "device": place.device, "estimate": None}
    if not left:
        return nothing
    rates = [rate for one in left if (rate := timing.rate(one.step)) is not None]
    if len(rates) < len(left):
        return nothing | dict.fromkeys(("seconds", "hours", "wall_seconds"))
    images = [timing.images_left(one) for one in left]
    seconds = sum(rate.seconds * count for rate, count in zip(rates, images, strict=True))
    rate = rates[0]
    device, devices = place.device, place.devices
    if device is None:  # the cluster's to choose: as where it was measured
        device = rate.conditions.device
        devices = (rate.conditions.threads or 1) if device == "cpu" else devices
    return {
        "seconds": seconds,
        "hours": seconds * devices / 3600,
        "wall_seconds": timing.wall_seconds(left),
        "device": device,
        "estimate": {
            "images_per_second": 1 / rate.seconds if rate.seconds else None,
            "slowest": 1 / rate.slowest if rate.slowest else None,
            "fastest": 1 / rate.fastest if rate.fastest else None,
            "sources": list(rate.sources),
            "differs": list(rate.differs),
        },
    }


def _time(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums over stages, and which stages nobody can tell; without those that train there is no sum."""
    missing = [row["stage"] for row in stages if row["seconds"] is None]
    hours = {
        unit: sum(row["hours"] for row in stages if row["hours"] and (row["device"] == "cuda") == (unit == "gpu_hours"))
        for unit in ("gpu_hours", "cpu_hours")
    }
    walls = [row["wall_seconds"] for row in stages if row["stage"] not in missing]
    unknown = any(row["seconds"] is None and row["trains"] for row in stages)
    return {
        "missing": missing,
        "gpu_hours": None if unknown else hours["gpu_hours"],
        "cpu_hours": None if unknown else hours["cpu_hours"],
        "wall_seconds": None if unknown or None in walls else sum(walls),
    }


def _storage(
    experiment: ExperimentConfig,
    settings: RuntimeSettings,
    catalog: Catalog,
    walk: Walk,
    timing: Timing,
    parameters: int,
    checkpoint: int,
) -> dict[str, Any]:
    """Return what the run adds to the store, in bytes: as far as that follows from sizes; a report comes on top."""
    left = [one for one in walk.planned if one.state != "found"]
    models = sum(one.step.stage in MODELS for one in left)
    view = experiment.data.input
    images = sum(map(len, catalog.splits))
    pixels = images * view.channels * view.size**2 if view.decode_once else 0
    data = sum(pixels or images * 32 for one in left if isinstance(one.step, PrepareData))
    digits = len(str(len(catalog.train))) + 2
    subsets = sum(timing.subset_images * digits for one in left if isinstance(one.step, SampleSubset))
    loads = [timing.workload(one.step) for one in left if isinstance(one.step, Evaluate)]
    evaluations = sum(20 * load.images for load in loads if load is not None)
    beside = 0
    trained = [one for one in left if one.step.in_worker and one.step.stage in MODELS and one.step.stage != "merge"]
    if trained:
        workers = timing.place(trained[-1].step).workers or 1
        beside = min(workers * pack_size(experiment, settings), len(trained))
    slots = 2 if experiment.pretrain.optimizer == "adam" else 1
    return {
        "models": models,
        "checkpoint_bytes": checkpoint,
        "models_bytes": models * checkpoint,
        "data_bytes": data,
        "subsets_bytes": subsets,
        "evaluations_bytes": evaluations,
        "adds_bytes": models * checkpoint + data + subsets + evaluations,
        "while_training_bytes": len(STATES) * beside * (checkpoint + 4 * parameters * slots),
    }

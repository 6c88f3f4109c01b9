"""Where each step would run, how much it has to do there, and how long that takes by what was measured before."""

import logging
import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from btm_core.config import ExperimentConfig
from btm_core.data.catalog import Catalog
from btm_core.errors import ConfigError
from btm_core.planning import (
    Conditions,
    Measurement,
    Rate,
    Workload,
    conditions_of,
    forward,
    makespan,
    post_training,
    rate_of,
    subset_images,
    training,
)
from flows.plan.probing import probed
from flows.plan.walk import Planned, Walk
from tasks.data import PrepareData
from tasks.evaluate import Evaluate
from tasks.finetune import Finetune
from tasks.post_train import PostTrain
from tasks.pretrain import ImportStage1, Pretrain, RetrainHead
from tasks.probe import Probe
from tasks.settings import RuntimeSettings
from tasks.step import Step
from tasks.system import gpus

__all__ = ["Place", "Timing", "place_of", "probe"]

log = logging.getLogger("tasks.plan")

PROBED = ("pretrain", "fc", "finetune", "post_train", "evaluate")
TIMED = ("data", "pretrain", "fc", "finetune", "post_train", "evaluate")
"""Stages whose time goes with images; to sample and to merge takes seconds, and is not estimated."""


@dataclass(frozen=True)
class Place:
    """Where steps of a kind run. What is None is the cluster's to decide.

    - device: cpu or cuda; devices: CPU threads, or GPUs, that one step uses.
    - workers: how many run beside each other.
    """

    text: str
    device: str | None
    devices: float
    workers: int | None


def place_of(step: Step, settings: RuntimeSettings) -> Place:
    """Return where a step runs."""
    if not step.in_worker:
        return Place("this process", "cpu", 1, 1)
    processes = settings.pretrain_gpus if step.on_several_gpus else 1
    if settings.engine != "local":
        name = "Ray" if settings.engine == "ray" else f"work pool {settings.work_pool}"
        return Place(name, "cpu" if settings.device == "cpu" else None, processes, settings.workers)
    slots = settings.slots()
    workers = len(slots) if step.runs_beside_others else 1
    if slots[0] is not None:
        kind = " or ".join(sorted({gpu.name for gpu in gpus()}) or ["GPU"])
        count = processes if processes > 1 else workers
        share = settings.gpu_share if step.runs_beside_others else 1.0
        return Place(f"{count} x {kind}" if count > 1 else kind, "cuda", processes * share, workers)
    threads = settings.finetune_threads if step.runs_beside_others else settings.threads
    beside = f"{workers} x " if workers > 1 else ""
    return Place(f"CPU, {beside}{threads} thread{'s' * (threads > 1)}", "cpu", threads, workers)


class Timing:
    """How much the steps of a walk have to do, and how long that takes.

    `past` returns what was measured of a stage, newest first.
    """

    def __init__(
        self,
        experiment: ExperimentConfig,
        settings: RuntimeSettings,
        catalog: Catalog,
        walk: Walk,
        past: Callable[[str], Sequence[Measurement]],
    ):
        self._experiment, self._settings, self._catalog, self._walk = experiment, settings, catalog, walk
        self._past = past
        self._places: dict[type[Step], Place] = {}
        self._rates: dict[Conditions, Rate | None] = {}

    def place(self, step: Step) -> Place:
        """Return where a step runs; the driver is asked once for each kind of step."""
        kind = type(step)
        if kind not in self._places:
            self._places[kind] = place_of(step, self._settings)
        return self._places[kind]

    @cached_property
    def _packs(self) -> dict[str, int]:
        """How many fine-tunes are trained at once, by the address of each of them that is to be done."""
        left = [one for one in self._walk.steps("finetune") if one.state != "found"]
        sizes = Counter((one.turn, one.pack) for one in left)
        return {one.step.address: sizes[one.turn, one.pack] for one in left}

    @cached_property
    def _gpu_name(self) -> str | None:
        return next((gpu.name for gpu in gpus()), None)

    @cached_property
    def subset_images(self) -> int:
        """Images of a balanced subset; of given lists, the mean."""
        lists = self._experiment.sampling.lists
        if not lists:
            return subset_images(self._catalog.train_counts, self._experiment.sampling.shots)
        from btm_core.storage import read_bytes

        return round(sum(len(read_bytes(url).split(b"\n")) - 1 for url in lists) / len(lists))

    @cached_property
    def train_counts(self) -> list[int]:
        """Training images of each class."""
        counts: list[int] = self._catalog.train_counts.tolist()
        return counts

    def workload(self, step: Step) -> Workload | None:
        """Return what a step has to do; None if that does not go with images."""
        images = len(self._catalog.train)
        if isinstance(step, Pretrain | RetrainHead):
            return training(step.config, images)
        if isinstance(step, Finetune):
            return training(step.config, self.subset_images)
        if isinstance(step, PostTrain):
            return post_training(step.config, images)
        if isinstance(step, Evaluate):
            split = self._catalog.test if step.split == "test" else self._catalog.validation
            return forward(0 if split is None else len(split))
        if isinstance(step, PrepareData):
            return forward(sum(map(len, self._catalog.splits)))
        return None

    def rate(self, step: Step) -> Rate | None:
        """Return seconds an image by the measurements that fit a step best; None if none does."""
        if step.stage not in TIMED:
            return None
        wanted = self.conditions(step)
        if wanted not in self._rates:
            self._rates[wanted] = rate_of(wanted, self._past(step.stage))
        return self._rates[wanted]

    def conditions(self, step: Step) -> Conditions:
        """Return the conditions that a step would run under."""
        if isinstance(step, PrepareData):
            return Conditions("data", "", "", step.size or 0, step.channels, "cpu", cores=os.cpu_count())
        place = self.place(step)
        on_gpu = place.device == "cuda"
        host: dict[str, Any] = {
            "gpu": "0" if on_gpu else None,
            "threads": int(place.devices),
            "processes": self._settings.pretrain_gpus if step.on_several_gpus else 1,
            "pack": self._packs.get(step.address, 1),
        }
        if self._settings.engine == "local":
            host |= {"cores": os.cpu_count(), "machine": platform.machine()}
            host |= {"gpu_name": self._gpu_name} if on_gpu and self._gpu_name else {}
        config = step.identity()
        if isinstance(step, Evaluate):
            config |= {"model": None, "backbone": self._experiment.model.backbone}
        wanted = conditions_of(config, host, step.stage)
        if place.device is None:
            return replace(wanted, device=None, threads=None)
        return wanted

    def images_left(self, planned: Planned) -> int:
        """Return the images that a step has still to be shown."""
        load = self.workload(planned.step)
        if load is None or planned.state == "found":
            return 0
        return load.images - planned.epochs_done * load.images_per_epoch

    def seconds(self, planned: Planned) -> float | None:
        """Return how long one step takes where it runs; None if nobody knows."""
        rate = self.rate(planned.step)
        return None if rate is None else rate.seconds * self.images_left(planned)

    def wall_seconds(self, planned: Sequence[Planned]) -> float | None:
        """Return how long steps take beside each other, turn after turn; None if nobody knows."""
        total = 0.0
        for turn in sorted({one.turn for one in planned}):
            packs: dict[int, float] = {}
            own = [one for one in planned if one.turn == turn and one.state != "found"]
            for one in own:
                seconds = self.seconds(one)
                if seconds is None:
                    return None
                packs[one.pack] = packs.get(one.pack, 0.0) + seconds
            if packs:
                workers = self.place(own[0].step).workers
                if workers is None and len(packs) > 1:
                    return None
                total += makespan(sorted(packs.values(), reverse=True), workers or 1)
        return total


def probe(timing: Timing, experiment: ExperimentConfig, settings: RuntimeSettings, walk: Walk) -> list[Measurement]:
    """Measure, on this machine, the stages that are to be done and of whose like nothing was measured yet.

    Raises ConfigError where the stages run elsewhere.
    """
    if settings.engine != "local":
        raise ConfigError(
            f"--probe measures on this machine, and engine {settings.engine} runs on others; leave it out: the first "
            "run there tells how long the next ones take"
        )
    lacking: dict[str, Step] = {}
    for one in walk.planned:
        if one.state != "found" and one.step.stage in PROBED and timing.rate(one.step) is None:
            lacking.setdefault(one.step.stage, one.step)
    lacking = {stage: step for stage, step in lacking.items() if not isinstance(step, ImportStage1)}
    if not lacking:
        return []
    log.info("measuring a few steps of %s", ", ".join(lacking))
    configs = {stage: getattr(experiment, stage) for stage in lacking if stage != "evaluate"}
    found = probed(
        Probe(
            view=experiment.data.input,
            model=experiment.model,
            train_counts=tuple(timing.train_counts),
            evaluate=experiment.evaluation.precision if "evaluate" in lacking else None,
            threads={stage: max(1, int(timing.place(step).devices)) for stage, step in lacking.items()},
            **configs,
        ),
        settings,
    )
    measured = []
    for stage, told in found.items():
        load, steps, batch = timing.workload(lacking[stage]), int(told["steps"]), int(told["batch_size"])
        cut = f" (cut from {load.batch_size})" if load is not None and batch < load.batch_size else ""
        source = f"a probe of {steps} step{'s' * (steps > 1)} of {batch} images{cut} of noise, one at a time"
        wanted = replace(timing.conditions(lacking[stage]), processes=1, pack=1)
        measured.append(Measurement(wanted, int(told["images"]), told["seconds"], source))
    return measured

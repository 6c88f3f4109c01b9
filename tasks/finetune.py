"""Balanced training of the whole network on one subset (Algorithm 1, line 3)."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from btm_core.config import ExperimentConfig, FinetuneConfig
from btm_core.storage import Artifact
from tasks.data import bring_near
from tasks.sample import SUBSET
from tasks.settings import RuntimeSettings
from tasks.stages import TrainingStep
from tasks.workspace import Workspace, train_together

__all__ = ["Finetune", "pack_size"]

SMALL_BACKBONES = ("small_cnn", "resnet20", "resnet32", "resnet44", "resnet56")
SMALL_IMAGE = 64
LARGEST_PACK = 16


class Finetune(TrainingStep):
    """Fine-tune `base` on balanced subset number `index`: one ingredient of the soup."""

    kind: Literal["finetune"] = "finetune"
    stage: ClassVar[str] = "finetune"
    runs_beside_others: ClassVar[bool] = True
    done_together: ClassVar[bool] = True

    base: Artifact
    subset: Artifact
    index: int
    config: FinetuneConfig

    @property
    def readable(self) -> str:
        """Number of the subset."""
        return f"subset-{self.index:02d}"

    def run(self, work: Workspace) -> None:
        """Train on the subset, and write the classifier."""
        list(self.run_together([self], [work]))

    @classmethod
    def run_together(cls, steps: "Sequence[Finetune]", works: Sequence[Workspace]) -> Iterator[int]:
        """Train several networks, each on its subset, in as few packs as memory allows, and write the classifiers."""
        import torch

        from btm_core.training import part_trainer

        models, trainers = [], []
        for step, work in zip(steps, works, strict=True):
            dataset = step.dataset(work)
            models.append(step.load_model(work, dataset, step.base))
            drawn = json.loads(work.fetch(step.subset, SUBSET).read_text())
            trainer = part_trainer(
                models[-1],
                step.config.train,
                bring_near(work, dataset.train.take(torch.tensor(drawn["positions"]))),
                step.config,
                seed=("finetune", step.seed, step.index),
                precision=step.model.precision,
                device=work.device,
            )
            trainers.append(trainer)
        for number in train_together(works, trainers):
            step = steps[number]
            step.save_model(works[number], dataset, models[number], base=step.base.digest, subset=step.subset.digest)
            yield number


def pack_size(experiment: ExperimentConfig, settings: RuntimeSettings) -> int:
    """Return how many fine-tunes one worker is to train at once, whatever fits of them into its memory.

    A GPU is idle much of a small network's step, a CPU never is: `settings.pack` if it is set; else, on the GPUs of
    this machine, for small networks and images of up to 64 pixels, each worker's part of them, 16 at most; else 1.
    """
    count = experiment.sampling.num_subsets
    if settings.pack is not None:
        return min(settings.pack, count)
    small = experiment.model.backbone in SMALL_BACKBONES and experiment.data.input.size <= SMALL_IMAGE
    if not small or settings.engine != "local" or settings.gpu_count() == 0:
        return 1
    return min(math.ceil(count / len(settings.slots())), LARGEST_PACK)

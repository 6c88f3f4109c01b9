"""Balanced training of the whole network on one subset (Algorithm 1, line 3)."""

import json
from typing import ClassVar, Literal

from btm_core.config import FinetuneConfig
from btm_core.storage import Artifact
from tasks.data import bring_near
from tasks.sample import SUBSET
from tasks.stages import TrainingStep
from tasks.step import Workspace

__all__ = ["Finetune"]


class Finetune(TrainingStep):
    """Fine-tune `base` on balanced subset number `index`: one ingredient of the soup."""

    kind: Literal["finetune"] = "finetune"
    stage: ClassVar[str] = "finetune"
    runs_beside_others: ClassVar[bool] = True

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
        import torch

        from btm_core.training import part_trainer

        dataset = self.dataset(work)
        model = self.load_model(work, dataset, self.base)
        drawn = json.loads(work.fetch(self.subset, SUBSET).read_text())
        subset = bring_near(work, dataset.train.take(torch.tensor(drawn["positions"])))
        trainer = part_trainer(
            model,
            self.config.train,
            subset,
            self.config,
            seed=("finetune", self.seed, self.index),
            precision=self.model.precision,
            device=work.device,
        )
        work.train(trainer)
        self.save_model(work, dataset, model, base=self.base.digest, subset=self.subset.digest)

"""Measuring how fast a network trains, in a worker like those that will train it; nothing of it is kept."""

import json
from dataclasses import asdict
from typing import ClassVar, Literal

from btm_core.config import (
    FcConfig,
    FinetuneConfig,
    InputConfig,
    ModelConfig,
    PostTrainConfig,
    PretrainConfig,
)
from tasks.step import Step
from tasks.workspace import Workspace

__all__ = ["MEASURED", "Probe"]

MEASURED = "measured.json"


class Probe(Step):
    """Measure a few steps of stages, each on as many threads as it will have."""

    kind: Literal["probe"] = "probe"
    stage: ClassVar[str] = "probe"

    view: InputConfig
    model: ModelConfig
    train_counts: tuple[int, ...]
    pretrain: PretrainConfig | None = None
    fc: FcConfig | None = None
    finetune: FinetuneConfig | None = None
    post_train: PostTrainConfig | None = None
    evaluate: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of predictions, if these are to be measured."""
    threads: dict[str, int]
    """On a CPU, of each stage."""

    @property
    def readable(self) -> str:
        """Architecture."""
        return str(self.model.backbone)

    def run(self, work: Workspace) -> None:
        """Write what was measured, by stage."""
        import torch

        from btm_core.planning.probing import probe_evaluation, probe_training

        counts = torch.tensor(self.train_counts)
        found = {}
        for stage in ("pretrain", "fc", "finetune", "post_train"):
            config = getattr(self, stage)
            if config is not None:
                torch.set_num_threads(self.threads[stage])
                found[stage] = probe_training(config, self.view, self.model, counts, work.device)
        if self.evaluate is not None:
            torch.set_num_threads(self.threads["evaluate"])
            found["evaluate"] = probe_evaluation(self.view, self.model, len(counts), self.evaluate, work.device)
        documents = {stage: asdict(one) for stage, one in found.items()}
        (work.output / MEASURED).write_text(json.dumps(documents))

"""Measuring how fast a network trains, in a worker like those that will train it; nothing of it is kept."""

import json
import tempfile
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
from btm_core.storage import Artifact, Store
from tasks.settings import RuntimeSettings
from tasks.step import Step
from tasks.workspace import Workspace

__all__ = ["Probe", "probed"]

MEASURED = "measured.json"
DEADLINE_HOURS = 0.2


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


def probed(step: Probe, settings: RuntimeSettings) -> dict[str, dict[str, float]]:
    """Return steps, batch_size, images and seconds of each stage, measured in a worker of this machine.

    Raises ConfigError if a batch does not fit into the GPU; WorkerError if the worker dies of it.
    """
    from tasks.engines.pool import pool_of, run_in_pool

    with tempfile.TemporaryDirectory(prefix="btm-") as folder:
        own = settings.model_copy(
            update={"store": folder, "workers": 1, "pretrain_gpus": 1, "deadline_hours": DEADLINE_HOURS}
        )
        try:
            events = list(run_in_pool([step], own))
        finally:
            pool_of(own).get().kill()
        [done] = [event for event in events if event["event"] == "done"]
        found: dict[str, dict[str, float]] = Store(folder).read_json(Artifact(**done["artifact"]), MEASURED)
        return found

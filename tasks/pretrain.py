"""Stage 1: train without handling imbalance, or take a checkpoint; and the FC stage (section 3.3)."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from btm_core.config import NOT_IDENTITY, FcConfig, PretrainConfig
from btm_core.config.methods import check_processes
from btm_core.errors import CheckpointError
from btm_core.storage import Artifact, fetch_file
from tasks.distributed import launch
from tasks.stages import TrainingStep
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from btm_core.distributed import Group

__all__ = ["ImportStage1", "Pretrain", "RetrainHead"]


class Pretrain(TrainingStep):
    """Train on the long-tailed training set (Algorithm 1, line 1), by the method that the configuration names."""

    kind: Literal["pretrain"] = "pretrain"
    stage: ClassVar[str] = "pretrain"
    on_several_gpus: ClassVar[bool] = True

    config: PretrainConfig
    initial_content: str | None = None
    """sha256 of the file that the backbone starts from, if any."""

    @property
    def readable(self) -> str:
        """Architecture and method."""
        return f"{self.model.backbone}-{self.config.method.name.replace('_', '-')}"

    def run(self, work: Workspace) -> None:
        """Train here, or by several processes that call `train`."""
        if work.processes == 1:
            self.train(work)
        else:
            check_processes(self.config.method, work.processes)
            launch(self, work)

    def train(self, work: Workspace, group: "Group | None" = None) -> None:
        """Train, and write the classifier."""
        from btm_core.checkpoints import load_backbone
        from btm_core.methods import stage1_trainer

        dataset = self.dataset(work)
        model = self.new_model(dataset)
        lineage = {}
        if self.config.initial is not None and self.initial_content is not None:
            local = fetch_checked(work, self.config.initial, self.initial_content)
            load_backbone(model, local, self.config.fresh_last_block)
            lineage = {"initial": self.initial_content}
        if work.compiled:  # one graph for each size of batch: a graph for any size would be slower
            model.backbone.compile(dynamic=False)
        trainer = stage1_trainer(
            model,
            dataset.train,
            dataset.train_counts,
            self.config,
            seed=self.seed,
            precision=self.model.precision,
            device=work.device,
            group=group,
        )
        work.train(trainer)
        if work.rank == 0:
            self.save_model(work, dataset, model, **lineage)


class ImportStage1(TrainingStep):
    """Take a stage-1 checkpoint in place of training one."""

    kind: Literal["import"] = "import"
    stage: ClassVar[str] = "pretrain"
    in_worker: ClassVar[bool] = False  # the file may lie where the flow runs, and nowhere else

    content: str
    """sha256 of the checkpoint."""
    source: str = Field(json_schema_extra=NOT_IDENTITY)

    @property
    def readable(self) -> str:
        """Architecture."""
        return f"{self.model.backbone}-imported"

    def run(self, work: Workspace) -> None:
        """Check that the checkpoint fits, and write it as this step's classifier."""
        from btm_core.checkpoints import check_classes, load_into

        dataset = self.dataset(work)
        model = self.new_model(dataset)
        local = fetch_checked(work, self.source, self.content)
        load_into(model, local)
        check_classes(local, dataset.class_names)
        self.save_model(work, dataset, model, checkpoint=self.content)


class RetrainHead(TrainingStep):
    """FC: re-train only the head with cross-entropy on all training data, for a base that handled imbalance."""

    kind: Literal["fc"] = "fc"
    stage: ClassVar[str] = "fc"

    base: Artifact
    config: FcConfig

    @property
    def readable(self) -> str:
        """Architecture."""
        return str(self.model.backbone)

    def run(self, work: Workspace) -> None:
        """Train the head, and write the classifier."""
        from btm_core.training import part_trainer

        dataset = self.dataset(work)
        model = self.load_model(work, dataset, self.base)
        trainer = part_trainer(
            model,
            "head",
            dataset.train,
            self.config,
            seed=("fc", self.seed),
            precision=self.model.precision,
            device=work.device,
        )
        work.train(trainer)
        self.save_model(work, dataset, model, base=self.base.digest)


def fetch_checked(work: Workspace, url: str, content: str) -> Path:
    """Return a local copy of a file whose sha256 is `content`."""
    local = work.scratch / Path(url).name
    if fetch_file(url, local)[0] != content:
        raise CheckpointError(f"{url} changed while this run was under way; run again")
    return local

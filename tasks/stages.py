"""What the training steps share: their fields, and how a classifier comes out of and goes into an artifact."""

from typing import TYPE_CHECKING

from pydantic import Field

from btm_core.config import NOT_IDENTITY, InputConfig, ModelConfig
from btm_core.storage import Artifact
from tasks.data import load_dataset
from tasks.step import Step
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from btm_core.data.dataset import Dataset
    from btm_core.models import Classifier

__all__ = ["WEIGHTS", "TrainingStep"]

WEIGHTS = "model.safetensors"


class TrainingStep(Step):
    """A step that makes a classifier from a data set."""

    data: Artifact
    view: InputConfig
    """How images are shown to the network; the pixels themselves are `data`."""
    model: ModelConfig
    seed: int
    root: str | None = Field(None, json_schema_extra=NOT_IDENTITY)
    """Where image files lie, if `data` does not hold their pixels."""

    def dataset(self, work: Workspace) -> "Dataset":
        """Load the data set."""
        return load_dataset(work, self.data, self.view, self.root)

    def new_model(self, dataset: "Dataset") -> "Classifier":
        """Build the classifier with fresh weights."""
        from btm_core.models import build_model

        return build_model(self.model.backbone, dataset.num_classes, self.view.channels, self.seed)

    def load_model(self, work: Workspace, dataset: "Dataset", base: Artifact) -> "Classifier":
        """Build the classifier and load the weights of another step."""
        from btm_core.checkpoints import load_into

        model = self.new_model(dataset)
        load_into(model, work.fetch(base, WEIGHTS))
        return model

    def save_model(self, work: Workspace, dataset: "Dataset", model: "Classifier", **lineage: str) -> None:
        """Write the classifier as this step's artifact."""
        from btm_core.checkpoints import CheckpointMetadata, save_checkpoint

        metadata = CheckpointMetadata(
            backbone=self.model.backbone,
            channels=self.view.channels,
            size=self.view.size,
            mean=self.view.mean,
            std=self.view.std,
            class_names=dataset.class_names,
            train_counts=tuple(dataset.train_counts.tolist()),
            stage=self.stage,
            lineage={"data": self.data.digest, **lineage},
        )
        save_checkpoint(model, work.output / WEIGHTS, metadata)

"""Evaluation of a model on the test split, or on the validation split."""

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from btm_core.config import NOT_IDENTITY, InputConfig
from btm_core.errors import ArtifactError, DataError
from btm_core.storage import Artifact, Store
from tasks.data import DESCRIPTION, describe, group_counts, load_dataset
from tasks.stages import WEIGHTS
from tasks.step import Step, Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from btm_core.evidence import Evidence

__all__ = ["PREDICTIONS", "RECALL", "Evaluate", "evidence_of", "predictions_of"]

PREDICTIONS, RECALL = "predictions.safetensors", "recall.json"


class Evaluate(Step):
    """Predict a split with a model, and report per-class recall."""

    kind: Literal["evaluate"] = "evaluate"
    stage: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2

    data: Artifact
    view: InputConfig
    model: Artifact
    split: Literal["test", "validation"] = "test"
    root: str | None = Field(None, json_schema_extra=NOT_IDENTITY)

    @property
    def readable(self) -> str:
        """The model's own address, as one word."""
        name = self.model.address.rsplit("-", 1)[0].replace("/", "-")
        return name if self.split == "test" else f"{name}-{self.split}"

    def run(self, work: Workspace) -> None:
        """Write predictions and the recall report."""
        import torch
        from safetensors.torch import save_file

        from btm_core.checkpoints import load_checkpoint
        from btm_core.evaluation import predict
        from btm_core.metrics import recall_report

        dataset = load_dataset(work, self.data, self.view, self.root)
        images = dataset.test if self.split == "test" else dataset.validation
        if images is None:
            raise DataError("there is no validation split to evaluate on; set data.validation or validation_per_class")
        model, _ = load_checkpoint(work.fetch(self.model, WEIGHTS))
        classes, confidences = predict(model, images, work.device)
        description = json.loads(work.fetch(self.data, DESCRIPTION).read_text())
        report = recall_report(
            images.labels.numpy(),
            classes,
            group_counts(description),
            absent="refuse" if self.split == "test" else "skip",
        )
        save_file(
            {
                "predicted": torch.from_numpy(classes),
                "confidence": torch.from_numpy(confidences),
                "target": images.labels,
            },
            work.output / PREDICTIONS,
        )
        named = {"split": self.split, "split_hash": description["splits"][self.split]["hash"]}
        recall = [None if math.isnan(value) else value for value in report.recall.tolist()]
        (work.output / RECALL).write_text(json.dumps({**named, **report.summary(), "recall": recall}, indent=1))


def predictions_of(store: Store, evaluation: Artifact) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Return targets (N,) and predictions (N,) of an evaluation."""
    from btm_core.tensor_files import load_arrays

    with tempfile.TemporaryDirectory(prefix="btm-") as folder:
        tensors = load_arrays(store.fetch(evaluation, PREDICTIONS, Path(folder)))
        return tensors["target"], tensors["predicted"]


def evidence_of(store: Store, evaluation: Artifact) -> "Evidence":
    """Return what a model predicted, with the facts of the data it was evaluated on. Raises StoreError."""
    import numpy as np

    from btm_core.evidence import Evidence

    manifest = store.manifest(evaluation.address)
    data = store.find(manifest.parents["data"]) if manifest is not None else None
    if data is None:
        raise ArtifactError(f"the data of {evaluation.address} are no longer in the store {store.url}")
    description, recall = describe(store, data), store.read_json(evaluation, RECALL)
    targets, predictions = predictions_of(store, evaluation)
    return Evidence(
        split=recall["split"],
        split_hash=recall["split_hash"],
        class_names=tuple(description["class_names"]),
        train_counts=np.asarray(description["train_counts"]),
        group_counts=np.asarray(group_counts(description)),
        targets=targets,
        predictions=predictions,
    )

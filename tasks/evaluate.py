"""Evaluation of a model on the test split, or on the validation split."""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from btm_core.config import NOT_IDENTITY, ExperimentConfig, InputConfig
from btm_core.errors import ArtifactError, DataError
from btm_core.storage import Artifact, Store
from tasks.data import DESCRIPTION, describe, group_counts, load_dataset
from tasks.stages import WEIGHTS
from tasks.step import Step
from tasks.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from btm_core.evidence import Evidence

__all__ = ["PREDICTIONS", "RECALL", "Evaluate", "answers_of", "evaluation_step", "evidence_of", "predictions_of"]

PREDICTIONS, RECALL = "predictions.safetensors", "recall.json"
GROUP_BYTES = 2 * 2**30
"""Weights of the models that are evaluated at once."""


class Evaluate(Step):
    """Predict a split with a model, and report per-class recall."""

    kind: Literal["evaluate"] = "evaluate"
    stage: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2
    runs_beside_others: ClassVar[bool] = True
    done_together: ClassVar[bool] = True

    data: Artifact
    view: InputConfig
    model: Artifact
    split: Literal["test", "validation"] = "test"
    precision: Literal["float32", "bfloat16"] = "float32"
    root: str | None = Field(None, json_schema_extra=NOT_IDENTITY)

    @property
    def readable(self) -> str:
        """The model's own address, as one word."""
        name = self.model.address.rsplit("-", 1)[0].replace("/", "-")
        return name if self.split == "test" else f"{name}-{self.split}"

    def run(self, work: Workspace) -> None:
        """Write predictions and the recall report."""
        list(self.run_together([self], [work]))

    @classmethod
    def run_together(cls, steps: "Sequence[Evaluate]", works: Sequence[Workspace]) -> Iterator[int]:
        """Write those of several models; images of one split are decoded once for as many as GROUP_BYTES hold."""
        from btm_core.checkpoints import load_checkpoint
        from btm_core.evaluation import predict_all

        for numbers in _sharing_images(steps, works):
            group = [(steps[number], works[number]) for number in numbers]
            step, work = group[0]
            dataset = load_dataset(work, step.data, step.view, step.root)
            images = dataset.test if step.split == "test" else dataset.validation
            if images is None:
                raise DataError(
                    "there is no validation split to evaluate on; set data.validation or validation_per_class"
                )
            models = [load_checkpoint(work.fetch(step.model, WEIGHTS))[0] for step, work in group]
            description = json.loads(work.fetch(step.data, DESCRIPTION).read_text())
            answers = predict_all(models, images, work.device, step.precision)
            for (step, work), answer in zip(group, answers, strict=True):
                step.write(work, images.labels, *answer, description)
            yield from numbers

    def write(
        self,
        work: Workspace,
        labels: "Tensor",
        classes: "NDArray[np.int64]",
        confidences: "NDArray[np.float32]",
        description: dict[str, Any],
    ) -> None:
        """Write what a model predicted, (N,) each, and its recall report."""
        import torch
        from safetensors.torch import save_file

        from btm_core.metrics import recall_report

        report = recall_report(
            labels.numpy(), classes, group_counts(description), absent="refuse" if self.split == "test" else "skip"
        )
        predictions = {"predicted": torch.from_numpy(classes), "confidence": torch.from_numpy(confidences)}
        save_file({**predictions, "target": labels}, work.output / PREDICTIONS)
        named = {"split": self.split, "split_hash": description["splits"][self.split]["hash"]}
        recall = [None if math.isnan(value) else value for value in report.recall.tolist()]
        (work.output / RECALL).write_text(json.dumps({**named, **report.summary(), "recall": recall}, indent=1))


def evaluation_step(
    experiment: ExperimentConfig, data: Artifact, model: Artifact, split: Literal["test", "validation"] = "test"
) -> Evaluate:
    """Return the step that evaluates a model as an experiment says."""
    source, precision = experiment.data, experiment.evaluation.precision
    return Evaluate(data=data, view=source.input, model=model, split=split, precision=precision, root=source.root)


def _sharing_images(steps: Sequence[Evaluate], works: Sequence[Workspace]) -> Iterator[list[int]]:
    """Yield the numbers of those that differ in the model alone, as many at a time as have GROUP_BYTES of weights."""
    for _, alike in groupby(range(len(steps)), key=lambda number: steps[number].model_copy(update={"model": None})):
        group: list[int] = []
        size = 0
        for number in alike:
            weights = works[number].fetch(steps[number].model, WEIGHTS).stat().st_size
            if group and size + weights > GROUP_BYTES:
                yield group
                group, size = [], 0
            group.append(number)
            size += weights
        yield group


def answers_of(store: Store, evaluation: Artifact) -> "dict[str, NDArray[Any]]":
    """Return `target`, `predicted` and `confidence` (N,) of an evaluation."""
    from btm_core.tensor_files import load_arrays

    with tempfile.TemporaryDirectory(prefix="btm-") as folder:
        return load_arrays(store.fetch(evaluation, PREDICTIONS, Path(folder)))


def predictions_of(store: Store, evaluation: Artifact) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Return targets (N,) and predictions (N,) of an evaluation."""
    answers = answers_of(store, evaluation)
    return answers["target"], answers["predicted"]


def evidence_of(store: Store, evaluation: Artifact) -> "Evidence":
    """Return what a model predicted, with the facts of the data it was evaluated on. Raises StoreError."""
    import numpy as np

    from btm_core.evidence import Evidence

    manifest = store.manifest(evaluation.address)
    data = store.find(manifest.parents["data"]) if manifest is not None else None
    if data is None:
        raise ArtifactError(f"the data of {evaluation.address} are no longer in the store {store.url}; run it again")
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

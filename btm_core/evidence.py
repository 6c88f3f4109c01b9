"""Evidence: what a model predicted on a split, image by image, with all that a fair comparison with another needs.

N images, C classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from btm_core.errors import CheckpointError, DataError, some_of
from btm_core.metrics import RecallReport, confusions, recall_report, shot_groups
from btm_core.tensor_files import load_arrays, read_header

__all__ = ["Evidence", "obstacles", "require_comparable"]

METADATA_KEY = "btm"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True)

    split: str
    split_hash: str
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Predictions of one model on one split.

    - split, split_hash: name of the split, and the fingerprint of its labels and images.
    - train_counts: (C,) training images a class.
    - group_counts: (C,) the same before a validation split was carved; they say what is many, medium and few.
    - targets, predictions: (N,) classes.
    """

    split: str
    split_hash: str
    class_names: tuple[str, ...]
    train_counts: NDArray[np.int64]
    group_counts: NDArray[np.int64]
    targets: NDArray[np.int64]
    predictions: NDArray[np.int64]

    @cached_property
    def report(self) -> RecallReport:
        """Recall of each class, and its means."""
        return recall_report(self.targets, self.predictions, self.group_counts)

    @cached_property
    def test_counts(self) -> NDArray[np.int64]:
        """(C,) images of the split a class."""
        return np.bincount(self.targets, minlength=len(self.class_names))

    def classes(self) -> list[dict[str, Any]]:
        """Return the facts of every class, in order: class, name, group, train_images, test_images."""
        group_of = {int(c): name for name, mask in shot_groups(self.group_counts).items() for c in np.flatnonzero(mask)}
        images = zip(self.train_counts.tolist(), self.test_counts.tolist(), strict=True)
        return [
            {"class": c, "name": name, "group": group_of[c], "train_images": trained, "test_images": tested}
            for c, (name, (trained, tested)) in enumerate(zip(self.class_names, images, strict=True))
        ]

    def lowest(self, count: int) -> list[dict[str, Any]]:
        """Return the facts of so many classes of the lowest recall, with what their images are taken for."""
        order = np.lexsort((np.arange(len(self.class_names)), self.report.recall))[:count]
        return [
            {
                "class": c,
                "name": self.class_names[c],
                "train_images": int(self.train_counts[c]),
                "test_images": int(self.test_counts[c]),
                "recall": float(self.report.recall[c]),
                "taken_for": [
                    {"class": other, "name": self.class_names[other], "images": images}
                    for other, images in confusions(self.targets, self.predictions, c)
                ],
            }
            for c in order.tolist()
        ]

    def save(self, path: Path) -> None:
        """Write it as safetensors; equal evidence gives equal bytes."""
        from safetensors.numpy import save_file

        arrays = {name: getattr(self, name) for name in ("train_counts", "group_counts", "targets", "predictions")}
        facts = _Facts(split=self.split, split_hash=self.split_hash, class_names=self.class_names)
        save_file(arrays, path, {METADATA_KEY: facts.model_dump_json()})

    @classmethod
    def load(cls, path: Path) -> "Evidence":
        """Read what `save` wrote. Raises CheckpointError if the file is anything else."""
        arrays = load_arrays(path)
        with path.open("rb") as file:
            text = read_header(file, str(path)).metadata.get(METADATA_KEY, "{}")
        try:
            facts = _Facts.model_validate_json(text)
            found = cls(facts.split, facts.split_hash, facts.class_names, **arrays)
            classes = (len(facts.class_names),)
            fits = found.train_counts.shape == found.group_counts.shape == classes
            if not fits or any(array.dtype != np.int64 for array in arrays.values()):
                raise ValueError("its arrays do not fit its classes")
            assert found.report is not None  # refuses targets and predictions that do not fit
        except (ValidationError, TypeError, ValueError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} holds no evidence of a model: {error}") from None
        return found


def obstacles(first: Evidence, second: Evidence) -> list[str]:
    """Return why two models cannot be compared image by image; nothing if they can."""
    found = []
    if first.class_names != second.class_names:
        found.append(f"they know other classes, or in another order:\n{_differing_classes(first, second)}")
    if first.split_hash != second.split_hash:
        found.append(
            f"they were evaluated on other images: {first.split} split {first.split_hash[:12]} and {second.split} "
            f"split {second.split_hash[:12]}"
        )
    elif not np.array_equal(first.targets, second.targets):
        found.append(f"the {first.split} split has the same fingerprint, yet other labels: one of the files is damaged")
    return found


def _differing_classes(first: Evidence, second: Evidence) -> str:
    """Return the classes at which two models differ, a line each."""

    def named(names: Sequence[str], c: int) -> str:
        return repr(names[c]) if c < len(names) else "none"

    count = max(len(first.class_names), len(second.class_names))
    pairs = [(c, named(first.class_names, c), named(second.class_names, c)) for c in range(count)]
    return some_of([f"class {c}: {one}, the other {other}" for c, one, other in pairs if one != other], 5)


def require_comparable(evidence: Sequence[Evidence], names: Sequence[str]) -> None:
    """Raise DataError unless all models can be compared with the first, image by image."""
    for name, one in zip(names[1:], evidence[1:], strict=True):
        for obstacle in obstacles(evidence[0], one):
            raise DataError(f"{names[0]} and {name} cannot be compared: {obstacle}")

"""What a reader returns: the two splits of a data set, checked, before any image is decoded."""

import itertools
import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from btm_core.data.long_tail import class_counts
from btm_core.errors import DataError, some_of

__all__ = ["Catalog", "Split"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """One split: labels (N,) int64 and either paths relative to the catalog's root or pixels (N, C, H, W) uint8."""

    name: str
    labels: NDArray[np.int64]
    paths: tuple[str, ...] | None = None
    pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: NDArray[np.int64]) -> "Split":
        """Return the split with only `positions`, in that order."""
        paths = None if self.paths is None else tuple(self.paths[i] for i in positions)
        pixels = None if self.pixels is None else self.pixels[positions]
        return Split(self.name, self.labels[positions], paths, pixels)


@dataclass(frozen=True)
class Catalog:
    """Class names in label order and the splits; `root` is where relative paths start.

    A validation split may lack classes, the others may not. `carved` says that it was taken out of training.
    """

    class_names: tuple[str, ...]
    train: Split
    test: Split
    root: str | None = None
    validation: Split | None = None
    carved: bool = False

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits there are."""
        return tuple(split for split in (self.train, self.test, self.validation) if split is not None)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def train_counts(self) -> NDArray[np.int64]:
        """Training images a class, (C,)."""
        return class_counts(self.train.labels, self.num_classes)

    @property
    def uncarved_counts(self) -> NDArray[np.int64]:
        """Training images a class, (C,), before a validation split was carved: those that published groups go by."""
        if self.validation is None or not self.carved:
            return self.train_counts
        return self.train_counts + class_counts(self.validation.labels, self.num_classes)

    def check(self) -> None:
        """Raise DataError for labels out of range, classes without images, and images in two splits."""
        for split in self.splits:
            if len(split) == 0:
                raise DataError(f"the {split.name} split holds no image; correct what data.{split.name} names")
            if self.num_classes < 2:
                raise DataError(
                    f"there are {self.num_classes} classes, expected at least 2: {', '.join(self.class_names)}"
                )
            wrong = np.flatnonzero((split.labels < 0) | (split.labels >= self.num_classes))
            if len(wrong):
                found = split.labels[wrong[0]]
                at = split.paths[wrong[0]] if split.paths else f"image {wrong[0]}"
                raise DataError(
                    f"{len(wrong)} labels of the {split.name} split are out of range, the first is {found} of {at}; "
                    f"there are {self.num_classes} classes, so labels are 0..{self.num_classes - 1}"
                )
            empty = np.flatnonzero(class_counts(split.labels, self.num_classes) == 0)
            if len(empty) and split is not self.validation:
                kind = _called(split)
                names = some_of([f"{c} ({self.class_names[c]})" for c in empty])
                cure = "drop the class, or add images"
                raise DataError(f"{len(empty)} of {self.num_classes} classes have no {kind} image; {cure}:\n{names}")
        self._check_paths()

    def _check_paths(self) -> None:
        if self.train.paths is None:
            return
        for first, second in itertools.combinations(self.splits, 2):
            shared = sorted(set(first.paths or ()) & set(second.paths or ()))
            if shared:
                raise DataError(
                    f"{len(shared)} images are in both the {_called(first)} and the {_called(second)} split, so the "
                    f"{second.name} would be no {second.name}; remove them from one:\n{some_of(shared)}"
                )
        label_of: dict[str, int] = {}
        for path, label in zip(self.train.paths, self.train.labels.tolist(), strict=True):
            if label_of.setdefault(path, label) != label:
                raise DataError(f"training image {path} is listed with two labels, {label_of[path]} and {label}")
        repeated = [path for path, n in Counter(self.train.paths).items() if n > 1]
        if repeated:
            log.warning("%d training images are listed more than once, the first is %s", len(repeated), repeated[0])


def _called(split: Split) -> str:
    return "training" if split.name == "train" else split.name

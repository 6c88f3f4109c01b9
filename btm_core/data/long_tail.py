"""The long-tail profile: how many training images each class has, and the published way to cut one.

C classes, n_c training images of class c, N images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from btm_core.errors import DataError

__all__ = ["FEW_BELOW", "MANY_ABOVE", "LongTailProfile", "class_counts", "long_tail_indices", "profile"]

MANY_ABOVE = 100
FEW_BELOW = 20
"""many: n_c > 100, medium: 20 <= n_c <= 100, few: n_c < 20 (Liu et al., CVPR 2019)."""


@dataclass(frozen=True)
class LongTailProfile:
    """Summary of the training counts."""

    images: int
    classes: int
    largest: int
    smallest: int
    imbalance_factor: float
    many: int
    medium: int
    few: int

    def __str__(self) -> str:
        return (
            f"{self.images:,} training images in {self.classes:,} classes, {self.largest:,} to {self.smallest:,} a "
            f"class (imbalance factor {self.imbalance_factor:.0f}; {self.many} many, {self.medium} medium, "
            f"{self.few} few)"
        )


def class_counts(labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Return the images a class, (C,), of labels (N,) in [0, C)."""
    return np.bincount(np.asarray(labels, dtype=np.int64), minlength=num_classes)


def profile(counts: ArrayLike, group_counts: ArrayLike | None = None) -> LongTailProfile:
    """Summarise training counts (C,); `group_counts` (C,), if given, say which classes are many, medium and few."""
    n = np.asarray(counts, dtype=np.int64)
    grouped = n if group_counts is None else np.asarray(group_counts, dtype=np.int64)
    return LongTailProfile(
        images=int(n.sum()),
        classes=len(n),
        largest=int(n.max()),
        smallest=int(n.min()),
        imbalance_factor=float(n.max() / max(n.min(), 1)),
        many=int((grouped > MANY_ABOVE).sum()),
        medium=int(((grouped >= FEW_BELOW) & (grouped <= MANY_ABOVE)).sum()),
        few=int((grouped < FEW_BELOW).sum()),
    )


def long_tail_indices(labels: ArrayLike, imbalance_factor: float, seed: int = 0) -> NDArray[np.int64]:
    """Choose a long-tailed part of a balanced set, as published for CIFAR-LT.

    Class c of C keeps n_c = int(N / C * f ** (c / (C - 1))) images with f = 1 / imbalance_factor: exponential decay in
    label order. The images are those of Cao et al. (NeurIPS 2019, https://github.com/kaidic/LDAM-DRW): NumPy's legacy
    generator is seeded once, and each class in label order is shuffled and cut.

    Arguments:
    - labels: (N,) integers in [0, C), every class present.
    - imbalance_factor: largest over smallest class; 100 means f = 0.01.
    - seed: of the legacy generator; 0 is the published choice.

    Returns positions (M,), class after class. A class that has fewer than n_c images gives all it has.
    """
    y = np.asarray(labels)
    if imbalance_factor < 1:
        raise DataError(f"imbalance_factor is largest over smallest class and at least 1, found {imbalance_factor}")
    if len(y) == 0:
        raise DataError("there are no labels to cut a long tail from")
    num_classes = int(y.max()) + 1
    largest = len(y) / num_classes
    decay = 1 / imbalance_factor
    random = np.random.RandomState(seed)
    kept = []
    for c in range(num_classes):
        positions = np.flatnonzero(y == c)
        random.shuffle(positions)
        kept.append(positions[: int(largest * decay ** (c / max(num_classes - 1, 1)))])
    return np.concatenate(kept).astype(np.int64)

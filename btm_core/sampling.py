"""Balanced sampling: few-shot subsets of the training set, and class-aware order for post-training.

N images, C classes, n_c training images of class c.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from btm_core.errors import DataError
from btm_core.seeding import numpy_generator

__all__ = ["balanced_subset", "class_aware_order", "shortfall", "weighted_order"]


def balanced_subset(labels: ArrayLike, shots: int, seed: int, index: int) -> NDArray[np.int64]:
    """Draw balanced subset number `index`: min(shots, n_c) images of each class, without replacement.

    Algorithm 1, line 2. A subset depends on (labels, shots, seed, index) alone, so any worker can draw its own.

    Arguments:
    - labels: (N,) class of each training image.
    - shots: N_C, images a class.

    Returns sorted positions (M,). Raises DataError if shots < 1.
    """
    if shots < 1:
        raise DataError(f"sampling.shots is images a class and at least 1, found {shots}")
    y = np.asarray(labels)
    if len(y) and y.min() >= 0 and y.max() < 1 << 16:
        y = y.astype(np.uint16)  # NumPy sorts 16 bits by radix: 437,513 labels in milliseconds
    # Shuffle all images, sort them by class without changing their order within it, and keep the first of each class:
    # those whose neighbour `shots` places before is of another class. 32 bits a position stay in the processor's cache.
    positions = np.arange(len(y), dtype=np.int32)
    shuffled = numpy_generator("balanced-subset", seed, index).permutation(positions)
    order = shuffled[np.argsort(y[shuffled], kind="stable")]
    classes = y[order]
    first = np.ones(len(y), dtype=bool)
    first[shots:] = classes[shots:] != classes[:-shots]
    return np.sort(order[first]).astype(np.int64)


def shortfall(counts: ArrayLike, shots: int) -> NDArray[np.int64]:
    """Return the classes (K,) of counts (C,) that have fewer than `shots` training images."""
    return np.flatnonzero(np.asarray(counts) < shots)


def class_aware_order(labels: ArrayLike, length: int, samples_per_class: int, *seed: int | str) -> NDArray[np.int64]:
    """Return positions (length,) that cycle over shuffled classes, `samples_per_class` draws of one class at a time.

    The class-aware sampler of Decoupling (Kang et al., ICLR 2020). Classes, and the images within each class, are
    reshuffled whenever all of them were drawn, so no image comes twice before all of its class came once.

    Arguments:
    - labels: (N,) class of each training image.
    - seed: names the randomness.
    """
    y = np.asarray(labels)
    random = numpy_generator("class-aware", *seed)
    classes = np.unique(y)
    visits = -(-length // samples_per_class)
    cycles = -(-visits // len(classes))
    visited = np.concatenate([random.permutation(classes) for _ in range(cycles)])[:visits]
    positions = np.empty((visits, samples_per_class), np.int64)
    images, rows = _places(y, classes), _places(visited, classes)
    for own, turns in zip(images, rows, strict=True):
        draws = len(turns) * samples_per_class
        stream = [random.permutation(own) for _ in range(-(-draws // len(own)))]
        if stream:
            positions[turns] = np.concatenate(stream)[:draws].reshape(-1, samples_per_class)
    return positions.reshape(-1)[:length]


def _places(values: NDArray[np.int64], classes: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Return where each class is among values, in order: one sort for all, not one search a class."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.searchsorted(values[order], classes[1:]))


def weighted_order(labels: ArrayLike, length: int, balance: float, *seed: int | str) -> NDArray[np.int64]:
    """Return positions (length,) drawn with replacement, classes in proportion to n_c ** (1 - balance).

    balance = 0 draws images alike, balance = 1 classes alike (inverse frequency).

    Arguments:
    - labels: (N,) class of each training image.
    - seed: names the randomness.
    """
    y = np.asarray(labels)
    weights = np.bincount(y)[y].astype(np.float64) ** -balance
    return numpy_generator("weighted", *seed).choice(len(y), length, p=weights / weights.sum()).astype(np.int64)

"""A test split where there is none: some of each class, drawn by a seed, and never a picture that stays in training."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from btm_core.data.catalog import Catalog
from btm_core.errors import DataError, some_of
from btm_core.seeding import numpy_generator

__all__ = ["MOST_TEST", "split_off_test"]

MOST_TEST = 100
"""Test images a class: enough for steps of 1 %, and the rest is better trained on."""


def split_off_test(catalog: Catalog, digests: Sequence[str], share: float, seed: int) -> Catalog:
    """Return a catalog whose test split is taken out of its training split, class by class.

    Of each class a share of its different pictures goes to test: at least one, at most half and MOST_TEST. All copies
    of a picture (equal sha256) go together; one that bears several labels stays in training.

    Arguments:
    - digests: (N,) sha256 of each training image, or whatever else is equal for copies.
    - share: in (0, 1).

    Raises DataError if a class has fewer than two different pictures.
    """
    labels = catalog.train.labels
    _, first, which = np.unique(np.asarray(digests), return_index=True, return_inverse=True)
    picture = first[which.ravel()]  # (N,) the first position of the same picture
    mixed = set(picture[labels != labels[picture]].tolist())
    random = numpy_generator("test split", seed)
    test: list[int] = []
    short = []
    for c in range(catalog.num_classes):
        pictures = np.unique(picture[labels == c])
        drawn = random.permutation([p for p in pictures.tolist() if p not in mixed])
        count = min(max(1, round(share * len(pictures))), len(pictures) // 2, MOST_TEST, len(drawn))
        if count < 1:
            short.append(f"{catalog.class_names[c]}: {len(pictures)} different pictures")
        test += drawn[:count].tolist()
    if short:
        raise DataError(
            f"{len(short)} classes have too few images to give one to training and one to test; add images of them, or "
            f"move them away:\n{some_of(short)}"
        )
    tested = np.isin(picture, test)
    train = catalog.train.take(np.flatnonzero(~tested))
    return replace(catalog, train=train, test=replace(catalog.train.take(np.flatnonzero(tested)), name="test"))

"""In which order somebody else's head has its classes.

Reference code re-indexes the classes of Places-LT, ImageNet-LT and iNaturalist by their number of training images, with
NumPy's default sort. It is not stable: classes of equal count come in an order that depends on NumPy's version and the
processor, and of Places-LT's 365 classes 237 share their count with another. So the counts alone do not tell the order,
and training images have to.

N images, C classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from btm_core.config import InputConfig
from btm_core.data.catalog import Catalog
from btm_core.data.dataset import FORWARD_BATCH
from btm_core.importing.draw import draw
from btm_core.models import Classifier
from btm_core.seeding import numpy_generator

__all__ = ["rename", "settle_ties", "sorted_by_count", "tied_classes"]

Labels = NDArray[np.int64]


def sorted_by_count(train_counts: Labels) -> Labels:
    """Return the classes (C,) from most to fewest training images, ties by class id.

    Entry j is class j of a head that was trained on classes re-indexed by count, but for ties: see `settle_ties`.
    """
    return np.argsort(-np.asarray(train_counts), kind="stable")


def tied_classes(train_counts: Labels) -> list[Labels]:
    """Return the groups of two and more classes with equal numbers of training images, each in the order of ids."""
    counts = np.asarray(train_counts)
    groups = (np.flatnonzero(counts == count) for count in np.unique(counts)[::-1])
    return [group for group in groups if len(group) > 1]


@torch.inference_mode()
def settle_ties(model: Classifier, catalog: Catalog, view: InputConfig, per_class: int = 5, seed: int = 0) -> Labels:
    """Return for each class its row (C,) of a head whose rows are sorted by count, in whatever order ties are.

    `model` has its rows as `sorted_by_count` would have them, already put into the data set's order. Within a group of
    equal counts, rows go to classes one to one, so that the logits of the classes' own training images are highest.
    """
    labels = catalog.train.labels
    groups = tied_classes(catalog.uncarved_counts)
    rows = np.arange(catalog.num_classes)
    if not groups:
        return rows
    tied = catalog.train.take(np.flatnonzero(np.isin(labels, np.concatenate(groups))))
    data = draw(catalog, tied, view, per_class, seed)
    total = torch.zeros(catalog.num_classes, catalog.num_classes)
    for x, y in data.test_batches(FORWARD_BATCH, torch.device("cpu")):
        total.index_add_(0, y, model.eval()(x).float())
    drawn = np.bincount(data.labels.numpy(), minlength=catalog.num_classes)
    for group in groups:
        mean = total[group][:, group].numpy() / np.maximum(drawn[group], 1)[:, None]  # (class, row) of the group
        rows[group] = group[linear_sum_assignment(mean, maximize=True)[1]]
    return rows


def rename(labels: Labels, predicted: Labels, num_classes: int, seed: int = 0) -> Labels:
    """Return the predictions (N,) under the one-to-one renaming of classes that fits best.

    Each half of the images is renamed by what fits the other half: where classes are right, no renaming gains anything.
    """
    renamed = predicted.copy()
    half = numpy_generator("halves", seed).permutation(len(labels)) % 2
    for this in (0, 1):
        confusion = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(confusion, (predicted[half != this], labels[half != this]), 1)
        renamed[half == this] = linear_sum_assignment(confusion, maximize=True)[1][predicted[half == this]]
    return renamed

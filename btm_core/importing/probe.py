"""Proof that an imported checkpoint works: some test images, and whether its classes look permuted.

N images, C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from btm_core.config import InputConfig
from btm_core.data.catalog import Catalog, Split
from btm_core.data.dataset import LabelledImages
from btm_core.data.files import pack_pixels
from btm_core.data.images import ImageFiles, Images, PackedPixels
from btm_core.evaluation import predict
from btm_core.metrics import recall_report
from btm_core.models import Classifier
from btm_core.seeding import numpy_generator

__all__ = ["Probe", "probe", "sorted_by_count"]


@dataclass(frozen=True)
class Probe:
    """Figures on the probe's images, as fractions."""

    images: int
    accuracy: float
    h_mean: float
    relabelled_accuracy: float
    """Accuracy under the best one-to-one renaming of the predicted classes."""
    warnings: tuple[str, ...]


def probe(model: Classifier, catalog: Catalog, view: InputConfig, images: int = 2000, seed: int = 0) -> Probe:
    """Evaluate a classifier on up to `images` test images, as many of each class, chosen by `seed`."""
    split = catalog.test.take(_stratified(catalog.test.labels, images, seed))
    predicted, _ = predict(model, LabelledImages(_images(split, catalog, view), torch.from_numpy(split.labels), view))
    report = recall_report(split.labels, predicted, catalog.train_counts, absent="skip")
    best = _renamed(split.labels, predicted, catalog.num_classes)
    # What renaming gives to predictions that have nothing to do with the images: much, where a class has few of them.
    luck = _renamed(split.labels, numpy_generator("luck", seed).permutation(predicted), catalog.num_classes)
    chance = 1 / catalog.num_classes
    warnings = []
    if best > 2 * report.accuracy and best > 1.5 * luck:
        by_count = sorted_by_count(catalog.uncarved_counts)
        renamed = (by_count[predicted] == split.labels).mean()
        cure = (
            "import with --sorted-by-count: that order explains it"
            if renamed > 0.8 * best
            else "give the order of its classes with --classes"
        )
        warnings.append(
            f"classes look permuted: accuracy is {100 * report.accuracy:.1f} %, {100 * best:.1f} % if its classes are "
            f"renamed; {cure}"
        )
    elif report.accuracy < 2 * chance:
        warnings.append(
            f"accuracy is {100 * report.accuracy:.1f} %, near chance ({100 * chance:.1f} %): the file is of other data "
            "or its images were normalised otherwise (data.input.mean and std)"
        )
    return Probe(len(split), report.accuracy, report.h_mean, best, tuple(warnings))


def _renamed(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> float:
    """Return the accuracy under the best one-to-one renaming of the predicted classes; 0 above 2,000 classes, where
    finding it takes too long.
    """
    from scipy.optimize import linear_sum_assignment

    if classes > 2000:
        return 0.0
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    rows, columns = linear_sum_assignment(-confusion)
    return float(confusion[rows, columns].sum() / len(labels))


def sorted_by_count(train_counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the classes (C,) from most to fewest training images, ties by class id.

    Entry j is class j of a head that was trained on classes re-indexed by count, as the reference code does on
    Places-LT, ImageNet-LT and iNaturalist.
    """
    return np.argsort(-np.asarray(train_counts), kind="stable")


def _stratified(labels: NDArray[np.int64], images: int, seed: int) -> NDArray[np.int64]:
    classes = np.unique(labels)
    per_class = max(1, images // len(classes))
    random = numpy_generator("probe", seed)
    chosen = [random.permutation(np.flatnonzero(labels == c))[:per_class] for c in classes]
    return np.sort(np.concatenate(chosen))


def _images(split: Split, catalog: Catalog, view: InputConfig) -> Images:
    if split.pixels is not None:
        return PackedPixels(torch.from_numpy(pack_pixels(split.pixels, view.size, view.channels)))
    assert catalog.root is not None and split.paths is not None
    return ImageFiles(catalog.root, split.paths)

"""Proof that an imported checkpoint works: some test images, and whether its classes look permuted.

N images, C classes.
"""

from dataclasses import dataclass

import numpy as np

from btm_core.config import InputConfig
from btm_core.data.catalog import Catalog
from btm_core.evaluation import predict
from btm_core.importing.class_order import Labels, rename, sorted_by_count
from btm_core.importing.draw import draw
from btm_core.metrics import recall_report
from btm_core.models import Classifier

__all__ = ["Probe", "probe"]

RENAMED_CLASSES = 2000
"""Above, finding the best renaming takes too long, and 2,000 images are too few to find it from."""


@dataclass(frozen=True)
class Probe:
    """Figures on the probe's images, as fractions."""

    images: int
    accuracy: float
    h_mean: float
    relabelled_accuracy: float
    """Accuracy under the best one-to-one renaming of the predicted classes that half of the images lets find."""
    warnings: tuple[str, ...]


def probe(model: Classifier, catalog: Catalog, view: InputConfig, images: int = 2000, seed: int = 0) -> Probe:
    """Evaluate a classifier on up to `images` test images, as many of each class, chosen by `seed`."""
    split = catalog.test
    data = draw(catalog, split, view, max(1, images // len(np.unique(split.labels))), seed)
    labels, (predicted, _) = data.labels.numpy(), predict(model, data)
    report = recall_report(labels, predicted, catalog.train_counts, absent="skip")
    counts = catalog.uncarved_counts
    by_count = sorted_by_count(counts)[predicted]
    explained = _better(counts[by_count], counts[predicted], counts[labels])  # whatever the order of equal counts is
    few = catalog.num_classes <= RENAMED_CLASSES
    renamed = rename(labels, predicted, catalog.num_classes, seed) if few else by_count
    best = max(float((renamed == labels).mean()), report.accuracy)
    chance = 1 / catalog.num_classes
    warnings = []
    if explained or _better(renamed, predicted, labels):
        cure = (
            "import with --sorted-by-count: that order explains it"
            if explained
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
    return Probe(len(labels), report.accuracy, report.h_mean, best, tuple(warnings))


def _better(renamed: Labels, predicted: Labels, labels: Labels) -> bool:
    """Return whether a renaming gains a tenth and more than three standard errors of the paired difference."""
    gain = (renamed == labels).astype(float) - (predicted == labels)
    error = gain.std() / np.sqrt(len(gain))
    return bool(gain.mean() > 3 * error and gain.mean() > 0.1 * (predicted == labels).mean())

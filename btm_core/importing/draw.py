"""A few images of a split, as many of each class."""

import numpy as np
import torch

from btm_core.config import InputConfig
from btm_core.data.catalog import Catalog, Split
from btm_core.data.dataset import LabelledImages
from btm_core.data.files import pack_pixels
from btm_core.data.images import ImageFiles, Images, PackedPixels
from btm_core.seeding import numpy_generator

__all__ = ["draw"]


def draw(catalog: Catalog, split: Split, view: InputConfig, per_class: int, seed: int) -> LabelledImages:
    """Return up to `per_class` images of each class that a split has, chosen by `seed`, in the split's order."""
    random = numpy_generator("probe", seed)
    classes = [random.permutation(np.flatnonzero(split.labels == c))[:per_class] for c in np.unique(split.labels)]
    drawn = split.take(np.sort(np.concatenate(classes)))
    return LabelledImages(_images(drawn, catalog, view), torch.from_numpy(drawn.labels), view)


def _images(split: Split, catalog: Catalog, view: InputConfig) -> Images:
    if split.pixels is not None:
        return PackedPixels(torch.from_numpy(pack_pixels(split.pixels, view.size, view.channels)))
    assert catalog.root is not None and split.paths is not None
    return ImageFiles(catalog.root, split.paths)

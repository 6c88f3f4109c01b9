"""Images with labels as the stages use them, batch by batch.

N images, B images a batch, K channels, S pixels a side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from btm_core.config import InputConfig
from btm_core.data.ahead import ahead
from btm_core.data.images import Images, PackedPixels
from btm_core.data.shares import Share
from btm_core.data.transforms import normalise
from btm_core.data.views import show
from btm_core.seeding import torch_generator

__all__ = ["FORWARD_BATCH", "Dataset", "LabelledFeatures", "LabelledImages", "TrainingData", "in_batches"]

FORWARD_BATCH = 256
"""Images a batch where nothing is trained."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels (N,) int64 and the way they are shown to a network."""

    images: Images
    labels: Tensor
    config: InputConfig

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor) -> "LabelledImages":
        """Return only the images at positions (M,)."""
        return LabelledImages(self.images.take(positions), self.labels[positions], self.config)

    def to(self, device: torch.device) -> "LabelledImages":
        """Return the same with the labels, and packed pixels if there is room for them, on a device."""
        images = self.images.to(device) if isinstance(self.images, PackedPixels) else self.images
        return replace(self, images=images, labels=self.labels.to(device))

    def test_batches(self, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (B, K, S, S) float and labels (B,) in order, without augmentation."""
        batches = torch.split(torch.arange(len(self)), batch_size)
        fetched = self._ahead(batches, self.images.fetch)
        decoded = self._ahead(fetched, lambda images: images.batch(self.config, None, device=device))
        for positions, pixels in zip(batches, decoded, strict=True):
            yield normalise(pixels, self.config), self._labels_at(positions, device)

    def train_batches(
        self,
        order: Tensor,
        batch_size: int,
        device: torch.device,
        *seed: int | str,
        views: Sequence[str] = ("standard",),
        share: Callable[[int], Share] = Share.everything,
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield augmented inputs, (B, K, S, S) float a view, and labels (B,) in the given order (M,) of positions.

        `seed` names the randomness of this epoch's augmentation. A last batch of one image is joined to the one before:
        batch normalisation needs two. `share` gives, for a batch of so many images, those that are wanted; they look
        as they do in the whole batch.
        """
        generator = torch_generator(*seed, "augment")

        def fetch(positions: Tensor) -> tuple[Tensor, Share, Images]:
            part = share(len(positions))
            positions = part.rows(positions)
            return positions, part, self.images.fetch(positions)

        def load(fetched: tuple[Tensor, Share, Images]) -> tuple[Tensor, list[Tensor]]:
            positions, part, images = fetched
            shown = []
            for view in views:
                # Stronger views are torchvision's, image by image: on the CPU.
                pixels = images.batch(self.config, generator, part, device if view == "standard" else None)
                shown.append(show(view, pixels, self.config, generator, part))
            return positions, shown

        for positions, shown in self._ahead(self._ahead(in_batches(order, batch_size), fetch), load):
            inputs = tuple(normalise(pixels.to(device), self.config) for pixels in shown)
            yield inputs, self._labels_at(positions, device)

    def _ahead(self, items: Iterable[Item], load: Callable[[Item], Result]) -> Iterator[Result]:
        """Yield load(item); while a batch is used, the next ones are loaded, unless there is nothing to wait for."""
        resident = isinstance(self.images, PackedPixels) and self.images.pixels.is_cuda
        return map(load, items) if resident else ahead(items, load)

    def _labels_at(self, positions: Tensor, device: torch.device) -> Tensor:
        return self.labels[positions.to(self.labels.device, non_blocking=True)].to(device)


def in_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Return the positions of each batch; a last batch of one image is joined to the one before."""
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@dataclass(frozen=True)
class LabelledFeatures:
    """A backbone's features (N, D) float with labels (N,) int64, to train a head on.

    `config` is how the images were shown to the backbone.
    """

    features: Tensor
    labels: Tensor
    config: InputConfig

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "LabelledFeatures":
        """Return the same on a device."""
        return replace(self, features=self.features.to(device), labels=self.labels.to(device))

    def train_batches(
        self,
        order: Tensor,
        batch_size: int,
        device: torch.device,
        *seed: int | str,
        views: Sequence[str] = ("standard",),
        share: Callable[[int], Share] = Share.everything,
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield features (B, D) and labels (B,) in the given order (M,) of positions; nothing about them is random."""
        for positions in in_batches(order, batch_size):
            there = share(len(positions)).rows(positions).to(self.labels.device, non_blocking=True)
            yield (self.features[there].to(device),), self.labels[there].to(device)


TrainingData = LabelledImages | LabelledFeatures


@dataclass(frozen=True)
class Dataset:
    """Images of C classes, split by split; `digest` identifies their content."""

    class_names: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    digest: str
    validation: LabelledImages | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def train_counts(self) -> Tensor:
        """Training images a class, (C,) int64."""
        return torch.bincount(self.train.labels, minlength=self.num_classes)

"""Images with labels as the stages use them: packed pixels or files, batch by batch.

N images, B images a batch, K channels, S pixels a side.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from btm_core.config import InputConfig
from btm_core.data.files import ImageReader, fit_square, to_array
from btm_core.data.transforms import normalise, random_resized_boxes
from btm_core.data.views import show
from btm_core.seeding import torch_generator

__all__ = ["Dataset", "Images", "ImageFiles", "LabelledImages", "PackedPixels"]

PREFETCH = 2
Item = TypeVar("Item")
Result = TypeVar("Result")


class Images(Protocol):
    """Where pixels come from. `generator` is given in training, and draws the crops that are cut while decoding."""

    def take(self, positions: Tensor) -> "Images":
        """Return only the images at positions (M,)."""
        ...

    def batch(self, positions: Tensor, config: InputConfig, generator: torch.Generator | None) -> Tensor:
        """Return pixels (B, K, S, S) uint8."""
        ...


@dataclass(frozen=True)
class PackedPixels:
    """Images decoded once, (N, K, S, S) uint8, in memory or mapped from a file."""

    pixels: Tensor

    def take(self, positions: Tensor) -> "PackedPixels":
        """Return only the images at positions (M,)."""
        return PackedPixels(self.pixels[positions])

    def batch(self, positions: Tensor, config: InputConfig, generator: torch.Generator | None) -> Tensor:
        """Return pixels (B, K, S, S) uint8."""
        return self.pixels[positions]


class ImageFiles:
    """Images decoded anew whenever they are used, by a few threads: sets that do not fit in memory."""

    def __init__(self, root: str, paths: tuple[str, ...]):
        self.root, self.paths = root, paths
        self._reader = ImageReader(root)
        self._pool = ThreadPoolExecutor(8)

    def take(self, positions: Tensor) -> "ImageFiles":
        """Return only the images at positions (M,)."""
        return ImageFiles(self.root, tuple(self.paths[i] for i in positions.tolist()))

    def batch(self, positions: Tensor, config: InputConfig, generator: torch.Generator | None) -> Tensor:
        """Return pixels (B, K, S, S) uint8: randomly cropped and resized in training, centre crops else."""
        decode = partial(self._reader.decode, channels=config.channels)
        images = list(self._pool.map(decode, [self.paths[i] for i in positions.tolist()]))
        size = config.size
        if generator is None or config.decode_once:
            resize = size if config.decode_once else config.resize or round(size * 256 / 224)
            squares = self._pool.map(lambda image: fit_square(image, size, resize), images)
        else:
            boxes = random_resized_boxes(torch.tensor([image.size for image in images]), generator).tolist()
            squares = self._pool.map(
                lambda image, box: image.resize((size, size), Image.Resampling.BILINEAR, box=box), images, boxes
            )
        return torch.from_numpy(np.stack([to_array(square) for square in squares]))


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

    def test_batches(self, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (B, K, S, S) float and labels (B,) in order, without augmentation."""
        for positions, pixels in _ahead(
            torch.split(torch.arange(len(self)), batch_size), lambda p: (p, self._plain(p))
        ):
            yield normalise(pixels.to(device), self.config), self.labels[positions].to(device)

    def train_batches(
        self,
        order: Tensor,
        batch_size: int,
        device: torch.device,
        *seed: int | str,
        views: Sequence[str] = ("standard",),
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield augmented inputs, (B, K, S, S) float a view, and labels (B,) in the given order (M,) of positions.

        `seed` names the randomness of this epoch's augmentation. A last batch of one image is joined to the one before:
        batch normalisation needs two.
        """
        generator = torch_generator(*seed, "augment")
        batches = list(torch.split(order, batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]

        def load(positions: Tensor) -> tuple[Tensor, list[Tensor]]:
            shown = []
            for view in views:
                pixels = self.images.batch(positions, self.config, generator)
                shown.append(show(view, pixels, self.config, generator))
            return positions, shown

        for positions, shown in _ahead(batches, load):
            inputs = tuple(normalise(pixels.to(device), self.config) for pixels in shown)
            yield inputs, self.labels[positions].to(device)

    def _plain(self, positions: Tensor) -> Tensor:
        return self.images.batch(positions, self.config, None)


def _ahead(items: Sequence[Item], load: Callable[[Item], Result]) -> Iterator[Result]:
    """Yield load(item) in order while one thread loads the next few: decoding overlaps with training."""
    with ThreadPoolExecutor(1) as loader:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(loader.submit(load, item))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


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

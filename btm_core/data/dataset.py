"""Images with labels as the stages use them: packed pixels or files, batch by batch.

N images, B images a batch, K channels, S pixels a side.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from btm_core.config import InputConfig
from btm_core.data.ahead import ahead
from btm_core.data.decoding import fit_square, to_array
from btm_core.data.files import decode
from btm_core.data.reader import ImageReader, Tell
from btm_core.data.shares import Share
from btm_core.data.transforms import normalise, random_resized_boxes
from btm_core.data.views import show
from btm_core.seeding import torch_generator

__all__ = ["Dataset", "Images", "ImageFiles", "LabelledImages", "PackedPixels", "in_batches"]

DECODERS = 8


class Images(Protocol):
    """Where pixels come from."""

    def take(self, positions: Tensor) -> "Images":
        """Return only the images at positions (M,)."""
        ...

    def fetch(self, positions: Tensor) -> "Images":
        """Return only the images at positions (M,), in memory: what may wait for a disk or a network."""
        ...

    def batch(self, config: InputConfig, generator: torch.Generator | None, share: Share | None = None) -> Tensor:
        """Return pixels (B, K, S, S) uint8 of all images.

        `generator` is given in training, and draws the crops that are cut while decoding; `share` says which images of
        a batch these are, by default all.
        """
        ...


@dataclass(frozen=True)
class PackedPixels:
    """Images decoded once, (N, K, S, S) uint8, in memory or mapped from a file."""

    pixels: Tensor

    def take(self, positions: Tensor) -> "PackedPixels":
        """Return only the images at positions (M,)."""
        return PackedPixels(self.pixels[positions])

    fetch = take

    def batch(self, config: InputConfig, generator: torch.Generator | None, share: Share | None = None) -> Tensor:
        """Return pixels (B, K, S, S) uint8."""
        return self.pixels


class ImageFiles:
    """Images decoded anew whenever they are used, by a few threads: sets that do not fit in memory.

    Arguments:
    - paths: N files below the root, a folder or a URL.
    - digests: (N, 32) uint8, the sha256 of each file, if known: one that has changed is refused, and those of a remote
      root are read from the worker's cache.
    """

    def __init__(
        self,
        root: str,
        paths: Sequence[str],
        digests: NDArray[np.uint8] | None = None,
        reader: ImageReader | None = None,
    ):
        self.root, self.paths, self.digests = root, paths, digests
        self._reader = reader or ImageReader(root)

    def take(self, positions: Tensor) -> "ImageFiles":
        """Return only the images at positions (M,)."""
        digests = None if self.digests is None else self.digests[positions.numpy()]
        return ImageFiles(self.root, [self.paths[i] for i in positions.tolist()], digests, self._reader)

    def bring_near(self, tell: Tell) -> None:
        """Have the worker's cache hold all images, if they are remote and verifiable; `tell` hears how that goes."""
        if self.digests is not None:
            self._reader.bring_near(self.paths, _hexadecimal(self.digests), tell)

    def fetch(self, positions: Tensor) -> "EncodedImages":
        """Return the files of the images at positions (M,), verified."""
        wanted = self.take(positions)
        digests = None if wanted.digests is None else _hexadecimal(wanted.digests)
        return EncodedImages(tuple(wanted.paths), tuple(self._reader.read(wanted.paths, digests)))

    def batch(self, config: InputConfig, generator: torch.Generator | None, share: Share | None = None) -> Tensor:
        """Return pixels (B, K, S, S) uint8 of all images."""
        return self.fetch(torch.arange(len(self.paths))).batch(config, generator, share)


@dataclass(frozen=True)
class EncodedImages:
    """Image files in memory."""

    paths: tuple[str, ...]
    data: tuple[bytes, ...]

    def take(self, positions: Tensor) -> "EncodedImages":
        """Return only the images at positions (M,)."""
        chosen = positions.tolist()
        return EncodedImages(tuple(self.paths[i] for i in chosen), tuple(self.data[i] for i in chosen))

    fetch = take

    def batch(self, config: InputConfig, generator: torch.Generator | None, share: Share | None = None) -> Tensor:
        """Return pixels (B, K, S, S) uint8: randomly cropped and resized in training, centre crops else."""
        images = list(_decoders.map(lambda path, data: decode(path, data, config.channels), self.paths, self.data))
        size = config.size
        if generator is None or config.decode_once:
            squares = _decoders.map(lambda image: fit_square(image, size, config.test_resize), images)
        else:
            sizes = torch.tensor([image.size for image in images])
            boxes = random_resized_boxes(sizes, generator, share=share).tolist()
            squares = _decoders.map(
                lambda image, box: image.resize((size, size), Image.Resampling.BILINEAR, box=box), images, boxes
            )
        return torch.from_numpy(np.stack([to_array(square) for square in squares]))


_decoders = ThreadPoolExecutor(DECODERS)


def _hexadecimal(digests: NDArray[np.uint8]) -> list[str]:
    return [digest.tobytes().hex() for digest in digests]


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
        batches = torch.split(torch.arange(len(self)), batch_size)
        fetched = ahead(batches, self.images.fetch)
        decoded = ahead(fetched, lambda images: images.batch(self.config, None))
        for positions, pixels in zip(batches, decoded, strict=True):
            yield normalise(pixels.to(device), self.config), self.labels[positions].to(device)

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
                pixels = images.batch(self.config, generator, part)
                shown.append(show(view, pixels, self.config, generator, part))
            return positions, shown

        for positions, shown in ahead(ahead(in_batches(order, batch_size), fetch), load):
            inputs = tuple(normalise(pixels.to(device), self.config) for pixels in shown)
            yield inputs, self.labels[positions].to(device)


def in_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Return the positions of each batch; a last batch of one image is joined to the one before."""
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


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

"""Where pixels come from: memory, files decoded whenever they are used, or files decoded once and kept.

N images, B images a batch, K channels, S pixels a side.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from btm_core.config import InputConfig
from btm_core.data.decoding import fit_square, to_array
from btm_core.data.files import decode
from btm_core.data.pixel_store import PixelStore
from btm_core.data.reader import ImageReader, Tell
from btm_core.data.resampling import resized_crops
from btm_core.data.shares import Share
from btm_core.data.transforms import random_resized_boxes

__all__ = ["ImageFiles", "Images", "LooseImages", "PackedPixels"]

DECODERS = 8


class Images(Protocol):
    """Where pixels come from."""

    def take(self, positions: Tensor) -> "Images":
        """Return only the images at positions (M,)."""
        ...

    def fetch(self, positions: Tensor) -> "Images":
        """Return only the images at positions (M,), in memory: what may wait for a disk or a network."""
        ...

    def batch(
        self,
        config: InputConfig,
        generator: torch.Generator | None,
        share: Share | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return pixels (B, K, S, S) uint8 of all images, on `device` or wherever they are.

        `generator` is given in training, and draws the crops that are cut while decoding; `share` says which images of
        a batch these are, by default all.
        """
        ...


@dataclass(frozen=True)
class PackedPixels:
    """Images decoded once to their final size, (N, K, S, S) uint8: in memory, mapped from a file, or on a GPU."""

    pixels: Tensor

    def take(self, positions: Tensor) -> "PackedPixels":
        """Return only the images at positions (M,)."""
        return PackedPixels(self.pixels[positions.to(self.pixels.device, non_blocking=True)])

    fetch = take

    def to(self, device: torch.device) -> "PackedPixels":
        """Return the same images on a device, if they fit in half of what is free there."""
        if device.type == "cuda" and self.pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        return PackedPixels(self.pixels.to(device))

    def batch(
        self,
        config: InputConfig,
        generator: torch.Generator | None,
        share: Share | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return pixels (B, K, S, S) uint8."""
        return self.pixels if device is None else _sent(self.pixels, device)


class ImageFiles:
    """Images that are read and decoded as they are used, by a few threads.

    Arguments:
    - paths: N files below the root, a folder or a URL.
    - digests: (N, 32) uint8, the sha256 of each file, if known: one that has changed is refused, and those of a remote
      root are read from the worker's cache.

    `kept_in` returns the same images, each decoded once.
    """

    def __init__(
        self,
        root: str,
        paths: Sequence[str],
        digests: NDArray[np.uint8] | None = None,
        reader: ImageReader | None = None,
        keeping: "Keeping | None" = None,
    ):
        self.root, self.paths, self.digests = root, paths, digests
        self._reader, self._keeping = reader or ImageReader(root), keeping

    def take(self, positions: Tensor) -> "ImageFiles":
        """Return only the images at positions (M,)."""
        digests = None if self.digests is None else self.digests[positions.numpy()]
        return ImageFiles(self.root, [self.paths[i] for i in positions.tolist()], digests, self._reader, self._keeping)

    def kept_in(self, store: PixelStore, channels: int) -> "ImageFiles":
        """Return the same images, decoded once to `channels` as far as `store` has room.

        The next epoch finds them there, and whoever else has the store: they go by the sha256 of their files, and are
        not kept where that is not known.
        """
        keeping = None if self.digests is None else Keeping(store, channels)
        return ImageFiles(self.root, self.paths, self.digests, self._reader, keeping)

    def bring_near(self, tell: Tell) -> None:
        """Have the worker's cache hold all images, if they are remote and verifiable; `tell` hears how that goes."""
        if self.digests is not None:
            self._reader.bring_near(self.paths, _hexadecimal(self.digests), tell)

    def fetch(self, positions: Tensor) -> "LooseImages":
        """Return the images at positions (M,): decoded where they are kept, as verified files else."""
        wanted = self.take(positions)
        digests = None if wanted.digests is None else _hexadecimal(wanted.digests)
        content: list[bytes | NDArray[np.uint8] | None] = [None] * len(wanted.paths)
        if self._keeping is not None and digests is not None:
            content = [self._keeping.get(digest) for digest in digests]
        missing = [i for i, found in enumerate(content) if found is None]
        read = self._reader.read([wanted.paths[i] for i in missing], digests and [digests[i] for i in missing])
        for i, data in zip(missing, read, strict=True):
            content[i] = data
        whole = tuple(found for found in content if found is not None)
        return LooseImages(tuple(wanted.paths), whole, None if digests is None else tuple(digests), self._keeping)

    def batch(
        self,
        config: InputConfig,
        generator: torch.Generator | None,
        share: Share | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return pixels (B, K, S, S) uint8 of all images."""
        return self.fetch(torch.arange(len(self.paths))).batch(config, generator, share, device)


@dataclass(frozen=True)
class Keeping:
    """Where images decoded to so many channels are kept."""

    store: PixelStore
    channels: int

    def get(self, digest: str) -> NDArray[np.uint8] | None:
        """Return the image of a file with this sha256, if it is kept."""
        return self.store.get(f"{digest} {self.channels}")

    def keep(self, digest: str, image: Image.Image) -> None:
        """Keep it, if there is room."""
        self.store.keep(f"{digest} {self.channels}", np.asarray(image))


@dataclass(frozen=True)
class LooseImages:
    """Images of any sizes, in memory: each as the bytes of its file, or decoded, (H, W) or (H, W, 3) uint8."""

    paths: tuple[str, ...]
    content: tuple[bytes | NDArray[np.uint8], ...]
    digests: tuple[str, ...] | None = None
    keeping: Keeping | None = None

    def take(self, positions: Tensor) -> "LooseImages":
        """Return only the images at positions (M,)."""
        chosen = positions.tolist()
        return LooseImages(
            tuple(self.paths[i] for i in chosen),
            tuple(self.content[i] for i in chosen),
            self.digests and tuple(self.digests[i] for i in chosen),
            self.keeping,
        )

    fetch = take

    def batch(
        self,
        config: InputConfig,
        generator: torch.Generator | None,
        share: Share | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return pixels (B, K, S, S) uint8: randomly cropped and resized in training, centre crops else.

        Crops are cut by Pillow, or on a GPU by `resized_crops`, which agrees with it to one level of 255.
        """
        size, numbers, channels = config.size, range(len(self.paths)), [config.channels] * len(self.paths)
        if generator is None or config.decode_once:
            images = _decoders.map(self._image, numbers, channels)
            squares = _decoders.map(lambda image: fit_square(image, size, config.test_resize), images)
        elif device is not None and device.type == "cuda":
            arrays = list(_decoders.map(self._array, numbers, channels))
            sizes = torch.tensor([array.shape[1::-1] for array in arrays])
            return resized_crops(arrays, random_resized_boxes(sizes, generator, share=share), size, device)
        else:
            whole = list(_decoders.map(self._image, numbers, channels))
            sizes = torch.tensor([image.size for image in whole])
            boxes = random_resized_boxes(sizes, generator, share=share).tolist()
            squares = _decoders.map(
                lambda image, box: image.resize((size, size), Image.Resampling.BILINEAR, box=box), whole, boxes
            )
        pixels = torch.from_numpy(np.stack([to_array(square) for square in squares]))
        return pixels if device is None else _sent(pixels, device)

    def _image(self, number: int, channels: int) -> Image.Image:
        content = self.content[number]
        if not isinstance(content, bytes):
            return Image.fromarray(content)
        image = decode(self.paths[number], content, channels)
        if self.keeping is not None and self.digests is not None:
            self.keeping.keep(self.digests[number], image)
        return image

    def _array(self, number: int, channels: int) -> NDArray[np.uint8]:
        content = self.content[number]
        return np.asarray(self._image(number, channels)) if isinstance(content, bytes) else content


_decoders = ThreadPoolExecutor(DECODERS)


def _sent(pixels: Tensor, device: torch.device) -> Tensor:
    """Return pixels on a device; a GPU takes them from pinned memory, else it would wait for all that it has to do."""
    if device.type == "cuda" and not pixels.is_cuda:
        pixels = pixels.pin_memory()
    return pixels.to(device, non_blocking=True)


def _hexadecimal(digests: NDArray[np.uint8]) -> list[str]:
    return [digest.tobytes().hex() for digest in digests]

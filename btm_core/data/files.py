"""Image files below a root, local or remote: what is there, what is in them, and pixels out of them."""

import hashlib
import io
import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from btm_core.errors import DataError, some_of

__all__ = ["ImageReader", "content_digests", "decode_image", "fit_square", "pack_files", "pack_pixels", "stat_files"]

THREADS = 16
Stat = list[int | str] | None


def _in_threads(function: Any, items: Sequence[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(function, items, chunksize=1)


def stat_files(root: str, paths: Sequence[str]) -> list[Stat]:
    """Return [size, version] of each path below root, None where there is no file.

    The version is the modification time in nanoseconds, or on a remote store its entity tag. A remote store is asked
    once a folder, not once a file.
    """
    fs, base = fsspec.core.url_to_fs(root)
    if "file" in fs.protocol:

        def stat(path: str) -> Stat:
            try:
                found = Path(base, path).stat()
            except OSError:
                return None
            return [found.st_size, found.st_mtime_ns]

        return [stat(path) for path in paths]

    def listing(folder: str) -> dict[str, Stat]:
        try:
            entries = fs.ls(posixpath.join(base, folder), detail=True)
        except FileNotFoundError:
            return {}
        return {
            posixpath.join(folder, posixpath.basename(entry["name"])): [entry["size"], str(entry.get("ETag"))]
            for entry in entries
            if entry["type"] == "file"
        }

    known: dict[str, Stat] = {}
    for found in _in_threads(listing, sorted({posixpath.dirname(path) for path in paths})):
        known.update(found)
    return [known.get(path) for path in paths]


def content_digests(root: str, paths: Sequence[str], cache_folder: Path | None) -> list[str]:
    """Return the sha256 (hex) of each file's bytes.

    With `cache_folder`, files whose size and version did not change since the last call are not read again.
    """
    stats = stat_files(root, paths)
    cache_file = None
    known: dict[str, Any] = {}
    if cache_folder is not None:
        cache_file = cache_folder / f"digests-{hashlib.sha256(root.encode()).hexdigest()[:16]}.json"
        try:
            known = json.loads(cache_file.read_text())
        except (OSError, ValueError):
            known = {}
    stale = [
        path for path, stat in zip(paths, stats, strict=True) if known.get(path, [None])[0] != stat or stat is None
    ]
    reader = ImageReader(root)
    stat_of = dict(zip(paths, stats, strict=True))
    for path, digest in zip(
        stale, _in_threads(lambda path: hashlib.sha256(reader.read(path)).hexdigest(), stale), strict=True
    ):
        known[path] = [stat_of[path], digest]
    if stale and cache_file is not None:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        partial = cache_file.with_suffix(f".{os.getpid()}.part")
        partial.write_text(json.dumps(known))
        partial.replace(cache_file)
    return [known[path][1] for path in paths]


def decode_image(data: bytes, channels: int) -> Image.Image:
    """Decode any common image to mode L (channels 1) or RGB (3): EXIF rotation applied, palette, alpha, CMYK, 16 bit.

    Raises what Pillow raises for undecodable, truncated or oversized images.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which some versions of Pillow hold in 32
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def fit_square(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """Scale the shorter side to `resize` (default `size`) pixels and cut the central square of `size`."""
    shorter = resize or size
    width, height = image.size
    scale = shorter / min(width, height)
    wanted = (max(size, round(width * scale)), max(size, round(height * scale)))
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.BILINEAR)
    left, top = (wanted[0] - size) // 2, (wanted[1] - size) // 2
    return image.crop((left, top, left + size, top + size)) if wanted != (size, size) else image


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image as (channels, height, width) uint8."""
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


class ImageReader:
    """Reads files below one root; safe to share between threads."""

    def __init__(self, root: str):
        self.root = root
        self._fs, self._base = fsspec.core.url_to_fs(root)

    def read(self, path: str) -> bytes:
        """Return a file's bytes. Raises DataError if it cannot be read."""
        try:
            data: bytes = self._fs.cat_file(f"{self._base}/{path}")
        except OSError as error:
            raise DataError(f"image {path} below {self.root} cannot be read: {error}") from None
        return data

    def decode(self, path: str, channels: int) -> Image.Image:
        """Return a decoded image. Raises DataError if it is no image, truncated, or a decompression bomb."""
        data = self.read(path)
        try:
            return decode_image(data, channels)
        except Exception as error:  # decoders raise whatever they stumble over
            raise DataError(f"{path}: {error}") from None


def pack_files(root: str, paths: Sequence[str], size: int | None, channels: int) -> NDArray[np.uint8] | None:
    """Decode all images, in parallel, and raise one DataError that names every one that cannot be decoded.

    Returns (N, channels, size, size) uint8, or None where size is None and the images are only being checked.
    """
    reader = ImageReader(root)
    pixels = None if size is None else np.empty((len(paths), channels, size, size), np.uint8)
    bad: list[str] = []

    def decode(position: int) -> str | None:
        try:
            image = reader.decode(paths[position], channels)
        except DataError as error:
            return str(error)
        if pixels is not None and size is not None:
            pixels[position] = to_array(fit_square(image, size))
        return None

    for problem in _in_threads(decode, range(len(paths))):
        if problem is not None:
            bad.append(problem)
    if bad:
        raise DataError(
            f"{len(bad)} of {len(paths)} images below {root} cannot be decoded; repair or drop them:\n{some_of(bad)}"
        )
    return pixels


def pack_pixels(pixels: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    """Bring pixels (N, K, H, W) to `size` a side and `channels`; unchanged where they already are."""
    if pixels.shape[1:] == (channels, size, size):
        return np.ascontiguousarray(pixels)
    mode = "L" if channels == 1 else "RGB"
    images = (Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)) for image in pixels)
    return np.stack([to_array(fit_square(image.convert(mode), size)) for image in images])

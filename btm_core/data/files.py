"""Image files below a root, local or remote: what is there, what is in them, and pixels out of them."""

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btm_core.data.decoding import decode_image, fit_square, to_array
from btm_core.data.reader import ImageReader, Tell
from btm_core.errors import DataError, StoreError, some_of
from btm_core.storage import ask, open_filesystem

__all__ = [
    "content_digests",
    "decode",
    "decode_image",
    "fit_square",
    "pack_files",
    "pack_pixels",
    "stat_files",
    "unread_files",
    "in_threads",
]

THREADS = 16
Stat = list[int | str] | None
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield what a function returns for each item, in order, while threads work on the others."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(function, items, chunksize=1)


def stat_files(root: str, paths: Sequence[str]) -> list[Stat]:
    """Return [size, version] of each path below root, None where there is no file.

    The version is the modification time in nanoseconds, or on a remote store its entity tag. A remote store is asked
    once a folder, not once a file. Raises DataError if it does not answer.
    """
    fs, base = open_filesystem(root)
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
            where = posixpath.join(root, folder)
            entries = ask(fs, where, lambda: fs.ls(posixpath.join(base, folder), detail=True, refresh=True))
        except FileNotFoundError:
            return {}
        except StoreError as error:
            raise DataError(f"the images below {root} cannot be listed: {error}") from None
        return {
            posixpath.join(folder, posixpath.basename(entry["name"])): [entry["size"], str(entry.get("ETag"))]
            for entry in entries
            if entry["type"] == "file"
        }

    known: dict[str, Stat] = {}
    for found in in_threads(listing, sorted({posixpath.dirname(path) for path in paths})):
        known.update(found)
    return [known.get(path) for path in paths]


def _digest_cache(root: str, cache_folder: Path | None) -> tuple[Path | None, dict[str, Any]]:
    """Return the file that keeps the digests of files below a root, and what it holds."""
    if cache_folder is None:
        return None, {}
    cache_file = cache_folder / f"digests-{hashlib.sha256(root.encode()).hexdigest()[:16]}.json"
    try:
        return cache_file, json.loads(cache_file.read_text())
    except (OSError, ValueError):
        return cache_file, {}


def unread_files(root: str, paths: Sequence[str], cache_folder: Path | None) -> dict[str, int]:
    """Return the files that `content_digests` would have to read, and the size of each in bytes."""
    known = _digest_cache(root, cache_folder)[1]
    stats = zip(paths, stat_files(root, paths), strict=True)
    return {path: int(stat[0]) if stat else 0 for path, stat in stats if known.get(path, [None])[0] != stat or not stat}


def content_digests(
    root: str, paths: Sequence[str], cache_folder: Path | None, tell: Tell | None = None, *, keep: bool = True
) -> list[str]:
    """Return the sha256 (hex) of each file's bytes; `tell` hears how fetching from a remote root goes.

    With `cache_folder`, files whose size and version did not change since the last call are not read again; `keep`
    says whether what is read now is noted there.
    """
    stats = stat_files(root, paths)
    cache_file, known = _digest_cache(root, cache_folder)
    stat_of = dict(zip(paths, stats, strict=True))
    stale = [path for path, stat in stat_of.items() if stat is None or known.get(path, [None])[0] != stat]
    try:
        for path, digest in zip(stale, ImageReader(root).digests(stale, tell), strict=True):
            known[path] = [stat_of[path], digest]
    finally:  # what was read before something went wrong need not be read again
        if stale and cache_file is not None and keep:
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            partial = cache_file.with_suffix(f".{os.getpid()}.part")
            partial.write_text(json.dumps(known))
            partial.replace(cache_file)
    return [known[path][1] for path in paths]


def decode(path: str, data: bytes, channels: int) -> Image.Image:
    """Return a decoded image. Raises DataError if it is no image, truncated, or a decompression bomb."""
    try:
        return decode_image(data, channels)
    except Exception as error:  # decoders raise whatever they stumble over
        raise DataError(f"{path}: {error}") from None


def pack_files(
    root: str, paths: Sequence[str], size: int | None, channels: int, digests: Sequence[str] | None = None
) -> NDArray[np.uint8] | None:
    """Decode all images, in parallel, and raise one DataError that names every one that cannot be decoded.

    Arguments:
    - digests: sha256 (hex) of each file, if they are known; a file that has changed since is refused.

    Returns (N, channels, size, size) uint8, or None where size is None and the images are only being checked.
    """
    pixels = None if size is None else np.empty((len(paths), channels, size, size), np.uint8)
    bad: list[str] = []

    def unpack(item: tuple[int, bytes]) -> str | None:
        position, data = item
        try:
            image = decode(paths[position], data, channels)
        except DataError as error:
            return str(error)
        if pixels is not None and size is not None:
            pixels[position] = to_array(fit_square(image, size))
        return None

    done = 0
    for chunk in ImageReader(root).stream(paths, digests):
        bad += [problem for problem in in_threads(unpack, list(enumerate(chunk, done))) if problem is not None]
        done += len(chunk)
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

"""Every image of a data set, looked at once: what it is, what is in it, and by what it is recognised again.

N images. About 330 bytes an image are kept, so that a million fit in memory.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btm_core.data.decoding import FORMATS, decode_image
from btm_core.data.files import in_threads
from btm_core.data.reader import Answer, ImageReader, why_unread
from btm_core.errors import DataError

__all__ = ["GREY", "THUMB", "Looks", "look_at_files", "look_at_pixels"]

THUMB = 16
"""Pixels a side of the thumbnails by which near copies are confirmed."""
GREY = frozenset({"1", "L", "I", "F", "LA", "La"})
"""Pillow's modes without colour, those of 16 bits aside, which begin with I."""

Tell = Callable[[int, int], None]


@dataclass
class Looks:
    """What was seen of N images.

    Fields:
    - content: (N, 32) uint8, sha256 of each file; zeros where there is no file.
    - pixels: (N, 16) uint8, digest of the decoded pixels and their shape, whatever the encoding.
    - hashes: (N,) uint64, difference hash: near copies differ in few bits.
    - thumbs: (N, THUMB, THUMB) uint8 in grey; tints: (N, 3) uint8, mean colour.
    - sizes: (N, 2) int32, width and height after EXIF rotation.
    - kinds: (N,) int16, places in `kind_names`: file format and Pillow's mode.
    - readable: (N,) bool; `problems` says why an image is not.
    """

    content: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    hashes: NDArray[np.uint64]
    thumbs: NDArray[np.uint8]
    tints: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    kinds: NDArray[np.int16]
    readable: NDArray[np.bool_]
    kind_names: list[tuple[str, str]] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int) -> "Looks":
        """Return the looks of images of which none was seen yet."""
        return cls(
            content=np.zeros((count, 32), np.uint8),
            pixels=np.zeros((count, 16), np.uint8),
            hashes=np.zeros(count, np.uint64),
            thumbs=np.zeros((count, THUMB, THUMB), np.uint8),
            tints=np.zeros((count, 3), np.uint8),
            sizes=np.zeros((count, 2), np.int32),
            kinds=np.full(count, -1, np.int16),
            readable=np.zeros(count, bool),
        )

    def kind(self, position: int) -> tuple[str, str]:
        """Return the file format and the mode of a readable image."""
        return self.kind_names[int(self.kinds[position])]

    def keep(self, position: int, seen: "_Seen") -> None:
        """Write down what was seen of one image."""
        self.content[position] = np.frombuffer(seen.content, np.uint8)
        self.pixels[position] = np.frombuffer(seen.pixels, np.uint8)
        self.hashes[position] = seen.hash
        self.thumbs[position], self.tints[position] = seen.thumb, seen.tint
        self.sizes[position] = seen.size
        if seen.kind not in self.kind_names:
            self.kind_names.append(seen.kind)
        self.kinds[position] = self.kind_names.index(seen.kind)
        self.readable[position] = True


@dataclass(frozen=True)
class _Seen:
    content: bytes
    pixels: bytes
    hash: int
    thumb: NDArray[np.uint8]
    tint: NDArray[np.uint8]
    size: tuple[int, int]
    kind: tuple[str, str]


def look_at_files(root: str, paths: Sequence[str], tell: Tell | None = None) -> Looks:
    """Read and decode every image below a root, in parallel; `tell` hears how many of how many are done.

    One that cannot be read or decoded is noted in `problems`. Raises DataError if the root does not answer.
    """

    def look(answer: Answer) -> _Seen | str:
        if isinstance(answer, Exception):
            return why_unread(answer)
        data, digest = answer
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as header:
                kind = (header.format or "?", header.mode)
        except Exception:  # decode_image says it better
            kind = ("?", "?")
        try:
            return _seen(decode_image(data, 3), bytes.fromhex(digest), kind)
        except DataError as error:
            return str(error)

    def answers() -> Iterator[list[_Seen | str]]:
        for chunk in ImageReader(root).attempts(paths):
            yield list(in_threads(look, chunk))

    return _kept(len(paths), answers(), tell)


def look_at_pixels(images: NDArray[np.uint8], tell: Tell | None = None) -> Looks:
    """Look at images that are pixels already, (N, K, H, W) uint8."""
    mode = "L" if images.shape[1] == 1 else "RGB"

    def look(pixels: NDArray[np.uint8]) -> _Seen | str:
        image = Image.fromarray(pixels[0] if mode == "L" else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        return _seen(image.convert("RGB"), bytes(32), ("pixels", mode))

    def answers() -> Iterator[list[_Seen | str]]:
        for start in range(0, len(images), 1000):
            yield [look(pixels) for pixels in images[start : start + 1000]]

    return _kept(len(images), answers(), tell)


def _kept(count: int, answers: Iterator[list[_Seen | str]], tell: Tell | None) -> Looks:
    looks, done = Looks.empty(count), 0
    for chunk in answers:
        for position, seen in enumerate(chunk, done):
            if isinstance(seen, str):
                looks.problems[position] = seen
            else:
                looks.keep(position, seen)
        done += len(chunk)
        if tell is not None:
            tell(done, count)
    return looks


def _seen(image: Image.Image, content: bytes, kind: tuple[str, str]) -> _Seen:
    """Return what is kept of an image in mode RGB."""
    pixels = hashlib.blake2b(image.tobytes(), digest_size=16, person=f"{image.width}x{image.height}".encode())
    grey = image.convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    # Is each pixel brighter than its left neighbour? Scaling, compression, brightness leave most answers as they are.
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return _Seen(
        content,
        pixels.digest(),
        int.from_bytes(bits.tobytes(), "big"),
        np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX)),
        np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0],
        image.size,
        kind,
    )

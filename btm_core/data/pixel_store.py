"""Decoded images, kept from one epoch and one subset to the next: in memory up to a bound, then in mapped files."""

import mmap
import os
import tempfile
import threading

import numpy as np
from numpy.typing import NDArray

__all__ = ["PixelStore"]

SEGMENT = 128 * 2**20
"""Bytes of a mapped file."""


class PixelStore:
    """Images by key, (H, W) or (H, W, 3) uint8. What finds no room is not kept, and has to be decoded again.

    The files have no names, so nothing of them is left when the process ends, whatever ends it. Safe to share between
    threads.

    Arguments:
    - memory: bytes of images to keep in memory.
    - disk: bytes to keep in mapped files beyond those. A full disk counts as no room.
    - folder: where these lie; default: the folder of temporary files.
    """

    def __init__(self, memory: int, disk: int = 0, folder: str | None = None):
        self.memory, self.disk, self.folder = memory, disk, folder
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()
        self._segment: NDArray[np.uint8] | None = None
        self._used = 0

    def __len__(self) -> int:
        return len(self._images)

    def get(self, key: str) -> NDArray[np.uint8] | None:
        """Return an image, read-only, None if it is not kept."""
        return self._images.get(key)

    def keep(self, key: str, image: NDArray[np.uint8]) -> None:
        """Keep a copy of an image, if there is room."""
        with self._lock:
            if key in self._images:
                return
            place = self._in_memory(image) if image.nbytes <= self.memory else self._on_disk(image)
            if place is not None:
                place[...] = image
                place.flags.writeable = False
                self._images[key] = place

    def _in_memory(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self.memory -= image.nbytes
        return np.empty_like(image, order="C")

    def _on_disk(self, image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        if self._segment is None or image.nbytes > len(self._segment) - self._used:
            segment = self._mapped(max(min(SEGMENT, self.disk), image.nbytes))
            if segment is None:
                return None
            self._segment, self._used = segment, 0
        place = self._segment[self._used : self._used + image.nbytes]
        self._used += image.nbytes
        return place.reshape(image.shape)

    def _mapped(self, size: int) -> NDArray[np.uint8] | None:
        """Map a new file, all of whose bytes the disk has set aside: writing to one that has not kills a process."""
        if size > self.disk:
            return None
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError:
            self.disk = 0
            return None
        self.disk -= size
        return np.frombuffer(mapped, np.uint8)

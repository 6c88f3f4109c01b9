"""What `btm_core.merging` averages: files, of which parts are read, and state dicts in memory."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from itertools import islice
from operator import itemgetter

import torch
from torch import Tensor

from btm_core.means import DTYPES
from btm_core.storage import Ranges
from btm_core.tensor_files import Entry, read_header

__all__ = ["FileInput", "Input", "StateInput"]

CODES = {dtype: name for name, dtype in DTYPES.items()}


class Input:
    """One checkpoint: what its tensors are, and their bytes in the order of the output."""

    url: str
    weight: float
    entries: dict[str, Entry]

    def lay_out(self, layout: dict[str, Entry]) -> None:
        """Find where the bytes of the output come from."""
        raise NotImplementedError

    def read_into(self, first: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes that correspond to the output's from `first` on."""
        raise NotImplementedError

    def digest(self, first: int, last: int) -> bytes:
        """Return a hash of the bytes that correspond to the output's from `first` to `last`."""
        data = bytearray(last - first)
        self.read_into(first, memoryview(data))
        return hashlib.sha256(data).digest()


class FileInput(Input):
    """A file, of which parts are read."""

    def __init__(self, ranges: Ranges, weight: float):
        self.url, self.weight, self._ranges = ranges.url, weight, ranges
        header = read_header(ranges.stream(), ranges.url)
        self._start, self.metadata, self.entries = header.start, header.metadata, header.entries

    def lay_out(self, layout: dict[str, Entry]) -> None:
        """Keep stretches, few if the file is laid out as the output is."""
        stretches: list[tuple[int, int, int]] = []  # [first, last) of the output, and what to add for the place here
        for name, entry in layout.items():
            shift = self._start + self.entries[name].first - entry.first
            if stretches and stretches[-1][2] == shift:
                stretches[-1] = (stretches[-1][0], entry.last, shift)
            elif entry.last > entry.first:
                stretches.append((entry.first, entry.last, shift))
        self._stretches = stretches

    def read_into(self, first: int, buffer: memoryview) -> None:
        """Read each stretch's part."""
        last = first + len(buffer)
        index = bisect_right(self._stretches, first, key=itemgetter(0)) - 1
        for begin, end, shift in islice(self._stretches, index, None):
            if begin >= last:
                break
            low, high = max(begin, first), min(end, last)
            self._ranges.read_into(low + shift, buffer[low - first : high - first])

    def check_unchanged(self) -> None:
        """Raise StoreError if the file is not the one whose header was read."""
        self._ranges.check_unchanged()


class StateInput(Input):
    """A state dict."""

    def __init__(self, name: str, state: Mapping[str, Tensor], weight: float):
        self.url, self.weight = name, weight
        self._tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        self.entries = {
            key: Entry(CODES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), 0, tensor.nbytes)
            for key, tensor in self._tensors.items()
        }

    def lay_out(self, layout: dict[str, Entry]) -> None:
        """Keep the tensors' own bytes, in order."""
        self._starts = [entry.first for entry in layout.values()]
        self._bytes = [self._tensors[key].view(-1).view(torch.uint8).numpy().data for key in layout]

    def read_into(self, first: int, buffer: memoryview) -> None:
        """Copy each tensor's part."""
        at = first
        for index in range(bisect_right(self._starts, first) - 1, len(self._starts)):
            if at >= first + len(buffer):
                break
            part = self._bytes[index][at - self._starts[index] :][: first + len(buffer) - at]
            buffer[at - first : at - first + len(part)] = part
            at += len(part)

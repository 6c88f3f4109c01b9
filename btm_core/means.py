"""Weighted means of tensors that come one after another, in float64 and on buffers that are used again.

S tensors x_s of one type, w_s >= 0 their weights: mean = sum_s w_s x_s / sum_s w_s, rounded once to the type.
The mean of equal tensors is that tensor, bit for bit, in every type.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["DTYPES", "Mean"]

DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""In the order in which safetensors lays out a file, so that tensors are aligned: https://github.com/huggingface/safetensors."""
PIECE = 2**15
"""Elements worked on at a time: small enough for a core's cache, and for torch to leave them to this thread."""
HALF = 32


class Mean:
    """The mean of up to `length` elements, again and again: `start`, `add` S times, `finish`."""

    def __init__(self, dtype: torch.dtype, length: int):
        self.dtype = dtype
        self._running = dtype in (torch.float64, torch.int64)
        self._plain = not self._running and dtype != torch.bfloat16  # which NumPy has not
        parts = 2 if dtype == torch.int64 else 1
        self._buffers = [torch.empty(length, dtype=torch.float64) for _ in range(parts)]
        self._spare = torch.empty(min(PIECE, length), dtype=torch.float64)

    def start(self, length: int) -> None:
        """Begin with `length` elements."""
        self._weight = 0.0
        self._sum = self._buffers[0][:length].numpy()
        self._pieces = [torch.split(buffer[:length], PIECE) for buffer in self._buffers]

    def add(self, values: Tensor, weight: float) -> None:
        """Take in a tensor (length,) with its weight, above 0."""
        first, self._weight = self._weight == 0, self._weight + weight
        if self._plain and weight == 1 and not first:
            with np.errstate(invalid="ignore"):  # inf - inf is nan, as everywhere
                np.add(self._sum, values.numpy(), out=self._sum)  # converts and adds in one go, in the cache
            return
        for number, piece in enumerate(torch.split(values, PIECE)):
            for part, pieces in zip(self._parts(piece), self._pieces, strict=True):
                if first:
                    pieces[number].copy_(part)
                    if not self._running and weight != 1:
                        pieces[number].mul_(weight)
                else:
                    self._take(pieces[number], part, weight)

    def finish(self, target: Tensor) -> None:
        """Write the mean to a tensor (length,) of the type."""
        for number, piece in enumerate(torch.split(target, PIECE)):
            mean = [pieces[number] for pieces in self._pieces]
            if self.dtype == torch.int64:
                high = mean[0].floor()
                low = mean[1].add_(mean[0] - high, alpha=2.0**HALF).round_()
                piece.copy_((high.long() << HALF) + low.long())
                continue
            if not self._running:
                mean[0].div_(self._weight)
            piece.copy_(mean[0] if self.dtype.is_floating_point else mean[0].round_())

    def _parts(self, piece: Tensor) -> tuple[Tensor, ...]:
        """Return what float64 can hold: an int64 of 2^53 and beyond it cannot, but its two halves."""
        return (piece >> HALF, piece & (2**HALF - 1)) if self.dtype == torch.int64 else (piece,)

    def _take(self, mean: Tensor, part: Tensor, weight: float) -> None:
        spare = self._spare[: len(part)].copy_(part)
        if self._running:
            mean.lerp_(spare, weight / self._weight)  # equal values stay what they are
        else:
            mean.add_(spare, alpha=weight)  # of at most 32 bits: what float64 rounds off is lost in rounding to them

"""safetensors files as anybody may have written them: the header is bounded and checked before a tensor is read.

Format: https://github.com/huggingface/safetensors#format. A header says where each tensor lies; here it must say so
once, without gaps or overlaps, and for exactly the bytes that are there, or the file is refused.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from safetensors import SafetensorError

from btm_core.errors import CheckpointError, StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["HEADER_LIMIT", "Entry", "Header", "load_arrays", "load_tensors", "read_header"]

HEADER_LIMIT = 16 * 2**20
"""Bytes. The format allows 100 MB, which take gigabytes once parsed; a ResNet-152 of 8,142 classes has below 1 MB."""
ITEM_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
LARGEST = 2**63 - 1
TORCH = (b"PK\x03\x04", b"\x80\x02")
"""How files of torch.save begin: archives, and pickles before torch 1.6."""

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """Type and shape of a tensor, and where its bytes are: [first, last) behind the header."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True)
class Header:
    """What a file says of its tensors; `start` is where their bytes begin."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    start: int


def read_header(file: BinaryIO, where: str) -> Header:
    """Return the header of an open file. Raises CheckpointError, which names it as `where`, if it is none or lies."""
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(8)
        (length,) = struct.unpack("<Q", start)
        if start.startswith(TORCH):
            raise ValueError("torch.save wrote it; make a safetensors file of it with btm import-checkpoint")
        if length > HEADER_LIMIT:
            raise ValueError(f"a header of {length} bytes, at most {HEADER_LIMIT} are read: it is something else")
        if 8 + length > size:
            raise ValueError(f"its header is cut off: {length} bytes are announced, the file has {size}")
        document = json.loads(file.read(length), object_pairs_hook=_once, parse_constant=_no_number)
        if not isinstance(document, dict):
            raise ValueError("its header is no mapping")
        metadata = document.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no mapping of text to text")
        entries = {name: _entry(name, value) for name, value in document.items()}
        _check_places(entries, size - 8 - length)
    except StoreError:  # an OSError, too, but nothing that the file has done
        raise
    except (struct.error, ValueError, OSError) as error:
        reason = "it is shorter than a header" if isinstance(error, struct.error) else error
        raise CheckpointError(f"{where} is not a safetensors file: {reason}") from None
    except RecursionError:
        raise CheckpointError(f"{where} is not a safetensors file: its header is nested without end") from None
    return Header(entries, metadata, 8 + length)


def load_tensors(path: Path) -> "dict[str, Tensor]":
    """Return all tensors of a file, its header checked. Raises CheckpointError."""
    from safetensors.torch import load_file

    return _loaded(path, load_file)


def load_arrays(path: Path) -> "dict[str, NDArray[Any]]":
    """Return all tensors of a file as NumPy arrays, its header checked. Raises CheckpointError."""
    from safetensors.numpy import load_file

    return _loaded(path, load_file)


def _loaded(path: Path, load_file: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    try:
        with path.open("rb") as file:
            read_header(file, str(path))
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist") from None
    except IsADirectoryError:
        raise CheckpointError(f"checkpoint {path} is a folder, expected a safetensors file") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        # A type that the format knows, but torch or NumPy does not, is one of the others.
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from None


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise ValueError(f"tensor {name!r} is of the unknown type {str(dtype)[:40]!r}")
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has a shape or offsets that are no whole numbers from 0")
    first, last = offsets
    bits = math.prod(shape) * ITEM_BITS[dtype]
    if bits > LARGEST or bits != 8 * (last - first):
        raise ValueError(f"tensor {name!r} has offsets that do not fit its shape")
    return Entry(dtype, tuple(shape), first, last)


def _check_places(entries: Mapping[str, Entry], size: int) -> None:
    """Raise ValueError unless the tensors cover `size` bytes, each once."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].first, item[1].last)):
        if entry.first != end:
            raise ValueError(f"tensor {name!r} does not begin where the one before it ends")
        end = entry.last
    if end != size:
        raise ValueError(f"its tensors take {end} bytes, {size} are there: it is cut off, or holds something else")


def _whole(values: Any) -> bool:
    # `type`, for True is an int as well; 64 dimensions are more than torch has.
    return isinstance(values, list) and len(values) <= 64 and all(type(v) is int and 0 <= v <= LARGEST for v in values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of two equal keys readers take different ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")

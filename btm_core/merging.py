"""Merging: the weighted average of several checkpoints, streamed tensor by tensor (Algorithm 1, line 3).

S inputs, w_s their weights, sum_s w_s = 1. The sum runs in float64 in an order given by the inputs' content, so the
result does not depend on the order they are named in, bit for bit; memory is about two tensors, whatever S.
"""

import hashlib
import json
import struct
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from btm_core.errors import CheckpointError, some_of
from btm_core.storage import fetch_file, send_file
from btm_core.tensor_files import read_header
from btm_core.urls import refuse_credentials, without_credentials

__all__ = ["merge"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Reader:
    """Random access to the tensors of one safetensors file, local or remote."""

    def __init__(self, url: str, file: BufferedIOBase):
        self.url, self._file = url, file
        header = read_header(cast(BinaryIO, file), url)
        self._start, self.metadata, self.entries = header.start, header.metadata, header.entries

    def tensor(self, name: str) -> Tensor:
        entry = self.entries[name]
        self._file.seek(self._start + entry.first)
        data = bytearray(self._file.read(entry.last - entry.first))
        if len(data) != entry.last - entry.first:
            raise CheckpointError(f"{self.url} is truncated: tensor {name} is incomplete")
        dtype = DTYPES[entry.dtype]
        return (
            torch.frombuffer(data, dtype=dtype).reshape(entry.shape) if data else torch.empty(entry.shape, dtype=dtype)
        )

    def digest(self) -> str:
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()


def merge(
    inputs: Sequence[str | Path],
    output: str | Path,
    weights: Sequence[float] | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Average checkpoints of one architecture: out = sum_s w_s * in_s.

    Floating tensors are summed in float64 and rounded once to their own type; integer tensors (counters of BN batches)
    become the rounded average and stay integer.

    Arguments:
    - inputs: S paths or URLs of safetensors files with equal names, shapes and types.
    - output: path or URL to write; may be one of the inputs.
    - weights: (S,) not negative, normalised here to sum 1; 1 / S each if None.
    - metadata: of the output; that of the inputs where they agree if None.

    Raises CheckpointError if the inputs differ in structure, or the weights do not fit.
    """
    if not inputs:
        raise CheckpointError("merge needs at least one checkpoint")
    shares = [1.0] * len(inputs) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(inputs) or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise CheckpointError(
            f"{len(inputs)} checkpoints need as many weights >= 0 with a sum above 0, found {weights}"
        )
    try:
        for url in (*inputs, output):
            refuse_credentials(str(url))
    except ValueError as error:
        raise CheckpointError(f"{without_credentials(str(url))}: {error}") from None
    with ExitStack() as stack:
        try:
            near = [_bring_near(str(url), stack) for url in inputs]
            files = [stack.enter_context(path.open("rb")) for path in near]
        except FileNotFoundError as error:
            raise CheckpointError(f"checkpoint not found: {error}") from None
        except OSError as error:
            raise CheckpointError(f"checkpoint cannot be read: {error}") from None
        readers = [_Reader(str(url), file) for url, file in zip(inputs, files, strict=True)]
        _check_alike(readers)
        ranked = sorted(zip(readers, shares, strict=True), key=lambda pair: (pair[0].digest(), pair[1]))
        if metadata is None:
            metadata = _shared_metadata(readers)
        # First to a file of its own, so that an input may be the output, and nobody ever sees half a checkpoint.
        with tempfile.TemporaryDirectory(prefix="btm-merge-", dir=_folder_beside(output)) as folder:
            whole = Path(folder, "merged")
            _write(ranked, whole, metadata)
            try:
                send_file(whole, str(output))
            except OSError as error:
                raise CheckpointError(f"{output} cannot be written: {error}") from None


def _bring_near(url: str, stack: ExitStack) -> Path:
    """Return a local file: the one that is named, or a copy of a remote one, deleted with `stack`."""
    if "://" not in url:
        return Path(url).expanduser()
    copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="btm-merge-")), "checkpoint")
    fetch_file(url, copy)
    return copy


def _check_alike(readers: list[_Reader]) -> None:
    first = readers[0]
    unknown = sorted({entry.dtype for entry in first.entries.values()} - set(DTYPES))
    if unknown:
        raise CheckpointError(f"{first.url} holds tensors of type {', '.join(unknown)}, which cannot be averaged")
    for other in readers[1:]:
        differences = sorted(set(first.entries) ^ set(other.entries))
        differences += [
            f"{name}: {ours.dtype}{list(ours.shape)} against {theirs.dtype}{list(theirs.shape)}"
            for name, ours in first.entries.items()
            if (theirs := other.entries.get(name)) is not None
            and (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape)
        ]
        if differences:
            raise CheckpointError(
                f"{first.url} and {other.url} are not of one architecture; they differ in {len(differences)} tensors:\n"
                f"{some_of(differences)}"
            )


def _folder_beside(output: str | Path) -> str | None:
    """Return the folder of a local output, which has room and allows a fast move; None for a remote one."""
    folder = Path(str(output)).expanduser().parent
    return str(folder) if "://" not in str(output) and folder.is_dir() else None


def _shared_metadata(readers: list[_Reader]) -> dict[str, str]:
    """Return what the inputs' metadata agree on; of JSON objects, the items they agree on."""
    shared = {}
    for key in sorted(set.intersection(*(set(reader.metadata) for reader in readers))):
        values = [reader.metadata[key] for reader in readers]
        if len(set(values)) == 1:
            shared[key] = values[0]
            continue
        try:
            documents = [json.loads(value) for value in values]
        except (ValueError, RecursionError):
            continue
        if all(isinstance(document, dict) for document in documents):
            first, *others = documents
            agreed = {k: v for k, v in first.items() if all(k in other and other[k] == v for other in others)}
            shared[key] = json.dumps(agreed)
    return shared


def _write(ranked: list[tuple[_Reader, float]], output: Path, metadata: dict[str, str]) -> None:
    """Write header and tensors one after another; the layout is known before the first tensor is averaged."""
    first = ranked[0][0]
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in sorted(first.entries):
        entry = first.entries[name]
        end = offset + entry.last - entry.first
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    with output.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(first.entries):
            mean = _average(ranked, name)
            file.write(mean.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def _average(ranked: list[tuple[_Reader, float]], name: str) -> Tensor:
    """Read tensor `name` of one input after another, so that only one of them is in memory beside the sum."""
    entry = ranked[0][0].entries[name]
    dtype = DTYPES[entry.dtype]
    mean = torch.zeros(entry.shape, dtype=torch.float64)
    weight = 0.0
    for reader, share in ranked:
        if share > 0:
            # As a running mean, equal tensors stay what they are, to the last bit, in every type.
            weight += share
            mean += (reader.tensor(name).double() - mean) * (share / weight)
    return (mean if dtype.is_floating_point else mean.round()).to(dtype)

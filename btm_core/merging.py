"""Merging: the weighted average of several checkpoints, of files or in memory (Algorithm 1, line 3).

S inputs, w_s their weights. Bytes of all tensors of one type lie one after another in the output, in the order in which
safetensors writes them, and are averaged a block at a time, several blocks beside each other. The sum runs in float64
in an order given by the inputs' content, so the result depends neither on the order they are named in nor on the number
of threads, bit for bit; memory is a few blocks a thread, whatever S.
"""

import json
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btm_core.errors import BTMError, CheckpointError, some_of
from btm_core.means import DTYPES, Mean
from btm_core.merge_inputs import FileInput, Input, StateInput
from btm_core.storage import open_ranges, storage_settings, write_file
from btm_core.tensor_files import Entry
from btm_core.urls import refuse_credentials, without_credentials

__all__ = ["average", "merge"]

LOCAL_BLOCK = 2**18
"""Elements read of one input at a time: small enough for a core's cache."""
LARGEST = 8
"""Bytes of an element, at most."""
ITEM = 4
"""Bytes of most elements: remote parts of BTM_STORE_PART_MEGABYTES are so many elements."""
ORDER = {name: number for number, name in enumerate(DTYPES)}
MOST_THREADS = 8
"""Of local files; each opens every input, and by so many the disk is busy."""
GLIMPSE = 2**16
"""Bytes that tell inputs apart, as a rule."""

Write = Callable[[int, memoryview], None]


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Average state dicts of one architecture, in memory: what `merge` does with files, bit for bit.

    Buffers are averaged too, among them the statistics of batch normalisation.

    Arguments:
    - states: S state dicts, as `module.state_dict()` gives them, with equal names, shapes and types.
    - weights: (S,) not negative, normalised here to sum 1; 1 / S each if None.

    Returns new tensors, each on the device of the first state's, for `module.load_state_dict`.
    Raises CheckpointError if the states differ in structure, or the weights do not fit.
    """
    shares = _shares(len(states), weights)
    inputs = [
        StateInput(f"state {i}", state, share) for i, (state, share) in enumerate(zip(states, shares, strict=True))
    ]
    _check_alike(inputs)
    layout = _layout(inputs[0].entries)
    data = torch.empty(max((entry.last for entry in layout.values()), default=0), dtype=torch.uint8)
    view = data.numpy().data

    def write(start: int, part: memoryview) -> None:
        view[start : start + len(part)] = part

    for one in inputs:
        one.lay_out(layout)
    _average([one for one in inputs if one.weight > 0], layout, write)
    found = {}
    for name, tensor in states[0].items():
        entry = layout[name]
        own = data[entry.first : entry.last].clone()  # aligned, and free of the others
        found[name] = own.view(tensor.dtype).view(tensor.shape).to(tensor.device)
    return found


def merge(
    inputs: Sequence[str | Path],
    output: str | Path,
    weights: Sequence[float] | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Average checkpoints of one architecture: out = sum_s w_s * in_s.

    Floating tensors are summed in float64 and rounded once to their own type (those of 16 bits by way of float32);
    integer tensors (counters of BN batches) become the rounded average and stay integer. The mean of float64 tensors
    near 1.8e308 may overflow.

    Arguments:
    - inputs: S paths or URLs of safetensors files with equal names, shapes and types. Of remote ones parts are read.
    - output: path or URL to write; may be one of the inputs.
    - weights: (S,) not negative, normalised here to sum 1; 1 / S each if None.
    - metadata: of the output; that of the inputs where they agree if None.

    Raises CheckpointError if the inputs differ in structure, or the weights do not fit; StoreError if one changes
    while it is read, or the output cannot be written.
    """
    shares = _shares(len(inputs), weights)
    try:
        for url in (*inputs, output):
            refuse_credentials(str(url))
    except ValueError as error:
        raise CheckpointError(f"{without_credentials(str(url))}: {error}") from None
    with ExitStack() as stack:
        opened = [_open(str(url), share, stack) for url, share in zip(inputs, shares, strict=True)]
        _check_alike(opened)
        layout = _layout(opened[0].entries)
        for one in opened:
            one.lay_out(layout)
        header = _header(layout, _shared_metadata(opened) if metadata is None else metadata)
        with write_file(str(output)) as write:
            write(0, memoryview(header))
            used = [one for one in opened if one.weight > 0]
            _average(used, layout, lambda start, data: write(len(header) + start, data))
            for one in opened:
                one.check_unchanged()


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    """Return weights relative to the largest: of equal ones the plain sum is taken, which is exact for most tensors."""
    if not count:
        raise CheckpointError("merge needs at least one checkpoint")
    shares = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(shares) != count or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise CheckpointError(
            f"{count} checkpoints need {count} weights, none below 0 and their sum above 0, found {weights}"
        )
    return [share / max(shares) for share in shares]


def _open(url: str, weight: float, stack: ExitStack) -> FileInput:
    try:
        return FileInput(stack.enter_context(open_ranges(url)), weight)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {url} does not exist") from None
    except IsADirectoryError:
        raise CheckpointError(f"checkpoint {url} is a folder, expected a safetensors file") from None
    except OSError as error:
        if isinstance(error, BTMError):
            raise
        raise CheckpointError(f"checkpoint {url} cannot be read: {error}") from None


def _check_alike(readers: Sequence[Input]) -> None:
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


def _shared_metadata(readers: list[FileInput]) -> dict[str, str]:
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


def _layout(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Return where each tensor lies in the output: ordered by type and name, as safetensors does."""
    layout, end = {}, 0
    for name in sorted(entries, key=lambda name: (ORDER[entries[name].dtype], name)):
        entry = entries[name]
        begin, end = end, end + entry.last - entry.first
        layout[name] = Entry(entry.dtype, entry.shape, begin, end)
    return layout


def _header(layout: dict[str, Entry], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, entry in layout.items():
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.first, entry.last]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _average(inputs: Sequence[Input], layout: dict[str, Entry], write: Write) -> None:
    """Average all tensors, several blocks at a time."""
    settings = storage_settings()
    remote = any("://" in one.url for one in inputs)
    elements = settings.part_bytes // ITEM if remote else LOCAL_BLOCK
    threads = settings.parallel if remote else min(torch.get_num_threads(), MOST_THREADS)
    blocks = list(_blocks(layout, elements))
    # Each thread takes neighbours, for the disk to read ahead.
    shares = [iter(blocks[i * len(blocks) // threads : (i + 1) * len(blocks) // threads]) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        ranked = _ranked(inputs, max((entry.last for entry in layout.values()), default=0), pool)
        workers = [pool.submit(_work, ranked, share, elements, write) for share in shares]
        try:
            for worker in as_completed(workers):
                worker.result()
        except BaseException:
            for share in shares:
                deque(share, maxlen=0)  # so that nobody begins another
            raise


def _blocks(layout: dict[str, Entry], elements: int) -> Iterator[tuple[torch.dtype, int, int]]:
    """Yield type, first and last byte (exclusive) of what is averaged at a time, whichever tensors lie there."""
    for name, entries in groupby(layout.values(), key=attrgetter("dtype")):
        dtype, run = DTYPES[name], list(entries)
        begin, end, step = run[0].first, run[-1].last, elements * DTYPES[name].itemsize
        yield from ((dtype, first, min(first + step, end)) for first in range(begin, end, step))


def _work(inputs: Sequence[Input], blocks: Iterator[tuple[torch.dtype, int, int]], elements: int, write: Write) -> None:
    """Average blocks while there are any; of one after another input its part is in memory, beside the mean."""
    mean, buffer = None, torch.empty(elements * LARGEST, dtype=torch.uint8)
    for dtype, first, last in blocks:
        if mean is None or mean.dtype != dtype:
            mean = Mean(dtype, elements)
        data = buffer[: last - first]
        values, view = data.view(dtype), data.numpy().data
        mean.start(len(values))
        for one in inputs:
            one.read_into(first, view)
            mean.add(values, one.weight)
        mean.finish(values)
        write(first, view)


def _ranked(inputs: Sequence[Input], size: int, pool: ThreadPoolExecutor) -> list[Input]:
    """Return the inputs in an order given by their tensors' bytes; of equal ones by their weights.

    What distinguishes them is looked for from the end, where the head lies, if not the whole network was trained, no
    further than it takes. Pieces have the same places wherever the files lie, so the order has no other cause.
    """
    groups, end, step = [list(inputs)], size, GLIMPSE
    while end > 0 and len(groups) < len(inputs):
        first = max(end - step, 0)
        groups = [finer for group in groups for finer in _told_apart(group, first, end, pool)]
        end, step = first, min(2 * step, LOCAL_BLOCK)
    return [one for group in groups for one in sorted(group, key=attrgetter("weight"))]


def _told_apart(group: list[Input], first: int, last: int, pool: ThreadPoolExecutor) -> list[list[Input]]:
    if len(group) == 1:
        return [group]
    digests = pool.map(lambda one: one.digest(first, last), group)
    ranked = sorted(zip(digests, group, strict=True), key=itemgetter(0))
    return [[one for _, one in same] for _, same in groupby(ranked, key=itemgetter(0))]

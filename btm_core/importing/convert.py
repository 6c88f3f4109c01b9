"""Load a foreign checkpoint without running any of it, recognise it, and check it against its own network."""

import fnmatch
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btm_core.checkpoints import CheckpointMetadata, read_metadata
from btm_core.errors import CheckpointError, some_of
from btm_core.importing.families import FAMILIES, Layout, choose_averaged, fold_counters
from btm_core.models import build_model
from btm_core.tensor_files import load_tensors

__all__ = ["Imported", "import_checkpoint"]

CIFAR = {3: "resnet20", 5: "resnet32", 7: "resnet44", 9: "resnet56"}
TORCHVISION = {  # blocks a stage, bottlenecks, channels of the first 3x3 convolution and a group of it
    ((2, 2, 2, 2), False, 64, 64): "resnet18",
    ((3, 4, 6, 3), False, 64, 64): "resnet34",
    ((3, 4, 6, 3), True, 64, 64): "resnet50",
    ((3, 4, 23, 3), True, 64, 64): "resnet101",
    ((3, 8, 36, 3), True, 64, 64): "resnet152",
    ((3, 4, 6, 3), True, 128, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), True, 128, 4): "resnext101_32x4d",
    ((3, 4, 23, 3), True, 256, 8): "resnext101_32x8d",
}


@dataclass(frozen=True)
class Imported:
    """A checkpoint by our names, and what became of each tensor of the file."""

    family: str
    backbone: str
    num_classes: int | None
    """C, None without a head."""
    tensors: dict[str, Tensor]
    mapped: dict[str, str]
    """Our name to theirs."""
    dropped: dict[str, str]
    """Their name to the reason."""
    notes: list[str] = field(default_factory=list)
    metadata: CheckpointMetadata | None = None
    """What a checkpoint of this project says of itself: its classes in the head's order, and more."""

    def groups(self) -> dict[str, int]:
        """Return how many tensors were mapped, by the part of the network."""
        return dict(Counter(re.match(r"(backbone\.[^.]+|head)", name)[0] for name in self.mapped))  # type: ignore[index]


def import_checkpoint(
    source: Path,
    *,
    family: str | None = None,
    backbone: str | None = None,
    backbone_only: bool = False,
    ema: bool = False,
    drop: Sequence[str] = (),
) -> Imported:
    """Read a checkpoint of another system.

    Arguments:
    - family: one of those in `btm_core.importing.families`; recognised by default.
    - backbone: the architecture; recognised by default.
    - backbone_only: leave the head aside.
    - ema: take the averaged weights that lie beside the others, as training scripts of timm and torchvision write them.
    - drop: patterns (`aux.*`) of names to leave aside.

    Raises CheckpointError if the file is no checkpoint, needs code to be loaded, is of no known family, does not hold
    every tensor of its network and nothing else, or holds values that are no weights.
    """
    layout, family = _laid_out(source, family, ema)
    _leave_aside(layout, backbone_only, drop)
    if layout.no_linear_head is not None and not backbone_only:
        raise CheckpointError(f"{source}: {layout.no_linear_head}")
    _check_values(layout, source)
    fold_counters(layout.tensors)
    name = backbone or _recognised(layout, source)
    classes = len(layout.tensors["head.weight"]) if "head.weight" in layout.tensors else None
    _check(layout, name, classes, backbone_only, source)
    ours = None
    if family == "btm" and classes is not None and source.suffix == ".safetensors":
        ours = read_metadata(source)
    return Imported(family, name, classes, layout.tensors, layout.source, layout.dropped, layout.notes, ours)


def _laid_out(source: Path, family: str | None, ema: bool) -> tuple[Layout, str]:
    """Return what the file's family makes of it, every tensor of the file accounted for, and the family's name."""
    file = _load(source)
    known = {entry.name: entry for entry in FAMILIES}
    if family is not None and family not in known:
        raise CheckpointError(f"family {family!r} is unknown; known are {', '.join(known)}")
    candidates = [known[family]] if family else [entry for entry in FAMILIES if entry.matches(file)]
    if not candidates:
        keys = some_of([str(key) for key in file])
        raise CheckpointError(f"{source} is of no known family; its top level holds\n{keys}")
    entry = candidates[0]
    try:
        file = choose_averaged(file, entry) if ema else file
        layout = entry.lay_out(file)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{source} is not laid out as {entry.name} checkpoints are: {error!r}") from None
    if entry.reads is not None:
        for key, value in file.items():
            if key not in entry.reads:
                layout.leave(str(key), value)
    return layout, entry.name


def _leave_aside(layout: Layout, backbone_only: bool, drop: Sequence[str]) -> None:
    """Move what was asked to be left aside from the layout's tensors, known and unknown, to the dropped ones."""
    unasked = "the head: only the backbone was asked for"

    def reason(theirs: str, of_head: bool) -> str | None:
        if any(fnmatch.fnmatch(theirs, pattern) for pattern in drop):
            return "asked for by --drop"
        return unasked if of_head and backbone_only else None

    for ours, theirs in list(layout.source.items()):
        why = reason(theirs, ours.startswith("head."))
        if why is not None:
            del layout.tensors[ours], layout.source[ours]
            layout.dropped[theirs] = why
    unknown = [(name, False) for name in layout.unknown] + [(name, True) for name in layout.unknown_of_head]
    layout.unknown = []
    for theirs, of_head in unknown:
        why = reason(theirs, of_head)
        if why is None:
            layout.unknown.append(theirs)
        else:
            layout.dropped[theirs] = why


def _load(source: Path) -> Mapping[str, Any]:
    """Return the file's top level; nothing in it is ever run."""
    if source.is_dir():
        raise CheckpointError(f"checkpoint {source} is a folder, expected a file of torch.save or safetensors")
    if not source.is_file():
        raise CheckpointError(f"checkpoint {source} does not exist")
    with source.open("rb") as opened:
        pickled = opened.read(1) == b"\x80" or _is_zip(source)
    if source.suffix != ".safetensors" and not pickled:
        raise CheckpointError(
            f"{source} is no readable checkpoint: it was not written by torch, nor ends in .safetensors"
        )
    if source.suffix == ".safetensors":
        return load_tensors(source)
    try:
        _check_archive(source)
        with _numpy_scalars():
            file = torch.load(source, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # Not torch's text: it advises to load the file all the same.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        code = f"code ({named[1]})" if named else "code"
        raise CheckpointError(
            f"{source} names {code} that loading it would run, so it is not loaded; save "
            "its state dicts alone where it was made: torch.save({key: checkpoint[key] for key in ...}, path)"
        ) from None
    except Exception as error:  # a damaged file makes the readers raise whatever they come upon
        first = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]
        raise CheckpointError(f"{source} is no readable checkpoint: {first or type(error).__name__}") from None
    if not isinstance(file, Mapping):
        raise CheckpointError(f"{source} holds a {type(file).__name__}, expected a dict of tensors or of state dicts")
    _check_sizes(file, source)
    return file


def _is_zip(source: Path) -> bool:
    try:
        return zipfile.is_zipfile(source)
    except zipfile.BadZipFile:
        return False


def _check_archive(source: Path) -> None:
    """Refuse an archive that holds more than it is long: torch compresses nothing, so it is a bomb."""
    if not _is_zip(source):
        return
    with zipfile.ZipFile(source) as archive:
        total = sum(info.file_size for info in archive.infolist())
    if total > source.stat().st_size:
        raise CheckpointError(f"{source} is compressed, {total} bytes in {source.stat().st_size}: torch writes no such")


def _check_sizes(file: Mapping[str, Any], source: Path) -> None:
    """Refuse tensors that would take more room than the file: a stride of 0 makes terabytes out of four bytes."""
    bytes_there = source.stat().st_size
    waiting = [("", file)]
    seen: set[int] = set()
    while waiting:
        prefix, mapping = waiting.pop()
        seen.add(id(mapping))
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping) and id(value) not in seen:  # a pickle may hold a dict in itself
                waiting.append((f"{name}.", value))
            elif isinstance(value, Tensor):
                if value.layout != torch.strided or value.is_quantized or value.is_meta:
                    raise CheckpointError(f"{source}: {name} is no plain tensor, but sparse, quantized or empty")
                if value.numel() * value.element_size() > bytes_there:
                    raise CheckpointError(f"{source}: {name} has shape {tuple(value.shape)}, more than the file holds")


def _numpy_scalars() -> AbstractContextManager[Any]:
    """Allow NumPy's numbers: best accuracies are often saved as such. They are data."""
    import numpy as np

    multiarray = getattr(np, "_core", None) or np.core
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    guard = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if guard is None else guard([multiarray.multiarray.scalar, np.dtype, *kinds])


def _recognised(layout: Layout, source: Path) -> str:
    """Return the backbone whose blocks and widths the tensors have."""
    names = [name.removeprefix("backbone.") for name in layout.tensors if name.startswith("backbone.")]
    if any(re.match(r"(conv1|conv2|conv3)\.0\.weight", name) for name in names):
        return "small_cnn"
    blocks = tuple(
        1 + max((int(m[1]) for m in (re.match(rf"layer{stage}\.(\d+)\.", n) for n in names) if m), default=-1)
        for stage in (1, 2, 3, 4)
    )
    found = None
    if blocks[3] == 0 and len(set(blocks[:3])) == 1:
        found = CIFAR.get(blocks[0])
    elif "layer1.0.conv2.weight" in names and layout.tensors["backbone.layer1.0.conv2.weight"].dim() == 4:
        width, group = layout.tensors["backbone.layer1.0.conv2.weight"].shape[:2]
        found = TORCHVISION.get((blocks, "layer1.0.conv3.weight" in names, width, group))  # type: ignore[arg-type]
        first = layout.tensors.get("backbone.conv1.weight")
        if found == "resnet18" and first is not None and first.shape[-1] == 3:
            found = "cifar_resnet18"
    if found is None:
        raise CheckpointError(
            f"{source}: no backbone here has blocks {blocks}; if one does, name it with --backbone, else this "
            "architecture is not known"
        )
    return found


def _check_values(layout: Layout, source: Path) -> None:
    """Refuse values that no training leaves in weights."""
    problems = []
    for name, tensor in layout.tensors.items():
        counter = name.endswith("num_batches_tracked")
        if not tensor.is_floating_point() and not counter:
            problems.append(f"{layout.source[name]}: {tensor.dtype}, expected floating-point numbers")
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            problems.append(f"{layout.source[name]}: NaN or infinite values")
    if problems:
        raise CheckpointError(f"{source} holds values that are no weights:\n{some_of(problems)}")
    head = layout.tensors.get("head.weight")
    if head is not None and head.dim() != 2:
        raise CheckpointError(
            f"{source}: {layout.source['head.weight']} has shape {tuple(head.shape)}, expected (classes, features)"
        )


def _check(layout: Layout, backbone: str, classes: int | None, backbone_only: bool, source: Path) -> None:
    """Refuse a file that holds less, or more, than its network."""
    channels = next(
        (
            tensor.shape[1]
            for name, tensor in layout.tensors.items()
            if re.fullmatch(r"backbone\.conv1(\.0)?\.weight", name) and tensor.dim() == 4
        ),
        3,
    )
    if classes is None and not backbone_only:
        raise CheckpointError(f"{source} holds no head (fc or linear); import its backbone alone with --backbone-only")
    wanted = build_model(backbone, classes or 2, channels).state_dict()
    if classes is None:
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("head.")}
    missing = [n for n in wanted if n not in layout.tensors and not n.endswith("num_batches_tracked")]
    extra = [layout.source[name] for name in layout.tensors if name not in wanted] + layout.unknown
    shapes = [
        f"{layout.source[name]}: {tuple(layout.tensors[name].shape)}, {backbone} has {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in layout.tensors and layout.tensors[name].shape != tensor.shape
    ]
    problems = [f"missing: {name}" for name in missing] + [f"unknown: {name}" for name in extra] + shapes
    if problems:
        raise CheckpointError(
            f"{source} is not a whole {backbone} and nothing else ({len(problems)} differences); leave a tensor aside "
            f"with --drop, or name another --backbone:\n{some_of(problems)}"
        )

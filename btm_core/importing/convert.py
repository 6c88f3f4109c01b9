"""Load a foreign checkpoint without running any of it, recognise it, and check it against its own network."""

import fnmatch
import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from btm_core.errors import CheckpointError, some_of
from btm_core.importing.families import FAMILIES, Layout, fold_counters
from btm_core.models import build_model

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

    def groups(self) -> dict[str, int]:
        """Return how many tensors were mapped, by the part of the network."""
        return dict(Counter(re.match(r"(backbone\.[^.]+|head)", name)[0] for name in self.mapped))  # type: ignore[index]


def import_checkpoint(
    source: Path,
    *,
    family: str | None = None,
    backbone: str | None = None,
    backbone_only: bool = False,
    drop: Sequence[str] = (),
) -> Imported:
    """Read a checkpoint of another system.

    Arguments:
    - family: one of those in `btm_core.importing.families`; recognised by default.
    - backbone: the architecture; recognised by default.
    - backbone_only: leave the head aside.
    - drop: patterns (`aux.*`) of names to leave aside.

    Raises CheckpointError if the file is no checkpoint, needs code to be loaded, is of no known family, or does not
    hold every tensor of its network and nothing else.
    """
    file = _load(source)
    known = {entry.name: entry for entry in FAMILIES}
    if family is not None and family not in known:
        raise CheckpointError(f"family {family!r} is unknown; known are {', '.join(known)}")
    candidates = [known[family]] if family else [entry for entry in FAMILIES if entry.matches(file)]
    if not candidates:
        keys = some_of([str(key) for key in file])
        raise CheckpointError(f"{source} is of no known family; its top level holds\n{keys}")
    try:
        layout = candidates[0].lay_out(file)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{source} is not laid out as {candidates[0].name} checkpoints are: {error!r}") from None
    except CheckpointError as error:
        if not backbone_only:
            raise CheckpointError(f"{source}: {error}") from None
        raise
    for ours, theirs in list(layout.source.items()):
        reason = "the head: only the backbone was asked for" if backbone_only and ours.startswith("head.") else None
        reason = "asked for by --drop" if any(fnmatch.fnmatch(theirs, pattern) for pattern in drop) else reason
        if reason is not None:
            del layout.tensors[ours], layout.source[ours]
            layout.dropped[theirs] = reason
    layout.unknown = [name for name in layout.unknown if not any(fnmatch.fnmatch(name, pattern) for pattern in drop)]
    fold_counters(layout.tensors)
    name = backbone or _recognised(layout, source)
    classes = len(layout.tensors["head.weight"]) if "head.weight" in layout.tensors else None
    _check(layout, name, classes, backbone_only, source)
    return Imported(candidates[0].name, name, classes, layout.tensors, layout.source, layout.dropped, layout.notes)


def _load(source: Path) -> Mapping[str, Any]:
    """Return the file's top level; nothing in it is ever run."""
    if not source.is_file():
        raise CheckpointError(f"checkpoint {source} does not exist")
    try:
        if source.suffix == ".safetensors":
            return load_file(source)
        with _numpy_scalars():
            file = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{source} holds more than tensors and plain values, and is not run to find out ({reason}); save its state "
            "dicts alone where it was made: torch.save({key: checkpoint[key] for key in ...}, path)"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{source} is no readable checkpoint: {error}") from None
    if not isinstance(file, Mapping):
        raise CheckpointError(f"{source} holds a {type(file).__name__}, expected a dict of tensors or of state dicts")
    return file


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
    elif "layer1.0.conv2.weight" in names:
        width, group = layout.tensors["backbone.layer1.0.conv2.weight"].shape[:2]
        found = TORCHVISION.get((blocks, "layer1.0.conv3.weight" in names, width, group))  # type: ignore[arg-type]
    if found is None:
        raise CheckpointError(
            f"{source}: no backbone here has blocks {blocks}; if one does, name it with --backbone, else this "
            "architecture is not known"
        )
    return found


def _check(layout: Layout, backbone: str, classes: int | None, backbone_only: bool, source: Path) -> None:
    """Refuse a file that holds less, or more, than its network."""
    channels = next(
        (t.shape[1] for n, t in layout.tensors.items() if re.fullmatch(r"backbone\.conv1(\.0)?\.weight", n)), 3
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

"""Checkpoints: safetensors with one JSON document of metadata. Never pickle.

Keys are `backbone.*` and `head.*`; the metadata holds what is needed to use the weights and to know their origin.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from btm_core.errors import CheckpointError, StoreError, some_of
from btm_core.models import Classifier, build_model
from btm_core.tensor_files import load_tensors, read_header

__all__ = [
    "CheckpointMetadata",
    "check_classes",
    "load_backbone",
    "load_checkpoint",
    "load_into",
    "read_metadata",
    "save_checkpoint",
    "save_tensors",
]

METADATA_KEY = "btm"


class CheckpointMetadata(BaseModel):
    """What a checkpoint says of itself. It holds no date and no run, so equal work gives equal bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    backbone: str
    channels: int = Field(ge=1, le=16)
    size: int = Field(ge=1, le=2**16)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    stage: str
    lineage: dict[str, str] = {}
    """Digests of what it was made from, by role; `lost`: numbers of the subsets that a soup has no ingredient of."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous CPU copies of `tensors` as safetensors."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, dict(metadata) if metadata else None)


def save_checkpoint(model: Classifier, path: Path, metadata: CheckpointMetadata) -> None:
    """Write a classifier's weights and buffers, with metadata."""
    save_tensors(model.state_dict(), path, {METADATA_KEY: metadata.model_dump_json()})


def read_metadata(path: Path | str) -> CheckpointMetadata | None:
    """Return the metadata of a checkpoint, None if it carries none of ours. Raises CheckpointError if unreadable.

    `path` may be a URL; of a file in S3 no more is read than that. Raises StoreError if nobody answers there.
    """
    try:
        with _opened(path) as file:
            header = read_header(file, str(path))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist") from None
    except IsADirectoryError:
        raise CheckpointError(f"checkpoint {path} is a folder, expected a safetensors file") from None
    except StoreError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    try:
        text = header.metadata.get(METADATA_KEY)
        metadata = None if text is None else CheckpointMetadata.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise CheckpointError(f"{path} carries metadata that cannot be understood: {problems}") from None
    head = header.entries.get("head.weight")
    # Compared before a network of so many classes is built.
    if metadata is not None and head is not None and head.shape[:1] != (len(metadata.class_names),):
        raise CheckpointError(
            f"{path} has a head of shape {list(head.shape)}, and names {len(metadata.class_names)} classes"
        )
    return metadata


@contextmanager
def _opened(path: Path | str) -> Iterator[BinaryIO]:
    if isinstance(path, Path):
        with path.open("rb") as file:
            yield file
        return
    from btm_core.storage import open_ranges  # whoever has a local file needs no object storage

    with open_ranges(path) as ranges:
        yield ranges.stream()


def load_into(model: Classifier, path: Path) -> None:
    """Load weights into a model of the same architecture and class count.

    Raises CheckpointError that names what differs; nothing is loaded partially.
    """
    read_metadata(path)
    found = load_tensors(path)
    wanted = model.state_dict()
    head = found.get("head.weight")
    if head is not None and head.dim() == 2 and len(head) != len(wanted["head.weight"]):
        raise CheckpointError(f"{path} has {len(head)} classes, the data set has {len(wanted['head.weight'])}")
    _load(model, found, path)


def load_backbone(model: Classifier, path: Path, fresh_last_block: bool = False) -> None:
    """Load the backbone's weights alone; a head in the file, of however many classes, is left aside.

    With `fresh_last_block` the last block keeps the weights it has. Raises CheckpointError as `load_into` does.
    """
    read_metadata(path)
    found = {name: tensor for name, tensor in load_tensors(path).items() if not name.startswith("head.")}
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("head.")}
    if fresh_last_block:
        block = f"backbone.{model.last_block}."
        found = {name: tensor for name, tensor in found.items() if not name.startswith(block)}
        own |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(block)}
    _load(model, found | own, path)


def _load(model: Classifier, found: dict[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    # Counters of BN batches are bookkeeping: old files lack them.
    problems = [f"missing: {name}" for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    problems += [f"not in the model: {name}" for name in found if name not in wanted]
    problems += [
        f"{name}: shape {tuple(found[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} is a checkpoint of another architecture ({len(problems)} differences); set model.backbone to its "
            f"own:\n{some_of(problems)}"
        )
    bad = [name for name, tensor in found.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(f"{path} holds NaN or infinite values in {len(bad)} tensors:\n{some_of(bad)}")
    model.load_state_dict(found, strict=False)


def check_classes(path: Path, class_names: Sequence[str]) -> None:
    """Raise CheckpointError if a checkpoint says that its classes are others than these, or in another order."""
    metadata = read_metadata(path)
    if metadata is None or tuple(class_names) == metadata.class_names:
        return
    pairs = zip(metadata.class_names, class_names, strict=False)
    differing = [f"{c}: {theirs}, here {ours}" for c, (theirs, ours) in enumerate(pairs) if theirs != ours]
    raise CheckpointError(
        f"{path} was trained on other classes, or in another order: {len(metadata.class_names)} there, "
        f"{len(class_names)} here:\n{some_of(differing)}"
    )


def load_checkpoint(path: Path) -> tuple[Classifier, CheckpointMetadata]:
    """Build the classifier that a checkpoint of ours describes, and load it."""
    metadata = read_metadata(path)
    if metadata is None:
        raise CheckpointError(
            f"{path} carries no BTM metadata, so its architecture is unknown; "
            "btm import-checkpoint adds them, with --data"
        )
    model = build_model(metadata.backbone, len(metadata.class_names), metadata.channels)
    load_into(model, path)
    return model, metadata

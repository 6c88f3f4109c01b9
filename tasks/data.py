"""Data as an artifact: labels and class names, with pixels decoded once where the network sees them at one size."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from btm_core.config import NOT_IDENTITY, DataConfig, InputConfig, canonical_digest
from btm_core.errors import DataError, some_of
from btm_core.storage import Artifact, Store
from tasks.step import Step, Workspace

if TYPE_CHECKING:
    from btm_core.data.catalog import Catalog
    from btm_core.data.dataset import Dataset

__all__ = ["PrepareData", "fingerprint", "load_dataset", "prepare_data"]

DESCRIPTION, LABELS, PIXELS = "dataset.json", "labels.safetensors", "pixels.safetensors"


def fingerprint(catalog: "Catalog", cache: Path | None) -> dict[str, str]:
    """Return a sha256 for each split, over its labels and the content of every image, wherever they lie.

    Raises DataError if an image file is in two splits, under whatever name.
    """
    import hashlib

    from btm_core.data.files import content_digests

    hashes = {}
    seen: dict[str, tuple[str, str]] = {}
    shared: list[str] = []
    for split in catalog.splits:
        total = hashlib.sha256(split.labels.astype("<i8").tobytes())
        if split.pixels is not None:
            total.update(repr(split.pixels.shape).encode())
            total.update(split.pixels.tobytes())
        else:
            assert catalog.root is not None and split.paths is not None
            for path, digest in zip(split.paths, content_digests(catalog.root, split.paths, cache), strict=True):
                total.update(f"{path} {digest}\n".encode())
                owner, known = seen.setdefault(digest, (split.name, path))
                if owner != split.name:
                    shared.append(f"{split.name} image {path} is {owner} image {known}")
        hashes[split.name] = total.hexdigest()
    if shared:
        raise DataError(
            f"{len(shared)} images are, byte for byte, in two splits, so the test would be no test; remove them from "
            f"one:\n{some_of(shared)}"
        )
    return hashes


def prepare_data(name: str, config: DataConfig, cache: Path | None) -> "PrepareData":
    """Scan a data set, check it, and return the step that makes its artifact. Raises DataError."""
    from btm_core.data import scan

    catalog = scan(config)
    view = config.input
    hashes = fingerprint(catalog, cache)
    return PrepareData(
        name=name,
        source=config,
        content=canonical_digest({"classes": catalog.class_names, "splits": hashes}),
        hashes=hashes,
        size=view.size if view.decode_once else None,
        channels=view.channels,
    )


class PrepareData(Step):
    """Decode every image once: to check it, and to keep its pixels where one size is all that training needs."""

    kind: Literal["data"] = "data"
    stage: ClassVar[str] = "data"
    in_worker: ClassVar[bool] = False

    name: str = Field(json_schema_extra=NOT_IDENTITY)
    source: DataConfig = Field(json_schema_extra=NOT_IDENTITY)
    content: str
    """Fingerprint of what the source holds: class names and splits."""
    hashes: dict[str, str] = Field(json_schema_extra=NOT_IDENTITY)
    """Fingerprint of each split, of which `content` is made."""
    size: int | None
    """Pixels a side of packed images; None leaves the images where they are."""
    channels: int

    @property
    def readable(self) -> str:
        """Kind of source."""
        return self.source.format

    def run(self, work: Workspace) -> None:
        """Write labels, class names, and pixels or paths."""
        from safetensors.numpy import save_file

        from btm_core.data import scan
        from btm_core.data.files import pack_files, pack_pixels

        catalog = scan(self.source)
        splits = {split.name: split for split in catalog.splits}
        save_file({name: split.labels for name, split in splits.items()}, work.output / LABELS)
        pixels = {}
        for name, split in splits.items():
            if split.pixels is not None:
                pixels[name] = pack_pixels(split.pixels, self.size or self.source.input.size, self.channels)
            else:
                assert catalog.root is not None and split.paths is not None
                packed = pack_files(catalog.root, split.paths, self.size, self.channels)
                if packed is not None:
                    pixels[name] = packed
                lines = [f"{path} {label}\n" for path, label in zip(split.paths, split.labels.tolist(), strict=True)]
                (work.output / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
        if pixels:
            save_file(pixels, work.output / PIXELS)
        description: dict[str, Any] = {
            "content": self.content,
            "class_names": catalog.class_names,
            "train_counts": catalog.train_counts.tolist(),
            "packed": bool(pixels),
            "has_paths": catalog.train.paths is not None,
            "splits": {name: {"images": len(split), "hash": self.hashes[name]} for name, split in splits.items()},
        }
        (work.output / DESCRIPTION).write_text(json.dumps(description, indent=1))


def describe(store: Store, data: Artifact) -> dict[str, Any]:
    """Return class names, training counts and content fingerprint of a data artifact."""
    description: dict[str, Any] = store.read_json(data, DESCRIPTION)
    return description


def load_dataset(work: Workspace, data: Artifact, view: InputConfig, root: str | None) -> "Dataset":
    """Load a data artifact as the network is to see it; `root` is where image files lie if they are not packed."""
    import torch
    from safetensors.torch import load_file

    from btm_core.data.dataset import Dataset, ImageFiles, Images, LabelledImages, PackedPixels
    from btm_core.data.sources import read_list

    description = json.loads(work.fetch(data, DESCRIPTION).read_text())
    labels = load_file(work.fetch(data, LABELS))
    sources: dict[str, Images] = {}
    if description["packed"]:
        packed = load_file(work.fetch(data, PIXELS))
        sources = {name: PackedPixels(packed[name]) for name in labels}
    else:
        assert root is not None
        for name in labels:
            listing = work.fetch(data, f"{name}.txt")
            paths, _ = read_list(listing.read_text(encoding="utf-8"), str(listing))
            sources[name] = ImageFiles(root, tuple(paths))
    splits = {name: LabelledImages(sources[name], labels[name].to(torch.int64), view) for name in labels}
    names = tuple(description["class_names"])
    return Dataset(names, splits["train"], splits["test"], data.digest, splits.get("validation"))

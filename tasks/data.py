"""Data as an artifact: labels and class names, with pixels decoded once where the network sees them at one size."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from btm_core.config import NOT_IDENTITY, DataConfig, InputConfig, canonical_digest
from btm_core.errors import DataError, some_of
from btm_core.storage import Artifact, Store
from tasks.events import publish
from tasks.step import Step
from tasks.workspace import Emit, Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from btm_core.data.catalog import Catalog
    from btm_core.data.dataset import Dataset, LabelledImages
    from btm_core.data.reader import Tell

__all__ = [
    "PrepareData",
    "bring_near",
    "fingerprint",
    "group_counts",
    "load_dataset",
    "prepare_data",
    "scan_ahead",
    "unread_images",
]

DESCRIPTION, LABELS, PIXELS, DIGESTS = "dataset.json", "labels.safetensors", "pixels.safetensors", "digests.safetensors"


def image_digests(catalog: "Catalog", cache: Path | None, tell: "Tell", *, keep: bool = True) -> dict[str, list[str]]:
    """Return the sha256 of each image file of each split that has files; `keep`: note in the cache what was read.

    Raises DataError if an image file is in two splits, under whatever name.
    """
    from btm_core.data.files import content_digests

    digests = {
        split.name: content_digests(catalog.root or "", split.paths, cache, tell, keep=keep)
        for split in catalog.splits
        if split.paths is not None
    }
    seen: dict[str, tuple[str, str]] = {}
    shared: list[str] = []
    for split in catalog.splits:
        for path, digest in zip(split.paths or (), digests.get(split.name, ()), strict=True):
            owner, known = seen.setdefault(digest, (split.name, path))
            if owner != split.name:
                shared.append(f"{split.name} image {path} is {owner} image {known}")
    if shared:
        images = "1 image is" if len(shared) == 1 else f"{len(shared)} images are"
        raise DataError(
            f"{images}, byte for byte, in two splits, so the test would be no test; remove them from one (btm data "
            f"inspect finds more that is wrong, and with --write-clean DIR writes lists without it):\n{some_of(shared)}"
        )
    return digests


def unread_images(catalog: "Catalog", cache: Path | None) -> dict[str, int]:
    """Return the image files that `prepare_data` would have to read to know what they hold, and their sizes (bytes)."""
    from btm_core.data.files import unread_files

    paths = [path for split in catalog.splits for path in split.paths or ()]
    return unread_files(catalog.root or "", paths, cache) if paths else {}


def fingerprint(catalog: "Catalog", digests: dict[str, list[str]]) -> dict[str, str]:
    """Return a sha256 for each split, over its labels and the content of every image, wherever they lie."""
    hashes = {}
    for split in catalog.splits:
        total = hashlib.sha256(split.labels.astype("<i8").tobytes())
        if split.pixels is not None:
            total.update(repr(split.pixels.shape).encode())
            total.update(split.pixels.tobytes())
        for path, digest in zip(split.paths or (), digests.get(split.name, ()), strict=True):
            total.update(f"{path} {digest}\n".encode(errors="surrogateescape"))  # names that the locale cannot tell
        hashes[split.name] = total.hexdigest()
    return hashes


_ahead: dict[DataConfig, "Catalog"] = {}


def scan_ahead(config: DataConfig) -> "Catalog":
    """Scan a data set, to check it; the next `prepare_data` of it in this process takes what was found."""
    from btm_core.data import scan

    _ahead.clear()
    catalog = _ahead[config] = scan(config)
    return catalog


def prepare_data(
    name: str, config: DataConfig, cache: Path | None, catalog: "Catalog | None" = None, *, keep: bool = True
) -> "PrepareData":
    """Scan a data set, check it, and return the step that makes its artifact. Raises DataError.

    `cache` is where digests of image files are kept, which then need not be read again, if those read now are to be
    kept; `catalog` is what a scan found.
    """
    from btm_core.data import scan

    catalog = catalog or _ahead.pop(config, None) or scan(config)
    view = config.input
    tell = telling(publish, f"data/{config.format}")
    hashes = fingerprint(catalog, image_digests(catalog, cache, tell, keep=keep))
    held: dict[str, Any] = {"classes": catalog.class_names, "splits": hashes}
    if catalog.carved:  # the same splits, given as files, have other groups
        held["carved"] = True
    return PrepareData(
        name=name,
        source=config,
        cache=cache,
        content=canonical_digest(held),
        hashes=hashes,
        size=view.size if view.decode_once else None,
        channels=view.channels,
    )


def telling(emit: Emit, address: str) -> "Tell":
    """Return what makes events of how images are fetched."""
    stage = address.partition("/")[0]
    return lambda fetching: emit({"event": "fetch", "step": address, "stage": stage, **asdict(fetching)})


class PrepareData(Step):
    """Decode every image once: to check it, and to keep its pixels where one size is all that training needs."""

    kind: Literal["data"] = "data"
    stage: ClassVar[str] = "data"
    in_worker: ClassVar[bool] = False

    name: str = Field(json_schema_extra=NOT_IDENTITY)
    source: DataConfig = Field(json_schema_extra=NOT_IDENTITY)
    cache: Path | None = Field(None, json_schema_extra=NOT_IDENTITY)
    """Where digests of image files are kept."""
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

    def identity(self) -> dict[str, Any]:
        """Return what it holds. Images that are not packed go by their digests since version 2."""
        return {**super().identity(), "version": 1 if self.size is not None else 2}

    def run(self, work: Workspace) -> None:
        """Write labels, class names, and pixels, or paths and digests of the images."""
        from safetensors.numpy import save_file

        from btm_core.data import scan
        from btm_core.data.files import pack_files, pack_pixels

        catalog = scan(self.source)  # again: what is written must be what was fingerprinted, and still be there
        digests = image_digests(catalog, self.cache, telling(work.emit, self.address))
        if fingerprint(catalog, digests) != self.hashes:
            raise DataError(f"the data below {catalog.root} changed while they were read; run again")
        splits = {split.name: split for split in catalog.splits}
        save_file({name: split.labels for name, split in splits.items()}, work.output / LABELS)
        pixels = {}
        for name, split in splits.items():
            if split.pixels is not None:
                pixels[name] = pack_pixels(split.pixels, self.size or self.source.input.size, self.channels)
            else:
                assert catalog.root is not None and split.paths is not None
                packed = pack_files(catalog.root, split.paths, self.size, self.channels, digests[name])
                if packed is not None:
                    pixels[name] = packed
                lines = [f"{path} {label}\n" for path, label in zip(split.paths, split.labels.tolist(), strict=True)]
                (work.output / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
        if pixels:
            save_file(pixels, work.output / PIXELS)
        else:
            save_file({name: _as_bytes(values) for name, values in digests.items()}, work.output / DIGESTS)
        description: dict[str, Any] = {
            "content": self.content,
            "class_names": catalog.class_names,
            "train_counts": catalog.train_counts.tolist(),
            "packed": bool(pixels),
            "has_paths": catalog.train.paths is not None,
            "splits": {name: {"images": len(split), "hash": self.hashes[name]} for name, split in splits.items()},
        }
        if catalog.carved:
            description["uncarved_counts"] = catalog.uncarved_counts.tolist()
        (work.output / DESCRIPTION).write_text(json.dumps(description, indent=1))


def _as_bytes(digests: list[str]) -> "NDArray[np.uint8]":
    """Return hexadecimal digests as (N, 32) uint8."""
    import numpy as np

    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)


def describe(store: Store, data: Artifact) -> dict[str, Any]:
    """Return class names, training counts and content fingerprint of a data artifact."""
    description: dict[str, Any] = store.read_json(data, DESCRIPTION)
    return description


def group_counts(description: dict[str, Any]) -> list[int]:
    """Return the training images a class that say whether it is many, medium or few: those before any carving.

    So a run with a carved validation split has the groups of one without, and of the published tables.
    """
    counts: list[int] = description.get("uncarved_counts", description["train_counts"])
    return counts


def load_dataset(work: Workspace, data: Artifact, view: InputConfig, root: str | None) -> "Dataset":
    """Load a data artifact as the network is to see it; `root` is where image files lie if they are not packed."""
    import torch

    from btm_core.data.dataset import Dataset, LabelledImages
    from btm_core.data.images import ImageFiles, Images, PackedPixels
    from btm_core.data.sources import read_list
    from btm_core.tensor_files import load_tensors

    description = json.loads(work.fetch(data, DESCRIPTION).read_text())
    labels = load_tensors(work.fetch(data, LABELS))
    sources: dict[str, Images] = {}
    if description["packed"]:
        packed = load_tensors(work.fetch(data, PIXELS))
        sources = {name: PackedPixels(packed[name]) for name in labels}
    else:
        assert root is not None
        digests = load_tensors(work.fetch(data, DIGESTS))
        for name in labels:
            listing = work.fetch(data, f"{name}.txt")
            paths, _ = read_list(listing.read_text(encoding="utf-8"), str(listing))
            files = ImageFiles(root, tuple(paths), digests[name].numpy())
            # What is trained on is used again and again; the other splits once.
            if name == "train" and work.pixels is not None:
                files = files.kept_in(work.pixels, view.channels)
            sources[name] = files
    splits = {name: LabelledImages(sources[name], labels[name].to(torch.int64), view) for name in labels}
    names = tuple(description["class_names"])
    return Dataset(names, splits["train"], splits["test"], data.digest, splits.get("validation"))


def bring_near(work: Workspace, images: "LabelledImages") -> "LabelledImages":
    """Fetch images that lie elsewhere, all at once, into this machine's cache; return them as they were.

    For stages that use a few images of many again and again: the others fetch as they go.
    """
    from btm_core.data.images import ImageFiles

    if isinstance(images.images, ImageFiles):
        images.images.bring_near(telling(work.emit, work.address))
    return images

"""Sampling of balanced subsets (Algorithm 1, line 2)."""

import hashlib
import json
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from btm_core.config import NOT_IDENTITY, SamplingConfig
from btm_core.errors import DataError, some_of
from btm_core.storage import Artifact, read_bytes
from tasks.data import DESCRIPTION, LABELS
from tasks.step import Step
from tasks.workspace import Workspace

__all__ = ["SUBSET", "SampleSubset", "UnionOfSubsets", "check_lists", "short_classes"]

SUBSET = "subset.json"


def _read(listing: str) -> bytes:
    try:
        return read_bytes(listing)
    except OSError as error:
        why = "it does not exist" if isinstance(error, FileNotFoundError) else error
        raise DataError(f"sampling.lists: {listing} cannot be read: {why}") from None


def check_lists(lists: Sequence[str], *, has_paths: bool) -> None:
    """Raise DataError if subsets are listed by path and the data set has none, or a list on this machine is absent."""
    if lists and not has_paths:
        raise DataError("sampling.lists names images by path, but this data set has none: leave it out, and draw")
    for listing in lists:
        if "://" not in listing:
            _read(listing)


def short_classes(counts: Sequence[int], names: Sequence[str], shots: int, when_short: str) -> list[int]:
    """Return the classes with fewer than `shots` images. Raises DataError if that is not to be."""
    from btm_core.sampling import shortfall

    short: list[int] = shortfall(counts, shots).tolist()
    if short and when_short == "error":
        lines = [f"{c} ({names[c]}): {counts[c]} images" for c in short]
        raise DataError(
            f"{len(short)} classes have fewer images than sampling.shots = {shots}; lower it, or set "
            f"sampling.when_short to take-all:\n{some_of(lines)}"
        )
    return short


class SampleSubset(Step):
    """Draw balanced subset number `index`."""

    kind: Literal["sample"] = "sample"
    stage: ClassVar[str] = "sample"
    in_worker: ClassVar[bool] = False

    data: Artifact
    shots: int
    when_short: str
    seed: int
    index: int
    listing: str | None = Field(None, json_schema_extra=NOT_IDENTITY)
    """A file of `path label` lines to take instead of drawing."""
    listed: str | None = None
    """sha256 of that file."""

    @classmethod
    def all(cls, data: Artifact, config: SamplingConfig, seed: int) -> "list[SampleSubset]":
        """Return the N_D steps; each is independent of how many others there are."""
        lists = config.lists or (None,) * config.num_subsets
        return [
            cls(
                data=data,
                shots=config.shots,
                when_short=config.when_short,
                seed=seed,
                index=index,
                listing=listing,
                listed=None if listing is None else hashlib.sha256(_read(listing)).hexdigest(),
            )
            for index, listing in enumerate(lists)
        ]

    @property
    def readable(self) -> str:
        """Number of the subset."""
        return f"subset-{self.index:02d}"

    def run(self, work: Workspace) -> None:
        """Write the positions, and which classes are short of images."""
        from btm_core.sampling import balanced_subset
        from btm_core.tensor_files import load_arrays

        description = json.loads(work.fetch(self.data, DESCRIPTION).read_text())
        labels = load_arrays(work.fetch(self.data, LABELS))["train"]
        short = short_classes(description["train_counts"], description["class_names"], self.shots, self.when_short)
        if self.listing is None:
            positions = balanced_subset(labels, self.shots, self.seed, self.index).tolist()
        else:
            positions = self._listed_positions(work, self.listing)
        subset = {"index": self.index, "shots": self.shots, "short_classes": short, "positions": positions}
        (work.output / SUBSET).write_text(json.dumps(subset))

    def _listed_positions(self, work: Workspace, listing: str) -> list[int]:
        """Find the listed images in the training split, by the last two components of their path and their label."""
        from btm_core.data.locate import short_name
        from btm_core.data.sources import read_list

        description = json.loads(work.fetch(self.data, DESCRIPTION).read_text())
        check_lists([listing], has_paths=description["has_paths"])
        paths, labels = read_list(work.fetch(self.data, "train.txt").read_text(encoding="utf-8"), "train.txt")
        position_of = {
            (short_name(path), int(label)): i for i, (path, label) in enumerate(zip(paths, labels, strict=True))
        }
        wanted, classes = read_list(_read(listing).decode(), listing)
        keys = [(short_name(path), int(label)) for path, label in zip(wanted, classes, strict=True)]
        unknown = [f"{path} {label}" for (path, label) in keys if (path, label) not in position_of]
        if unknown:
            raise DataError(f"{listing}: {len(unknown)} images are not in the training split:\n{some_of(unknown)}")
        return sorted({position_of[key] for key in keys})


class UnionOfSubsets(Step):
    """Take every image of some balanced subsets once. The result is balanced no more (Figure 2)."""

    kind: Literal["union"] = "union"
    stage: ClassVar[str] = "sample"
    in_worker: ClassVar[bool] = False

    subsets: tuple[Artifact, ...]

    @property
    def readable(self) -> str:
        """Number of subsets."""
        return f"union-of-{len(self.subsets)}"

    def run(self, work: Workspace) -> None:
        """Write the positions."""
        drawn = [json.loads(work.fetch(subset, SUBSET).read_text()) for subset in self.subsets]
        positions = sorted(set().union(*(subset["positions"] for subset in drawn)))
        union = {"index": None, "shots": None, "short_classes": drawn[0]["short_classes"], "positions": positions}
        (work.output / SUBSET).write_text(json.dumps(union))

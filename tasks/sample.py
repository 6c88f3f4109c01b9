"""Sampling of balanced subsets (Algorithm 1, line 2)."""

import json
from collections.abc import Sequence
from typing import ClassVar, Literal

from btm_core.config import SamplingConfig
from btm_core.errors import DataError, some_of
from btm_core.storage import Artifact
from tasks.data import DESCRIPTION, LABELS
from tasks.step import Step, Workspace

__all__ = ["SUBSET", "SampleSubset", "UnionOfSubsets", "short_classes"]

SUBSET = "subset.json"


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

    @classmethod
    def all(cls, data: Artifact, config: SamplingConfig, seed: int) -> "list[SampleSubset]":
        """Return the N_D steps; each is independent of how many others there are."""
        return [
            cls(data=data, shots=config.shots, when_short=config.when_short, seed=seed, index=index)
            for index in range(config.num_subsets)
        ]

    @property
    def readable(self) -> str:
        """Number of the subset."""
        return f"subset-{self.index:02d}"

    def run(self, work: Workspace) -> None:
        """Write the positions, and which classes are short of images."""
        from safetensors.numpy import load_file

        from btm_core.sampling import balanced_subset

        description = json.loads(work.fetch(self.data, DESCRIPTION).read_text())
        labels = load_file(work.fetch(self.data, LABELS))["train"]
        short = short_classes(description["train_counts"], description["class_names"], self.shots, self.when_short)
        positions = balanced_subset(labels, self.shots, self.seed, self.index)
        subset = {"index": self.index, "shots": self.shots, "short_classes": short, "positions": positions.tolist()}
        (work.output / SUBSET).write_text(json.dumps(subset))


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

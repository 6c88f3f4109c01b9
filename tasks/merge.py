"""Merging of the ingredients into one network (Algorithm 1, line 3)."""

import json
from typing import ClassVar, Literal

from btm_core.config import MergeConfig
from btm_core.storage import Artifact
from tasks.stages import WEIGHTS
from tasks.step import Step, Workspace

__all__ = ["Merge"]


class Merge(Step):
    """Average the ingredients' weights, 1 / N_D each."""

    kind: Literal["merge"] = "merge"
    stage: ClassVar[str] = "merge"

    ingredients: tuple[Artifact, ...]
    config: MergeConfig

    @property
    def readable(self) -> str:
        """Kind and number of ingredients."""
        return f"{self.config.strategy}-of-{len(self.ingredients)}"

    def run(self, work: Workspace) -> None:
        """Write the soup."""
        from btm_core.checkpoints import METADATA_KEY, read_metadata
        from btm_core.merging import merge

        paths = [work.fetch(ingredient, WEIGHTS) for ingredient in self.ingredients]
        first = read_metadata(paths[0])
        assert first is not None
        lineage = {f"ingredient-{i:02d}": ingredient.digest for i, ingredient in enumerate(self.ingredients)}
        metadata = first.model_copy(update={"stage": self.stage, "lineage": {"data": first.lineage["data"], **lineage}})
        merge(paths, work.output / WEIGHTS, metadata={METADATA_KEY: json.dumps(metadata.model_dump(mode="json"))})

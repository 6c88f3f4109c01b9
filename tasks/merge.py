"""Merging of the ingredients into one network (Algorithm 1, line 3; Table 6 for other weights than 1 / N_D)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from btm_core.config import NOT_IDENTITY, InputConfig, MergeConfig
from btm_core.storage import Artifact
from tasks.data import bring_near, load_dataset
from tasks.sample import SUBSET
from tasks.stages import WEIGHTS
from tasks.step import Step
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from btm_core.data.dataset import LabelledImages

__all__ = ["ChosenMerge", "Merge"]

CHOICE = "choice.json"


class Soup(Step):
    """What both ways to merge have in common.

    - ingredients: fine-tuned networks, by number of their subset, less those that were lost.
    - lost: numbers of the subsets that an experiment goes on without (`finetune.quorum`).
    """

    stage: ClassVar[str] = "merge"
    version: ClassVar[int] = 2

    ingredients: tuple[Artifact, ...]
    lost: tuple[int, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return the values that determine the result; of losses only if there are any, which the soup then tells."""
        values = super().identity()
        return values if self.lost else {name: value for name, value in values.items() if name != "lost"}

    def numbers(self) -> list[int]:
        """Return the number of the subset of each ingredient."""
        return [i for i in range(len(self.ingredients) + len(self.lost)) if i not in self.lost]

    def write(self, work: Workspace, members: Sequence[int], weights: Sequence[float] | None) -> None:
        """Write the average of the ingredients at some positions as this step's classifier."""
        from btm_core.checkpoints import METADATA_KEY, read_metadata
        from btm_core.merging import merge

        paths = [work.fetch(self.ingredients[member], WEIGHTS) for member in members]
        first = read_metadata(paths[0])
        assert first is not None
        numbers = self.numbers()
        lineage = {"data": first.lineage["data"]}
        lineage |= {f"ingredient-{numbers[member]:02d}": self.ingredients[member].digest for member in members}
        if self.lost:
            lineage["lost"] = ", ".join(f"{number:02d}" for number in self.lost)
        metadata = first.model_copy(update={"stage": "merge", "lineage": lineage})
        document = json.dumps(metadata.model_dump(mode="json"))
        merge(paths, work.output / WEIGHTS, weights, metadata={METADATA_KEY: document})


class Merge(Soup):
    """Average the ingredients' weights: 1 / N_D each, or as given (equations 2 and 3 interpolate between two)."""

    kind: Literal["merge"] = "merge"

    weights: tuple[float, ...] | None = None

    @property
    def readable(self) -> str:
        """Kind and number of ingredients."""
        if self.weights is None:
            return f"uniform-of-{len(self.ingredients)}"
        return "weighted-" + "-".join(f"{weight:g}" for weight in self.weights)

    def run(self, work: Workspace) -> None:
        """Write the soup."""
        self.write(work, range(len(self.ingredients)), self.weights)


class ChosenMerge(Soup):
    """Average the ingredients by their own scores: adaptive ratios, or a greedy soup."""

    kind: Literal["chosen_merge"] = "chosen_merge"
    version: ClassVar[int] = 3

    config: MergeConfig
    data: Artifact
    view: InputConfig
    subsets: tuple[Artifact, ...]
    root: str | None = Field(None, json_schema_extra=NOT_IDENTITY)

    @property
    def readable(self) -> str:
        """Kind and number of ingredients."""
        return f"{self.config.strategy.replace('_', '-')}-of-{len(self.ingredients)}"

    def run(self, work: Workspace) -> None:
        """Score the ingredients, choose, and write the soup with what was chosen."""
        from btm_core.checkpoints import load_checkpoint
        from btm_core.evaluation import predict
        from btm_core.merging import merge
        from btm_core.soups import adaptive_weights, criterion, greedy_soup

        paths = [work.fetch(ingredient, WEIGHTS) for ingredient in self.ingredients]
        data = self._criterion_data(work)
        kind, _, mean = self.config.strategy.partition("_")

        def score(path: Path) -> float:
            model, _ = load_checkpoint(path)
            return criterion(data.labels.numpy(), predict(model, data, work.device)[0], mean)

        def score_of_soup(members: Sequence[int]) -> float:
            merge([paths[member] for member in members], work.scratch / "soup.safetensors")
            return score(work.scratch / "soup.safetensors")

        scores = [score(path) for path in paths]
        if kind == "adaptive":
            members, weights = list(range(len(paths))), tuple(adaptive_weights(scores).tolist())
        else:
            members = greedy_soup(scores, score_of_soup)
            weights = (1 / len(members),) * len(members)
        self.write(work, members, weights)
        taken = [self.numbers()[member] for member in members]
        choice = {"criterion": self.config.criterion, "scores": scores, "members": taken, "weights": weights}
        (work.output / CHOICE).write_text(json.dumps(choice, indent=1))

    def _criterion_data(self, work: Workspace) -> "LabelledImages":
        """Return the images to score on: all balanced subsets, or the validation split; never the test split."""
        import torch

        dataset = load_dataset(work, self.data, self.view, self.root)
        if self.config.criterion == "validation":
            assert dataset.validation is not None  # the experiment would not have been valid
            return dataset.validation
        drawn = [json.loads(work.fetch(subset, SUBSET).read_text())["positions"] for subset in self.subsets]
        return bring_near(work, dataset.train.take(torch.tensor(sorted(set().union(*drawn)))))

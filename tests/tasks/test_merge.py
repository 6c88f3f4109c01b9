"""Merging as a step: what the soup's header says of its ingredients, and of those that were lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import small_experiment, write_digits, write_lists

from btm_core.checkpoints import CheckpointMetadata, read_metadata, save_checkpoint
from btm_core.config import ExperimentConfig, MergeConfig
from btm_core.models import build_model
from btm_core.storage import Artifact, Store
from btm_core.tensor_files import load_tensors
from flows.btm import merge_step
from tasks.data import prepare_data
from tasks.merge import ChosenMerge, Merge
from tasks.sample import SampleSubset
from tasks.step import Step, perform

CLASSES = ("digit-0", "digit-1", "digit-2")


def silent(event: dict[str, Any]) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def ingredients(store: Store, tmp_path: Path) -> list[Artifact]:
    """Four networks of different weights, as fine-tunes leave them."""
    made = []
    for index in range(4):
        out = tmp_path / f"ingredient-{index}"
        out.mkdir()
        metadata = CheckpointMetadata(
            backbone="small_cnn", channels=1, size=8, mean=(0.3,), std=(0.4,), class_names=CLASSES,
            train_counts=(20, 8, 5), stage="finetune", lineage={"data": "0" * 64, "subset": str(index)},
        )  # fmt: skip
        save_checkpoint(build_model("small_cnn", 3, 1, index), out / "model.safetensors", metadata)
        facts: dict[str, Any] = {"config": {}, "parents": {}, "versions": {}, "host": {}}
        made.append(store.publish(f"finetune/subset-{index:02d}-{index:016x}", out, **facts))
    return made


def lineage(store: Store, soup: Artifact, folder: Path) -> dict[str, str]:
    """Return what the header of a soup says of its origin, less the data."""
    metadata = read_metadata(store.fetch(soup, "model.safetensors", folder))
    assert metadata is not None
    return {role: told for role, told in metadata.lineage.items() if role != "data"}


def test_a_soup_names_its_ingredients_by_their_subsets_and_says_what_was_lost(
    store: Store, ingredients: list[Artifact], tmp_path: Path
) -> None:
    zero, _, two, _ = ingredients
    experiment = ExperimentConfig.model_validate(small_experiment(format="digits"))
    step = merge_step(experiment, {0: zero, 2: two}, {3: "it died", 1: "so did it"}, [], zero)
    assert lineage(store, perform(step, store, silent), tmp_path) == {
        "ingredient-00": zero.digest, "ingredient-02": two.digest, "lost": "01, 03",
    }  # fmt: skip


def test_a_soup_of_all_says_nothing_of_losses(store: Store, ingredients: list[Artifact], tmp_path: Path) -> None:
    """Those that subsets were lost of are others, of the same weights though they may be."""
    whole, less = Merge(ingredients=tuple(ingredients[:2])), Merge(ingredients=tuple(ingredients[:2]), lost=(2,))
    assert whole.identity().keys() == {"stage", "version", "kind", "ingredients", "weights"}
    assert whole.address != less.address
    soups = [perform(step, store, silent) for step in (whole, less)]
    told = {f"ingredient-{index:02d}": ingredient.digest for index, ingredient in enumerate(ingredients[:2])}
    assert [lineage(store, soup, tmp_path) for soup in soups] == [told, told | {"lost": "02"}]
    weights = [load_tensors(store.fetch(soup, "model.safetensors", tmp_path)) for soup in soups]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("strategy", ["adaptive_h_mean", "greedy_h_mean"])
def test_so_does_a_chosen_one(strategy: str, store: Store, ingredients: list[Artifact], tmp_path: Path) -> None:
    root = write_digits(tmp_path / "images")
    write_lists(root)
    raw = small_experiment(format="list", root=str(root), train="train.txt", test="test.txt")
    experiment = ExperimentConfig.model_validate(raw)
    data = perform(prepare_data("own", experiment.data, None), store, silent)
    subsets = tuple(perform(step, store, silent) for step in SampleSubset.all(data, experiment.sampling, 0))
    step: Step = ChosenMerge(
        ingredients=tuple(ingredients[1:]), lost=(0,), config=MergeConfig(strategy=strategy), data=data,
        view=experiment.data.input, subsets=subsets, root=str(root),
    )  # fmt: skip
    soup = perform(step, store, silent)
    choice = json.loads(store.read_file(soup, "choice.json") or b"{}")
    assert choice["members"] and set(choice["members"]) <= {1, 2, 3}
    assert lineage(store, soup, tmp_path) == {
        **{f"ingredient-{number:02d}": ingredients[number].digest for number in choice["members"]}, "lost": "00",
    }  # fmt: skip

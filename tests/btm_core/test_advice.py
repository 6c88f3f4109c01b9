"""Advice is a configuration that holds, whatever the data, and says what it was given for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from btm_core.advice import GOALS, Choice, Goal, Seen, Start, advise, experiment_yaml
from btm_core.config import load_experiment
from btm_core.data.glimpse import Glimpse


def seen(counts: list[int], side: int = 32, grey: bool = False, **more: Any) -> Seen:
    images = Glimpse(100, 0, (side, side, side), grey, (0.5,) * (1 if grey else 3), (0.2,) * (1 if grey else 3))
    names = [f"class {c}" for c in range(len(counts))]
    values: dict[str, Any] = {"gpus": 0} | more
    return Seen(names, np.array(counts), np.full(len(counts), 5), images, **values)


def written(choices: list[Choice], folder: Path, name: str = "mine") -> Path:
    path = folder / "mine.yaml"
    path.write_text(experiment_yaml(["For a test."], name, {"format": "image_folder", "root": "images"}, choices))
    return path


@pytest.mark.parametrize("counts", [[2, 1], [150, 90, 4], [500, 50, 20], [1000] * 200 + [3] * 300, [40_000, 30_000]])
@pytest.mark.parametrize("side", [8, 28, 64, 500])
@pytest.mark.parametrize("gpus", [0, 1])
def test_it_loads_for_any_data_and_holds_what_was_chosen(
    counts: list[int], side: int, gpus: int, tmp_path: Path
) -> None:
    for goal in GOALS:
        for grey in (False, True):
            choices = advise(seen(counts, side, grey, gpus=gpus, goal=goal))
            config = load_experiment(written(choices, tmp_path)).model_dump()
            for choice in choices:
                value: Any = config
                for key in choice.key.split("."):
                    value = value[key]
                assert value == (tuple(choice.value) if isinstance(choice.value, list) else choice.value), choice


def chosen(choices: list[Choice]) -> dict[str, Any]:
    return {choice.key: choice.value for choice in choices}


def test_choices_follow_the_data() -> None:
    assert [chosen(advise(seen([50] * 9, side)))["model.backbone"] for side in (8, 32, 64, 300)] == [
        "small_cnn",
        "resnet32",
        "resnet18",
        "resnet18",
    ]
    photographs = chosen(advise(seen([5000] * 9, 300, gpus=1)))
    assert (photographs["model.backbone"], photographs["data.input.size"]) == ("resnet50", 224)
    assert photographs["model.precision"] == "bfloat16"
    assert chosen(advise(seen([50, 4, 4], 32)))["sampling.shots"] == 5
    assert chosen(advise(seen([50, 40, 4], 32)))["sampling.shots"] == 10
    epochs = [chosen(advise(seen([500] * 9, goal=goal)))["pretrain.epochs"] for goal in GOALS]
    assert epochs == sorted(set(epochs))
    assert chosen(advise(seen([500] * 9)))["data.validation_per_class"] == 10
    assert chosen(advise(seen([500, 4])))["data.validation_per_class"] is None


def test_reasons_name_what_was_seen() -> None:
    reasons = {choice.key: choice.why for choice in advise(seen([150, 90, 4]))}
    assert "smallest class (class 2) has 4 images" in reasons["sampling.shots"]
    assert "1 of 3 classes have fewer than 10" in reasons["sampling.shots"]
    assert "244 images in batches of 32" in reasons["pretrain.epochs"]
    assert "shorter side of 32 pixels" in reasons["data.input.size"]


@pytest.mark.parametrize("key", ["checkpoint", "initial"])
def test_a_file_to_start_from_decides_the_network(key: Any, tmp_path: Path) -> None:
    start = Start(key, str(tmp_path / "stage1.safetensors"), "resnet20", 32, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    config = load_experiment(written(advise(seen([50, 30], 300, grey=True, start=start)), tmp_path))
    assert (config.model.backbone, config.data.input.size, config.data.input.channels) == ("resnet20", 32, 3)
    assert config.data.input.mean == (0.1, 0.2, 0.3)
    assert getattr(config.pretrain, key) == start.file


@pytest.mark.parametrize("name", ["a: b", "# no", "x\ny", "\x85z", "'", "ü" * 300, "- [", "\u2028"])
def test_class_names_cannot_break_the_file(name: str, tmp_path: Path) -> None:
    data = seen([50, 4])
    strange = Seen([name, name + name], data.train_counts, data.test_counts, data.images, 0)
    path = written(advise(strange), tmp_path)
    assert set(yaml.safe_load(path.read_text())) == {
        "name", "seed", "data", "model", "pretrain", "sampling", "finetune", "post_train"
    }  # fmt: skip
    load_experiment(path)


def test_goals_are_all_told() -> None:
    for goal in GOALS:
        assert isinstance(goal, str) and GOALS[goal]
    assert set(GOALS) == set(Goal.__args__)

"""Every preset: what it says of itself, and one step of each of its stages on synthetic images."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from btm_core.config import ExperimentConfig, load_experiment, preset_names, preset_text
from btm_core.data.dataset import LabelledImages, PackedPixels
from btm_core.methods import stage1_trainer
from btm_core.models import Classifier, build_model
from btm_core.post_training import post_trainer
from btm_core.training import part_trainer

CLASSES = {"digits": 10, "cifar100": 100, "places": 365, "imagenet": 1000, "inat18": 8142}
PAPER = {  # Tables 2 to 5 and 9: the row that each preset aims at
    "cifar100-lt": (36.3, 42.9, 47.1),
    "cifar100-lt-otmix": (32.1, 35.6, 46.3),
    "cifar100-lt-h2t": (34.2, 43.5, 47.3),
    "cifar100-lt-gml": (36.7, 41.3, 46.9),
    "places-lt": (29.7, 35.6, 40.2),
    "places-lt-gpaco": (29.4, 35.9, 40.5),
    "imagenet-lt": (20.3, 46.2, 52.4),
    "imagenet-lt-paco": (22.7, 51.6, 58.0),
    "imagenet-lt-otmix": (18.2, 35.5, 48.7),
    "imagenet-lt-pascl": (20.7, 37.4, 45.2),
    "inat18": (2.3, 51.9, 71.3),
}


@dataclass
class Synthetic:
    """A few images of the preset's size, with labels among the preset's classes."""

    data: LabelledImages
    counts: torch.Tensor


def synthetic(config: ExperimentConfig, name: str) -> Synthetic:
    classes = CLASSES[name.split("-")[0]]
    view = config.data.input
    pixels = torch.randint(256, (3, view.channels, view.size, view.size), dtype=torch.uint8)
    labels = torch.tensor([0, classes // 2, classes - 1])
    counts = torch.from_numpy(np.linspace(300, 5, classes).astype(np.int64))
    return Synthetic(LabelledImages(PackedPixels(pixels), labels, view), counts)


def test_the_presets_are_those_of_the_paper_and_of_this_project() -> None:
    at_other_factors = {f"cifar100-lt{m}-if{f}" for m in ("", "-otmix", "-h2t") for f in (10, 50)}
    assert set(preset_names()) == {*PAPER, *at_other_factors, "digits-lt", "cifar100-lt-cpu"}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_names_its_source_hardware_and_command(name: str) -> None:
    config = load_experiment(name)
    assert config.source
    assert config.hardware
    assert f"btm run {name}" in preset_text(name)
    if name in PAPER:
        assert config.published is not None
        assert (config.published["h_mean"], config.published["g_mean"], config.published["accuracy"]) == PAPER[name]
    if config.pretrain.method.name != "cross_entropy":
        assert config.fc is not None  # a base that handled imbalance gets a head that does not (section 3.3)
        assert config.post_train.epochs == 40
    assert config.finetune.epochs == (30 if name in PAPER else config.finetune.epochs)


def test_a_preset_that_leaks_says_so() -> None:
    assert "LEAK" in preset_text("imagenet-lt-otmix")
    assert "leak" in str(load_experiment("imagenet-lt-otmix").source)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_trains_one_step_of_every_stage(name: str) -> None:
    config = load_experiment(name)
    made = synthetic(config, name)
    model = build_model(config.model.backbone, len(made.counts), config.data.input.channels)
    once = {"epochs": 1, "batch_size": 3, "warmup_epochs": 0}
    assert_finite(stage1_trainer(model, made.data, made.counts, config.pretrain.model_copy(update=once), seed=0))
    if config.fc is not None:
        assert_finite(part_trainer(model, "head", made.data, config.fc.model_copy(update=once), seed=("fc",)))
    finetune = config.finetune.model_copy(update=once)
    assert_finite(part_trainer(model, finetune.train, made.data, finetune, seed=("finetune",)))
    wrapped, trainer = post_trainer(
        model, made.data, made.counts, config.post_train.model_copy(update=once), seed=("post",)
    )
    assert_finite(trainer)
    folded: Classifier = wrapped.folded()
    assert all(torch.isfinite(tensor).all() for tensor in folded.state_dict().values())


def assert_finite(trainer: object) -> None:
    records = list(trainer)  # type: ignore[call-overload]
    assert len(records) == 1
    assert np.isfinite(records[0].loss)

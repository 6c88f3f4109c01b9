"""Every preset: what it says of itself, and one step of each of its stages on synthetic images."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from btm_core.config import ExperimentConfig, load_experiment, preset_names, preset_text
from btm_core.data.dataset import LabelledImages
from btm_core.data.images import PackedPixels
from btm_core.methods import stage1_trainer
from btm_core.models import Classifier, build_model
from btm_core.post_training import post_trainer
from btm_core.training import part_trainer

CLASSES = {"digits": 10, "cifar100": 100, "places": 365, "imagenet": 1000, "inat18": 8142}
PAPER = {  # H-mean, G-mean, lowest recall, accuracy, many, medium, few of the row that each preset aims at
    "cifar100-lt": (36.3, 42.9, 8.0, 47.1, 61.0, 48.9, 27.2),  # Table 2
    "cifar100-lt-otmix": (32.1, 35.6, 7.0, 46.3, 69.5, 46.6, 16.1),
    "cifar100-lt-h2t": (34.2, 43.5, 8.3, 47.3, 60.1, 50.2, 28.6),
    "cifar100-lt-gml": (36.7, 41.3, 8.0, 46.9),  # Table 9 has no groups
    "places-lt": (29.7, 35.6, 4.0, 40.2, 39.2, 43.1, 36.0),  # Table 3
    "places-lt-gpaco": (29.4, 35.9, 2.3, 40.5, 38.4, 46.3, 33.2),
    "imagenet-lt": (20.3, 46.2, 0.0, 52.4, 62.5, 50.6, 34.8),  # Table 4; its lowest recalls are in the text: all zero
    "imagenet-lt-paco": (22.7, 51.6, 0.0, 58.0, 65.9, 52.7, 55.4),
    "imagenet-lt-otmix": (18.2, 35.5, 0.0, 48.7, 56.0, 42.4, 47.8),
    "imagenet-lt-pascl": (20.7, 37.4, 0.0, 45.2, 50.5, 41.5, 42.9),
    "inat18": (2.3, 51.9, 0.0, 71.3, 71.1, 72.3, 70.8),  # Table 5
}
METRICS = ("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium", "few")
IMAGES = {"places": 62_500, "imagenet": 115_846, "inat18": 437_513}
CIFAR_IMAGES = {100: 10_847, 50: 12_608, 10: 19_573}
ESTIMATE = re.compile(r"([\d.]+) h of it stage 1 \(([\d,]+) images( x 2 \w+)? x (\d+) passes at ([\d,]+) images/s")


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
    paper = PAPER.get(name)
    assert config.published == (None if paper is None else dict(zip(METRICS, paper, strict=False)))
    if config.pretrain.method.name != "cross_entropy":
        assert config.fc is not None  # a base that handled imbalance gets a head that does not (section 3.3)
        assert config.post_train.epochs == 40
    assert config.finetune.epochs == (30 if name in PAPER else config.finetune.epochs)


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in ("digits-lt", "cifar100-lt-cpu")])
def test_a_preset_names_the_hours_of_its_own_stage_1(name: str) -> None:
    """Not those of the preset it starts from: images, passes and views are its own, and the hours follow from them."""
    config = load_experiment(name)
    assert config.hardware is not None
    assert config.hardware.startswith("one H100: estimated")
    assert "not measured" in config.hardware
    estimates = ESTIMATE.findall(config.hardware)
    on_cpu = name.startswith("cifar100")
    assert len(estimates) == (2 if on_cpu else 1)
    images = CIFAR_IMAGES[config.data.imbalance_factor] if on_cpu else IMAGES[name.split("-")[0]]
    for hours, count, twice, passes, rate in estimates:
        assert int(count.replace(",", "")) == images
        assert int(passes) == config.pretrain.epochs
        assert bool(twice) == (config.pretrain.method.name != "cross_entropy" and not on_cpu)
        seconds = images * int(passes) * (2 if twice else 1) / int(rate.replace(",", ""))
        assert float(hours) == pytest.approx(seconds / 3600, abs=0.051)
    if on_cpu:
        assert f"btm run {name} --set model.precision=bfloat16" in preset_text(name)
        assert "--set model.precision=bfloat16" in config.hardware


def test_a_file_does_not_mix_its_figures_with_those_of_its_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("preset: cifar100-lt\npublished: {h_mean: 1.0}\n")
    assert load_experiment(tmp_path / "mine.yaml").published == {"h_mean": 1.0}


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

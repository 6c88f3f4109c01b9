"""Plans: counts that the trainers' own must equal, cautions that fire and do not fire, estimates that are measured."""

from typing import Any

import numpy as np
import pytest
import torch

from btm_core.ablations import with_values
from btm_core.config import (
    ExperimentConfig,
    FinetuneConfig,
    InputConfig,
    PostTrainConfig,
    load_experiment,
    preset_behind,
)
from btm_core.data.dataset import FORWARD_BATCH, LabelledImages
from btm_core.data.images import PackedPixels
from btm_core.models import build_model
from btm_core.planning import (
    Caution,
    Conditions,
    Measurement,
    cautions,
    conditions_of,
    forward,
    makespan,
    network_size,
    post_training,
    rate_of,
    repeats,
    subset_images,
    training,
)
from btm_core.post_training import post_trainer
from btm_core.sampling import balanced_subset
from btm_core.training import part_trainer

VIEW = InputConfig(size=8, channels=1, mean=(0.3,), std=(0.4,), augmentation="crop", crop_padding=1)
COUNTS = np.array([500, 100, 40, 20, 12])


def images(count: int) -> LabelledImages:
    pixels = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    return LabelledImages(PackedPixels(pixels), torch.arange(count) % 3, VIEW)


@pytest.mark.parametrize("count", [5, 16, 17, 32, 33, 34])
def test_a_stage_does_what_was_foretold(count: int) -> None:
    data, counts = images(count), torch.bincount(torch.arange(count) % 3)
    config = FinetuneConfig(epochs=2, batch_size=16)
    trainer = part_trainer(build_model("small_cnn", 3, 1), "all", data, config, seed=("a",))
    batches = list(trainer.batches())
    told = training(config, count)
    assert (told.batches_per_epoch, told.images_per_epoch) == (len(batches), sum(len(batch.y) for batch in batches))
    assert (told.optimizer_steps, told.images) == (2 * len(batches), 2 * count)
    again = PostTrainConfig(epochs=3, batch_size=16)
    _, trainer = post_trainer(build_model("small_cnn", 3, 1), data, counts, again, seed=("b",))
    batches = list(trainer.batches())
    told = post_training(again, count)
    assert (told.batches_per_epoch, told.images_per_epoch) == (len(batches), sum(len(batch.y) for batch in batches))


def test_predicting_trains_nothing() -> None:
    told = forward(1000)
    assert (told.batch_size, told.batches_per_epoch, told.images, told.optimizer_steps) == (FORWARD_BATCH, 4, 1000, 0)


def test_a_subset_holds_what_classes_have() -> None:
    labels = np.repeat(np.arange(5), COUNTS)
    assert subset_images(COUNTS, 15) == len(balanced_subset(labels, 15, 0, 0)) == 4 * 15 + 12


def test_repeats_are_those_of_drawn_subsets() -> None:
    labels = np.repeat(np.arange(5), COUNTS)
    drawn = np.concatenate([balanced_subset(labels, 10, 0, index) for index in range(400)])
    times = np.bincount(drawn, minlength=len(labels))
    mean = [times[labels == c].mean() for c in range(5)]
    np.testing.assert_allclose(mean, repeats(COUNTS, 400, 10), rtol=1e-6)


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet32"])
def test_size_of_a_network(backbone: str) -> None:
    model = build_model(backbone, 10, 3)
    size = network_size(backbone, 10, 3)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size.checkpoint_bytes == sum(t.numel() * t.element_size() for t in model.state_dict().values())


def experiment(**values: Any) -> ExperimentConfig:
    return with_values(load_experiment("cifar100-lt"), {key.replace("__", "."): value for key, value in values.items()})


def keys(found: list[Caution]) -> list[str]:
    return [caution.key for caution in found]


def told(base: bool = True, counts: np.ndarray[Any, Any] = COUNTS * 10, **values: Any) -> list[Caution]:
    return cautions(experiment(**values), load_experiment("cifar100-lt") if base else None, counts)


FEW = np.array([500, 100, 8])
FIRES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a class is short": ("sampling.shots", {"counts": FEW}, {"counts": FEW, "sampling__shots": 8}),
    "tail images repeat": (
        "sampling.num_subsets",
        {"counts": FEW, "sampling__num_subsets": 12, "sampling__shots": 8},
        {"counts": FEW, "sampling__num_subsets": 10, "sampling__shots": 8},
    ),
    "more subsets than were studied": (
        "sampling.num_subsets",
        {"sampling__num_subsets": 21},
        {"sampling__num_subsets": 20},
    ),
    "a batch larger than the subset": (
        "finetune.batch_size",
        {"finetune__batch_size": 256},
        {"finetune__batch_size": 256, "sampling__shots": 52},
    ),
    "a batch larger than the data": ("pretrain.batch_size", {"counts": COUNTS // 10}, {}),
    "a batch without its learning rate": (
        "pretrain.batch_size",
        {"pretrain__batch_size": 256},
        {"pretrain__batch_size": 256, "pretrain__lr": 0.2},
    ),
    "milestones after the end": (
        "pretrain.milestones",
        {"pretrain__epochs": 170},
        {"pretrain__epochs": 170, "pretrain__milestones": (140, 160)},
    ),
    "a milestone at the end": (
        "pretrain.milestones",
        {"pretrain__epochs": 170, "pretrain__milestones": (140, 170)},
        {"pretrain__epochs": 170, "pretrain__milestones": (140, 169)},
    ),
    "nothing but warm-up": ("pretrain.warmup_epochs", {"pretrain__epochs": 5}, {"pretrain__epochs": 6}),
    "a criterion on subsets": (
        "merge.criterion",
        {"merge__strategy": "greedy_h_mean"},
        {"merge__strategy": "greedy_h_mean", "merge__criterion": "validation", "data__validation_per_class": 2},
    ),
}


@pytest.mark.parametrize("case", FIRES)
def test_cautions_fire_and_do_not_fire(case: str) -> None:
    key, fires, does_not = FIRES[case]
    [caution] = [caution for caution in told(**fires) if caution.key == key]
    assert caution.found and caution.todo
    assert key not in keys(told(**does_not))


def test_the_paper_s_own_setting_is_nothing_to_warn_of() -> None:
    plenty = np.maximum(np.repeat(COUNTS, 20), 12)
    found = cautions(experiment(), load_experiment("cifar100-lt"), plenty)
    assert [caution.key for caution in found if not caution.hint] == []


def test_classes_that_are_in_every_subset_are_told_once() -> None:
    """The paper's own: a class of 3 images, 10 subsets of 10 shots. In more subsets they are a warning of their own."""
    counts = np.array([500, 100, 3])
    for subsets, fires in ((10, ["sampling.shots"]), (11, ["sampling.shots", "sampling.num_subsets"])):
        found = [one for one in told(counts=counts, sampling__num_subsets=subsets) if one.key.startswith("sampling")]
        assert keys(found) == fires
        assert "they give all they have to every subset" in found[0].found


def test_without_a_validation_split_that_is_a_hint() -> None:
    """Once, last, and not where a strategy is told of it already."""
    *_, hint = told()
    assert hint.key == "data.validation" and "compared by figures of the test split" in hint.found
    assert "data.validation_per_class=2" in hint.todo and [one.key for one in told() if one.hint] == [hint.key]
    carved = experiment(data__validation_per_class=2)
    assert "data.validation" not in keys(cautions(carved, None, COUNTS * 10, np.full(5, 2)))
    assert not any(one.hint for one in told(merge__strategy="greedy_h_mean"))


def test_what_the_learning_rate_should_be_is_told() -> None:
    [caution] = [one for one in told(pretrain__batch_size=64) if one.key == "pretrain.batch_size"]
    assert "64 in place of 128" in caution.found and "pretrain.lr=0.05" in caution.todo


def test_without_a_preset_the_defaults_count() -> None:
    raw = {"data": load_experiment("cifar100-lt").data.model_dump(), "pretrain": {"batch_size": 64}}
    counts = COUNTS * 10
    assert "pretrain.batch_size" in keys(cautions(ExperimentConfig.model_validate(raw), None, counts))
    raw["pretrain"]["lr"] = 0.1
    assert "pretrain.batch_size" not in keys(cautions(ExperimentConfig.model_validate(raw), None, counts))


def test_validation_that_lacks_what_is_chosen_on_it() -> None:
    chosen = experiment(merge__strategy="adaptive_g_mean", merge__criterion="validation", data__validation_per_class=2)
    for held, fires in ((np.array([1, 1, 1, 0, 1]), True), (np.ones(5, int), False)):
        assert ("data.validation" in keys(cautions(chosen, None, COUNTS * 10, held))) is fires


def test_a_store_without_room() -> None:
    for free, fires in ((9, True), (10, False), (None, False)):
        found = keys(cautions(experiment(), None, COUNTS * 10, needed_bytes=10, free_bytes=free))
        assert ("--store" in found) is fires


def test_the_preset_behind_a_file(tmp_path: Any) -> None:
    own, bare = tmp_path / "own.yaml", tmp_path / "bare.yaml"
    own.write_text("preset: cifar100-lt\n")
    bare.write_text("data: {format: digits}\n")
    assert [preset_behind(name) for name in ("digits-lt", own, bare)] == ["digits-lt", "cifar100-lt", None]


HERE = Conditions("finetune", "resnet32", "float32", 32, 3, "cpu", part="all", threads=1, cores=2, batch_size=256)


def changed(**values: Any) -> Conditions:
    from dataclasses import replace

    return replace(HERE, **values)


def test_a_rate_is_seconds_over_images() -> None:
    measured = [Measurement(HERE, 100, 1.0, "a"), Measurement(HERE, 300, 7.0, "b")]
    rate = rate_of(HERE, measured)
    assert rate is not None
    assert (rate.seconds, rate.fastest, rate.slowest) == pytest.approx((0.02, 0.01, 7 / 300))
    assert rate.sources == ("a", "b") and rate.differs == ()


@pytest.mark.parametrize(
    "other",
    [
        {"stage": "pretrain"}, {"backbone": "resnet20"}, {"precision": "bfloat16"}, {"size": 64}, {"channels": 1},
        {"device": "cuda"}, {"part": "head"}, {"threads": 2},
    ],
)  # fmt: skip
def test_what_was_measured_otherwise_says_nothing(other: dict[str, Any]) -> None:
    assert rate_of(HERE, [Measurement(changed(**other), 100, 1.0, "a")]) is None


def test_the_nearest_measurement_counts_and_what_differs_is_told() -> None:
    far, near = changed(cores=64), changed(batch_size=128)
    rate = rate_of(HERE, [Measurement(far, 1, 9.0, "far"), Measurement(near, 1, 1.0, "near")])
    assert rate is not None and rate.sources == ("near",) and rate.differs == ("batch_size",)
    anywhere = changed(device=None, threads=None)
    assert rate_of(anywhere, [Measurement(changed(device="cuda", threads=None), 1, 1.0, "gpu")]) is not None


def test_a_pack_is_another_condition_nearer_than_the_machine() -> None:
    wanted, alone, other = changed(pack=10), changed(cores=2), changed(pack=10, cores=64)
    measured = [Measurement(alone, 100, 5.0, "alone"), Measurement(other, 100, 1.0, "packed")]
    packed, only = rate_of(wanted, measured), rate_of(wanted, measured[:1])
    assert packed is not None and packed.sources == ("packed",) and packed.differs == ("cores",)
    assert only is not None and only.differs == ("pack",)


def test_conditions_come_from_a_manifest() -> None:
    config = {
        "view": {"size": 32, "channels": 3, "augmentation": "crop"},
        "model": {"backbone": "resnet32", "precision": "float32"},
        "config": {"batch_size": 64, "train": "all", "method": {"name": "paco"}},
    }
    old = conditions_of(config, {"gpu": "0", "threads": 4}, "pretrain")
    assert (old.device, old.gpu_name, old.threads, old.method, old.batch_size) == ("cuda", None, None, "paco", 64)
    assert old.pack is None
    assert conditions_of(config, {"gpu": ""}, "pretrain").pack == 1
    new = conditions_of(config, {"gpu": "", "gpu_name": None, "threads": 4, "pack": 5}, "pretrain")
    assert (new.device, new.threads, new.pack) == ("cpu", 4, 5)
    with pytest.raises(KeyError):
        conditions_of({}, {}, "pretrain")


def test_work_is_taken_in_turn() -> None:
    assert makespan([3, 2, 2], 1) == 7 and makespan([3, 2, 2], 2) == 4 and makespan([], 3) == 0

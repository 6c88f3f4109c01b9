import copy
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from btm_core.checkpoints import load_into
from btm_core.config import InputConfig, PostTrainConfig, TrainConfig
from btm_core.data.cifar import read_cifar100
from btm_core.data.dataset import LabelledImages
from btm_core.data.images import PackedPixels
from btm_core.data.long_tail import long_tail_indices
from btm_core.errors import CheckpointError, NonFiniteLossError
from btm_core.evaluation import predict
from btm_core.metrics import recall_report
from btm_core.models import Classifier, build_model
from btm_core.optim import learning_rate
from btm_core.post_training import PostTraining, post_trainer
from btm_core.training import Clock, part_trainer

VIEW = InputConfig(size=8, channels=1, mean=(0.3,), std=(0.4,), augmentation="crop-flip", crop_padding=1)
CONFIG = TrainConfig(epochs=3, batch_size=16, lr=0.05, mixup_alpha=0.4)


@pytest.fixture
def digits() -> LabelledImages:
    """120 real digits of four classes, 60, 40, 15 and 5 images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = np.concatenate([np.flatnonzero(bunch.target == c)[:n] for c, n in enumerate((60, 40, 15, 5))])
    pixels = torch.from_numpy((bunch.images[chosen] * 255 / 16).astype(np.uint8)[:, None])
    return LabelledImages(PackedPixels(pixels), torch.from_numpy(bunch.target[chosen].astype(np.int64)), VIEW)


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def test_training_learns(digits: LabelledImages) -> None:
    model = build_model("small_cnn", 4, 1)
    config = CONFIG.model_copy(update={"epochs": 8, "mixup_alpha": 0.0})
    records = list(part_trainer(model, "all", digits, config, seed=("t",)))
    assert [record.epoch for record in records] == list(range(1, 9))
    assert all(record.images == 120 for record in records)
    assert records[-1].loss < 0.6 * records[0].loss


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(digits: LabelledImages) -> None:
    whole = build_model("small_cnn", 4, 1)
    list(part_trainer(whole, "all", digits, CONFIG, seed=("t",)))
    first = part_trainer(build_model("small_cnn", 4, 1), "all", digits, CONFIG, seed=("t",))
    next(iter(first))
    state = copy.deepcopy(first.state_dict())
    torch.manual_seed(12345)  # nothing may depend on the global generator
    resumed = build_model("small_cnn", 4, 1, seed=9)
    trainer = part_trainer(resumed, "all", digits, CONFIG, seed=("t",))
    trainer.load_state_dict(state)
    assert [record.epoch for record in trainer] == [2, 3]
    assert bits(resumed) == bits(whole)


def test_another_seed_gives_another_model(digits: LabelledImages) -> None:
    models = [build_model("small_cnn", 4, 1) for _ in range(2)]
    for number, model in enumerate(models):
        list(part_trainer(model, "all", digits, CONFIG, seed=("t", number)))
    assert bits(models[0]) != bits(models[1])


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet20", "resnet18"])
@pytest.mark.parametrize("part", ["all", "backbone", "head", "last_block_and_head"])
def test_freezing_means_not_one_bit_changes(digits: LabelledImages, backbone: str, part: str) -> None:
    model = build_model(backbone, 4, 1)
    before = bits(model)
    config = CONFIG.model_copy(update={"epochs": 1})
    list(part_trainer(model, part, digits.take(torch.arange(0, 120, 4)), config, seed=("t",)))
    after = bits(model)
    changed = {name for name in before if before[name] != after[name]}
    block = f"backbone.{model.last_block}."
    expected = {
        "all": lambda name: True,
        "backbone": lambda name: name.startswith("backbone."),
        "head": lambda name: name.startswith("head."),
        "last_block_and_head": lambda name: name.startswith((block, "head.")),
    }[part]
    assert changed
    assert all(expected(name) for name in changed)
    parameters = {name for name, _ in model.named_parameters() if expected(name)}
    assert parameters <= changed


@pytest.mark.parametrize("method", ["mislas", "crt", "lws", "balanced_softmax", "gml", "h2t"])
@pytest.mark.parametrize("shift", [True, False])
def test_post_training_keeps_the_backbone(digits: LabelledImages, method: str, shift: bool) -> None:
    model = build_model("small_cnn", 4, 1)
    before, head = bits(model.backbone), bits(model.head)
    config = PostTrainConfig(epochs=2, batch_size=16, lr=0.1, method=method, shift_batchnorm=shift)
    wrapped, trainer = post_trainer(model, digits, [60, 40, 15, 5], config, seed=("p",))
    list(trainer)
    after = bits(model.backbone)
    changed = {name for name in before if before[name] != after[name]}
    if shift:
        assert changed
        assert all("running" in name or "num_batches" in name for name in changed)
    else:
        assert not changed
    assert (bits(model.head) == head) == (method == "lws")
    assert torch.equal(wrapped.scale, torch.ones(4)) == (method in ("crt", "balanced_softmax", "h2t"))


def test_the_folded_scaling_gives_the_same_logits(digits: LabelledImages) -> None:
    model = build_model("small_cnn", 4, 1)
    wrapped = PostTraining(model, nn.CrossEntropyLoss(), PostTrainConfig()).eval()
    x = torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        wrapped.scale.copy_(torch.tensor([0.5, 2.0, -1.0, 3.0]))
        expected = wrapped.logits(model.backbone(x))
        folded = wrapped.folded().eval()
        torch.testing.assert_close(folded(x), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(wrapped.logits(model.backbone(x)), expected, rtol=1e-6, atol=1e-6)


def test_post_training_sees_classes_equally(digits: LabelledImages) -> None:
    config = PostTrainConfig(epochs=1, batch_size=16, samples_per_class=4)
    _, trainer = post_trainer(build_model("small_cnn", 4, 1), digits, [60, 40, 15, 5], config, seed=("p",))
    order = trainer.order(0)
    assert len(order) == (8 + 1) * 16  # ceil(120 / 16) + 1 batches, as the reference code counts an epoch
    assert torch.bincount(digits.labels[order]).tolist() == [36, 36, 36, 36]


def test_a_nan_loss_names_epoch_and_learning_rate(digits: LabelledImages) -> None:
    config = CONFIG.model_copy(update={"lr": 1e30})
    with pytest.raises(NonFiniteLossError, match=r"in epoch 1 of 3 at learning rate 1e\+30"):
        list(part_trainer(build_model("small_cnn", 4, 1), "all", digits, config, seed=("t",)))


def test_learning_rates() -> None:
    mislas = TrainConfig(
        epochs=200, batch_size=2, lr=0.1, schedule="step", milestones=(160, 180), warmup_epochs=5
    )  # fmt: skip
    rates = [learning_rate(mislas, epoch) for epoch in (0, 4, 5, 159, 160, 179, 180, 199)]
    assert rates == pytest.approx([0.02, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    cosine = TrainConfig(epochs=30, batch_size=2, lr=0.005)
    assert [learning_rate(cosine, e) for e in (0, 15)] == pytest.approx([0.005, 0.0025])
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.005)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 30)
    for epoch in range(30):
        assert learning_rate(cosine, epoch) == pytest.approx(schedule.get_last_lr()[0])
        reference.step()
        schedule.step()


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet20", "resnet32", "resnet18", "resnext50_32x4d"])
def test_models_map_images_to_logits(backbone: str) -> None:
    model = build_model(backbone, 7, 3).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert model.head.in_features == model.backbone(torch.zeros(2, 3, 32, 32)).shape[1]
    assert bits(build_model(backbone, 7, 3, seed=3)) == bits(build_model(backbone, 7, 3, seed=3))
    assert bits(build_model(backbone, 7, 3, seed=3)) != bits(model)


def test_resnet32_has_the_published_size() -> None:
    model = build_model("resnet32", 100)
    assert sum(p.numel() for p in model.backbone.parameters()) == 463_504
    assert sum(p.numel() for p in model.head.parameters()) == 6_500


def test_a_foreign_architecture_or_class_count_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(build_model("resnet20", 10).state_dict(), tmp_path / "a.safetensors")
    model = build_model("resnet32", 10)
    before = bits(model)
    with pytest.raises(CheckpointError, match="another architecture"):
        load_into(model, tmp_path / "a.safetensors")
    assert bits(model) == before
    with pytest.raises(CheckpointError, match="has 10 classes, the data set has 12"):
        load_into(build_model("resnet20", 12), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_into(model, tmp_path / "b.safetensors")


def test_bfloat16_trains_and_stays_float32(digits: LabelledImages) -> None:
    model = build_model("small_cnn", 4, 1)
    records = list(part_trainer(model, "all", digits, CONFIG, seed=("t",), precision="bfloat16"))
    assert records[-1].loss < records[0].loss
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_published_stage1_checkpoint_scores_as_stated(cifar100: Path, stage1_checkpoint: Path) -> None:
    """Trained elsewhere by the MiSLAS recipe; stated: accuracy 39.0, H 0.76, G 13.5, 12 classes at zero recall."""
    catalog = read_cifar100(cifar100, download=False)
    view = InputConfig(
        size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), augmentation="crop-flip"
    )  # fmt: skip
    model: Classifier = build_model("resnet32", 100)
    load_into(model, stage1_checkpoint)
    assert catalog.test.pixels is not None
    test = LabelledImages(
        PackedPixels(torch.from_numpy(catalog.test.pixels.copy())), torch.from_numpy(catalog.test.labels), view
    )
    predicted, _ = predict(model, test)
    counts = np.bincount(catalog.train.labels[long_tail_indices(catalog.train.labels, 100)], minlength=100)
    report = recall_report(catalog.test.labels, predicted, counts)
    # It was scored in bfloat16 there and is in float32 here: some images at a border change sides.
    assert report.accuracy == pytest.approx(0.390, abs=0.004)
    assert report.g_mean == pytest.approx(0.135, abs=0.01)
    assert report.h_mean == pytest.approx(0.0076, abs=0.001)
    assert report.zero_recall_classes in (11, 12, 13)


def test_time_spent_waiting_for_data_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow() -> Iterator[str]:
        for item in "abc":
            now[0] += 2.0
            yield item

    clock = Clock()
    for _ in clock.waiting(slow()):
        now[0] += 5.0  # a step
    assert (clock.waited, clock.seconds()) == (6.0, 21.0)

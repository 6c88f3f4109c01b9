"""Post-training method by method: its loss against plain NumPy in float64, what trains, and its batches.

B images, C = 4 classes, D = 8 features.
"""

from typing import Any

import numpy as np
import pytest
import torch
from gradients import check_gradient
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import nn

from btm_core.ablations import ABLATIONS, with_values
from btm_core.config import InputConfig, PostTrainConfig, load_experiment
from btm_core.data.dataset import LabelledImages
from btm_core.data.images import PackedPixels
from btm_core.errors import ConfigError
from btm_core.losses import BalancedSoftmax, GeometricMeanLoss, LabelAwareSmoothing
from btm_core.models import Classifier
from btm_core.objectives import Batch
from btm_core.post_training import PostTraining, post_trainer
from btm_core.training import Trainer

COUNTS = np.array([60, 40, 15, 5])
LABELS = torch.from_numpy(np.repeat(np.arange(4), COUNTS))
VIEW = InputConfig(size=4, channels=1, mean=(0.5,), std=(0.2,), augmentation="none")
Y = np.array([0, 1, 1, 2, 3, 0, 2, 1])
METHODS = ("mislas", "crt", "lws", "balanced_softmax", "gml", "h2t")
INSTANCE = ("balanced_softmax", "gml")


def wrapped_of(method: str, double: bool = False, **values: Any) -> tuple[PostTraining, Trainer]:
    """A method on the network x -> W x + b."""
    torch.manual_seed(0)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 8)), 8, 4, "1")
    pixels = torch.randint(256, (120, 1, 4, 4), dtype=torch.uint8)
    config = PostTrainConfig.model_validate({"method": method, "batch_size": 16, **values})
    data = LabelledImages(PackedPixels(pixels), LABELS, VIEW)
    wrapped, trainer = post_trainer(model, data, COUNTS, config, seed=("p",))
    with torch.no_grad():  # losses that differ, and a scale that is seen
        model.head.weight.mul_(6)
        wrapped.scale.copy_(torch.tensor([1.0, 0.5, 2.0, 1.5]))
    return wrapped.double() if double else wrapped, trainer


def logits_of(wrapped: PostTraining, x: torch.Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        z: NDArray[np.float64] = (wrapped.scale * wrapped.model(x)).double().numpy()
    return z


def smoothed(z: NDArray[np.float64], head: float, tail: float, weights: NDArray[np.float64]) -> float:
    """Weighted mean of cross-entropy with the label smoothing of each image's class; 0 and 0 is cross-entropy."""
    log_p = log_softmax(z, axis=1)
    epsilon = (tail + (head - tail) * np.sin(np.pi / 2 * (COUNTS - 5) / 55))[Y]
    losses = -((1 - epsilon) * log_p[np.arange(8), Y] + epsilon * log_p.mean(1))
    return float((weights[Y] * losses).sum() / weights[Y].sum())


def geometric(z: NDArray[np.float64], power: float) -> float:
    p = np.exp(log_softmax(z + np.log(COUNTS), axis=1))[np.arange(8), Y].clip(1e-5)
    terms = np.array([-np.log(p[c == Y].mean()) for c in range(4)])
    return float((terms**power).mean() ** (1 / power))


WEIGHTS = {"none": np.ones(4), "inverse": 1 / COUNTS, "effective": (1 - 0.999) / (1 - 0.999**COUNTS)}
SMOOTH = {"smoothing_head": 0.5, "smoothing_tail": 0.2}


@pytest.mark.parametrize("reweight", WEIGHTS)
@pytest.mark.parametrize("method", ["mislas", "crt", "lws", "h2t"])
def test_losses_that_can_be_weighted(method: str, reweight: str) -> None:
    wrapped, _ = wrapped_of(method, double=True, reweight=reweight, **SMOOTH)
    assert type(wrapped.loss) is (LabelAwareSmoothing if method == "mislas" else nn.CrossEntropyLoss)
    x = torch.randn(8, 1, 4, 4).double()
    smoothing = (0.5, 0.2) if method == "mislas" else (0, 0)
    expected = smoothed(logits_of(wrapped, x), *smoothing, WEIGHTS[reweight])
    assert loss_of(wrapped, Batch(x, torch.from_numpy(Y))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_balanced_softmax_adds_tau_times_the_logarithm_of_the_counts(tau: float) -> None:
    wrapped, _ = wrapped_of("balanced_softmax", double=True, tau=tau)
    assert type(wrapped.loss) is BalancedSoftmax
    x = torch.randn(8, 1, 4, 4).double()
    expected = smoothed(logits_of(wrapped, x) + tau * np.log(COUNTS), 0, 0, WEIGHTS["none"])
    assert loss_of(wrapped, Batch(x, torch.from_numpy(Y))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_gml_takes_the_power_that_is_asked_for(power: float) -> None:
    wrapped, _ = wrapped_of("gml", double=True, gml_power=power)
    assert type(wrapped.loss) is GeometricMeanLoss
    x = torch.randn(8, 1, 4, 4).double()
    expected = geometric(logits_of(wrapped, x), power)
    assert loss_of(wrapped, Batch(x, torch.from_numpy(Y))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.5])
@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("mislas", SMOOTH),
        ("mislas", {**SMOOTH, "reweight": "effective"}),
        ("crt", {"reweight": "inverse"}),
        ("lws", {}),
        ("balanced_softmax", {"tau": 0.4}),
        ("gml", {"gml_power": 3.0}),
        ("h2t", {"h2t_ratio": 0.25}),
    ],
)
def test_gradients(method: str, values: dict[str, Any], mixup_alpha: float) -> None:
    wrapped, _ = wrapped_of(method, double=True, mixup_alpha=mixup_alpha, **values)
    x, other = torch.randn(2, 8, 1, 4, 4).double()
    y = torch.from_numpy(Y)
    check_gradient(wrapped, Batch(x, y, (), Batch(other, y.flip(0)) if method == "h2t" else None))


def loss_of(wrapped: PostTraining, batch: Batch, seed: int = 0) -> float:
    return float(wrapped(batch, torch.Generator().manual_seed(seed)).detach())


def test_h2t_takes_a_share_of_the_features_from_the_second_stream() -> None:
    wrapped, _ = wrapped_of("h2t", double=True, h2t_ratio=0.25)
    x, other = torch.randn(2, 8, 1, 4, 4).double()
    batch = Batch(x, torch.from_numpy(Y), (), Batch(other, torch.from_numpy(Y).flip(0)))
    heads: list[torch.Tensor] = []
    wrapped.model.head.register_forward_pre_hook(lambda module, inputs: heads.append(inputs[0]))
    loss = loss_of(wrapped, batch)
    with torch.no_grad():
        main, second = (wrapped.model.backbone(images) for images in (x, other))
    taken = (heads[0] == second).all(0)
    assert taken.sum() == 2  # a quarter of 8, the same for all images of the batch
    assert torch.equal(heads[0][:, ~taken], main[:, ~taken])
    z = (wrapped.scale * wrapped.model.head(heads[0])).detach().double().numpy()
    assert loss == pytest.approx(smoothed(z, 0, 0, WEIGHTS["none"]), rel=1e-6)  # the main stream's labels alone
    loss_of(wrapped, batch, seed=1)
    assert ((heads[-1] == second).all(0) != taken).any()  # drawn anew for each batch


def is_class_aware(order: torch.Tensor) -> bool:
    """4 draws of one class at a time, every class as often as any other."""
    runs = LABELS[order].reshape(-1, 4)
    return bool((runs == runs[:, :1]).all()) and torch.bincount(LABELS[order]).tolist() == [36] * 4


def is_instance(order: torch.Tensor) -> bool:
    """Every image once before any comes again."""
    return sorted(order[:120].tolist()) == list(range(120)) and len(set(order[120:].tolist())) == 24


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_the_batches_it_was_published_with(method: str) -> None:
    _, trainer = wrapped_of(method)
    for epoch in (0, 1):
        order = trainer.order(epoch)
        assert len(order) == 144
        assert (is_class_aware(order), is_instance(order)) == (method not in INSTANCE, method in INSTANCE)
    assert not torch.equal(trainer.order(0), trainer.order(1))
    assert (trainer.companion is not None) == (method == "h2t")
    if trainer.companion is not None:
        second = trainer.companion(0)
        assert len(second) == 144 and is_instance(second) and not is_class_aware(second)


@pytest.mark.parametrize("method", METHODS)
def test_the_sampler_can_be_chosen(method: str) -> None:
    for sampler, check in (("class-aware", is_class_aware), ("instance", is_instance)):
        _, trainer = wrapped_of(method, sampler=sampler)
        assert check(trainer.order(0))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_head_and_scale_at_their_rates(method: str) -> None:
    wrapped, _ = wrapped_of(method, head_lr_factor=0.3)
    rates = {id(p): factor for parameters, factor in wrapped.groups() for p in parameters}
    head = {} if method == "lws" else {id(p): 0.3 for p in wrapped.model.head.parameters()}
    scale = {id(wrapped.scale): 1.0} if method in ("mislas", "lws", "gml") else {}
    assert rates == head | scale


@pytest.mark.parametrize("method", INSTANCE)
def test_class_weights_of_a_loss_that_has_none_are_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=f"reweight is inverse, but the loss of {method}.*to none"):
        load_experiment("digits-lt", [f"post_train.method={method}", "post_train.reweight=inverse"])


def test_the_gml_ablation_of_a_reweighted_base_leaves_the_weights_to_the_base() -> None:
    base = load_experiment("cifar100-lt-otmix")
    assert base.post_train.reweight == "effective"
    variants = [with_values(base, variant.values).post_train for variant in ABLATIONS["gml"][1](base)]
    assert [(config.method, config.reweight) for config in variants] == [("mislas", "effective"), ("gml", "none")] * 2


class Counted(nn.Module):
    """A backbone that counts the images it has seen."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone, self.images = backbone, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.images += len(x)
        features: torch.Tensor = self.backbone(x)
        return features


def post_trained(view: InputConfig, **values: Any) -> tuple[Classifier, int]:
    """Return the classifier after three epochs, and how many images its backbone has seen for that."""
    torch.manual_seed(0)
    backbone = Counted(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()))
    pixels = torch.randint(256, (120, 1, 4, 4), dtype=torch.uint8)
    config = PostTrainConfig.model_validate({"batch_size": 16, "epochs": 3, "lr": 0.1, **values})
    data = LabelledImages(PackedPixels(pixels), LABELS, view)
    wrapped, trainer = post_trainer(Classifier(backbone, 32, 4, "1"), data, COUNTS, config, seed=("p",))
    list(trainer)
    return wrapped.folded(), backbone.images


@pytest.mark.parametrize("method", METHODS)
def test_features_that_nothing_changes_are_computed_once(method: str) -> None:
    once, seen = post_trained(VIEW, method=method, shift_batchnorm=False)
    assert seen == 120
    # A crop without padding changes no pixel, but counts as drawn: features are computed batch by batch.
    nothing_drawn = VIEW.model_copy(update={"augmentation": "crop", "crop_padding": 0})
    again, seen = post_trained(nothing_drawn, method=method, shift_batchnorm=False)
    assert seen >= 3 * 120
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(once.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("view", "values"),
    [
        ({"augmentation": "crop-flip"}, {}),
        ({"color_jitter": 0.2}, {}),
        ({}, {"mixup_alpha": 0.5}),
        ({}, {"shift_batchnorm": True}),
    ],
)
def test_features_that_change_are_computed_each_time(view: dict[str, Any], values: dict[str, Any]) -> None:
    _, seen = post_trained(VIEW.model_copy(update=view), **{"shift_batchnorm": False, **values})
    assert seen >= 3 * 120

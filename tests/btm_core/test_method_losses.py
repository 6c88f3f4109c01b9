"""The loss of each stage-1 method as its objective computes it, against plain NumPy in float64, on a linear network.

B images, C = 4 classes, D = 6 features, E embedding dimensions.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gradients import check_gradient
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import nn

from btm_core.config import PretrainConfig
from btm_core.methods import stage1_objective
from btm_core.methods.gpaco import GPaCo
from btm_core.methods.otmix import OTmix
from btm_core.methods.paco import PaCo
from btm_core.methods.pascl import PASCL
from btm_core.models import Classifier
from btm_core.objectives import Batch, Objective

Array = NDArray[np.float64]
COUNTS = torch.tensor([15, 60, 5, 40])  # in no order: the rarest classes are 2 and 0
Y = np.array([0, 1, 1, 2, 3, 0, 2, 1])
CLOSE = {"rel": 1e-6}  # of float64; priors are kept in float32


def objective_of(method: dict[str, Any], epochs: int = 10, **more: Any) -> Objective:
    """A method on the network x -> W x + b, with weights large enough for losses that differ."""
    torch.manual_seed(0)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), 6, 4, "1")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    config = PretrainConfig(epochs=epochs, method=method, **more)  # type: ignore[arg-type]
    return stage1_objective(model, COUNTS, config).double()


def image_batch(seed: int, y: Any = Y) -> Batch:
    """Images (B, 1, 8, 8) and a second view that is another image altogether."""
    x, view = torch.randn(2, len(y), 1, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
    return Batch(x, torch.from_numpy(np.asarray(y)), (view,))


def loss_of(objective: Objective, batch: Batch, seed: int = 0) -> float:
    return float(objective(batch, torch.Generator().manual_seed(seed)).detach())


def linear(layer: nn.Module, x: Any) -> Array:
    assert isinstance(layer, nn.Linear)
    return np.asarray(np.asarray(x, np.float64) @ double(layer.weight).T + double(layer.bias))


def double(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy().copy()


def features(model: Classifier, x: torch.Tensor) -> Array:
    return linear(model.backbone.get_submodule("1"), x.flatten(1).numpy())


def embedded(projection: nn.Sequential, x: Array) -> Array:
    """Linear layers, ReLU, BN over the batch, then unit length."""
    for layer in projection:
        if isinstance(layer, nn.Linear):
            x = linear(layer, x)
        elif isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
        else:
            assert isinstance(layer, nn.BatchNorm1d)
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * double(layer.weight) + double(layer.bias)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cross_entropy(z: Array, y: Any, weights: Any = None) -> float:
    w = np.ones(len(z)) if weights is None else weights[y]
    return float(-(w * log_softmax(z, axis=1)[np.arange(len(z)), y]).sum() / w.sum())


def contrast(z: Array, s: Array, y: Any, candidates: Any, alpha: float, smooth: float = 0.0) -> float:
    """Parametric contrast, one anchor at a time; anchor i is candidate i and no candidate of its own."""
    prior = np.log(COUNTS.numpy() / COUNTS.sum().item())
    losses = []
    for i in range(len(z)):
        others = [j for j in range(s.shape[1]) if j != i]
        log_p = log_softmax(np.concatenate([z[i] + prior, s[i, others]]))
        label = np.full(4, smooth / 3)
        label[y[i]] = 1 - smooth
        positives = [log_p[4 + k] for k, j in enumerate(others) if candidates[j] == y[i]]
        losses.append(-(label @ log_p[:4] + alpha * sum(positives)) / (1 + alpha * len(positives)))
    return float(np.mean(losses))


@pytest.mark.parametrize("name", ["cross_entropy", "balanced_softmax"])
def test_one_term_losses(name: str) -> None:
    objective, batch = objective_of({"name": name}), image_batch(1)
    model = objective.network
    z = linear(model.head, features(model, batch.x))
    prior = np.log(COUNTS.numpy()) if name == "balanced_softmax" else 0
    assert loss_of(objective, batch) == pytest.approx(cross_entropy(z + prior, Y), **CLOSE)


@pytest.mark.parametrize("name", ["cross_entropy", "balanced_softmax"])
def test_mixup_weighs_the_losses_of_both_labels(name: str) -> None:
    from btm_core.losses import mixup

    objective, batch = objective_of({"name": name}, mixup_alpha=0.5), image_batch(1)
    mixed, partner, lam = mixup(batch.x, 0.5, torch.Generator().manual_seed(3))
    z = linear(objective.network.head, features(objective.network, mixed))
    z += np.log(COUNTS.numpy()) if name == "balanced_softmax" else 0
    expected = lam * cross_entropy(z, Y) + (1 - lam) * cross_entropy(z, Y[partner.numpy()])
    assert abs(lam - 0.5) > 0.05
    assert loss_of(objective, batch, 3) == pytest.approx(expected, **CLOSE)


def test_gpaco_has_both_views_as_anchors_and_queues_the_second() -> None:
    options = {"name": "gpaco", "queue": 12, "dim": 5, "alpha": 0.3, "temperature": 0.4, "smoothing": 0.1}
    objective, batch = objective_of(options), image_batch(2)
    assert isinstance(objective, GPaCo)
    queue, queued = double(objective.queue.embeddings), objective.queue.classes.numpy().copy()
    both = np.concatenate([features(objective.model, x) for x in (batch.x, *batch.views)])
    e, y = embedded(objective.projection, both), np.concatenate([Y, Y])
    similarity = e @ np.concatenate([e, queue]).T / 0.4
    expected = contrast(linear(objective.model.head, both), similarity, y, np.concatenate([y, queued]), 0.3, 0.1)
    assert loss_of(objective, batch) == pytest.approx(expected, **CLOSE)
    np.testing.assert_allclose(objective.queue.embeddings, np.concatenate([e[8:], queue[8:]]), atol=1e-6)
    assert objective.queue.classes.tolist() == [*Y, *queued[8:]]
    assert not objective.queue.embeddings.requires_grad


def test_paco_contrasts_with_what_its_slow_encoder_makes_of_the_second_view() -> None:
    options = {"name": "paco", "queue": 12, "dim": 5, "alpha": 0.3, "temperature": 0.4, "momentum": 0.7}
    objective, batch = objective_of(options), image_batch(3)
    assert isinstance(objective, PaCo)
    slow_networks = [objective.slow_backbone, objective.slow_projection]
    fast_networks = [objective.model.backbone, objective.projection]
    with torch.no_grad():  # the encoders have parted
        for parameter in [p for network in fast_networks for p in network.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)), alpha=0.3)
    pairs = [
        (slow, 0.7 * double(slow) + 0.3 * double(fast))
        for networks in zip(slow_networks, fast_networks, strict=True)
        for slow, fast in zip(*(network.parameters() for network in networks), strict=True)
    ]
    assert len(pairs) == 8
    before = [double(slow) for slow, _ in pairs]
    queue, queued = double(objective.queue.embeddings), objective.queue.classes.numpy().copy()
    loss = loss_of(objective, batch)
    for (slow, expected), old in zip(pairs, before, strict=True):
        np.testing.assert_allclose(slow.detach(), expected, atol=1e-6)
        assert not np.allclose(expected, old)
    first, second = features(objective.model, batch.x), batch.views[0].flatten(1).numpy()
    fast = embedded(objective.projection, first)
    slow = embedded(objective.slow_projection, linear(objective.slow_backbone.get_submodule("1"), second))
    similarity = fast @ np.concatenate([fast, slow, queue]).T / 0.4
    candidates = np.concatenate([Y, Y, queued])
    assert loss == pytest.approx(contrast(linear(objective.model.head, first), similarity, Y, candidates, 0.3), **CLOSE)
    np.testing.assert_allclose(objective.queue.embeddings, np.concatenate([slow, queue[8:]]), atol=1e-5)
    assert objective.queue.classes.tolist() == [*Y, *queued[8:]]
    assert {id(p) for parameters, _ in objective.groups() for p in parameters} == {
        id(p) for module in (objective.model, objective.projection) for p in module.parameters()
    }


def test_pascl_adds_the_contrast_of_the_rarest_classes() -> None:
    objective = objective_of({"name": "pascl", "weight": 0.5, "temperature": 0.3, "tail_share": 0.5, "dim": 5})
    batch = image_batch(4)
    assert isinstance(objective, PASCL)
    assert objective.tail.tolist() == [True, False, True, False]
    f, y = features(objective.model, torch.cat([batch.x, *batch.views])), np.concatenate([Y, Y])
    tail = np.isin(y, [0, 2])
    e, own = embedded(objective.projection, f[tail]), y[tail]
    terms = []
    for i in range(len(e)):
        others = [j for j in range(len(e)) if j != i]
        log_p = log_softmax(e[others] @ e[i] / 0.3)
        terms.append(-np.mean([log_p[k] for k, j in enumerate(others) if own[j] == own[i]]))
    plain = cross_entropy(linear(objective.model.head, f), y)
    assert loss_of(objective, batch) == pytest.approx(plain + 0.5 * np.mean(terms), **CLOSE)
    heads_only = image_batch(4, [1, 3, 1, 3])
    f = features(objective.model, torch.cat([heads_only.x, *heads_only.views]))
    expected = cross_entropy(linear(objective.model.head, f), [1, 3, 1, 3] * 2)
    assert loss_of(objective, heads_only) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(
    ("options", "mixup_alpha"),
    [
        ({"name": "cross_entropy"}, 0.0),
        ({"name": "cross_entropy"}, 0.5),
        ({"name": "balanced_softmax"}, 0.0),
        ({"name": "balanced_softmax"}, 0.5),
        # The slow encoder follows the fast one, without a gradient: differences must not see it.
        ({"name": "paco", "queue": 12, "dim": 5, "temperature": 0.4, "momentum": 1 - 1e-9}, 0.0),
        ({"name": "gpaco", "queue": 12, "dim": 5, "temperature": 0.4}, 0.0),
        ({"name": "pascl", "dim": 5, "temperature": 0.3, "tail_share": 0.5}, 0.0),
        ({"name": "otmix", "probability": 1.0, "plain_epochs": 0, "growth": 1e-9, "reweight_from": None}, 0.0),
        ({"name": "otmix", "probability": 1.0, "plain_epochs": 0, "growth": 1e9, "reweight_from": 0}, 0.0),
    ],
)
def test_gradients(options: dict[str, Any], mixup_alpha: float) -> None:
    objective = objective_of(options, mixup_alpha=mixup_alpha)
    batch, other = image_batch(1), image_batch(2, FRONT_Y)
    objective.begin_epoch(5, 10)
    check_gradient(objective, replace(batch, companion=other) if objective.second_stream else batch)


# OTmix: backgrounds are black and foregrounds white, so that what the network saw tells how much was kept.

FRONT_Y = np.array([2, 0, 3, 2, 0, 3, 2, 1])


def mixing(epochs: int = 10, **options: Any) -> tuple[OTmix, list[torch.Tensor]]:
    """An OTmix objective that mixes every batch it may, and the inputs that its network saw."""
    objective = objective_of({"name": "otmix", "probability": 1.0, "reweight_from": None, **options}, epochs)
    assert isinstance(objective, OTmix)
    seen: list[torch.Tensor] = []
    objective.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    return objective, seen


def black_and_white() -> Batch:
    white = torch.ones(8, 1, 8, 8).double()
    return Batch(torch.zeros(8, 1, 8, 8).double(), torch.from_numpy(Y), (), Batch(white, torch.from_numpy(FRONT_Y)))


def test_otmix_weighs_each_label_by_its_share_of_the_image() -> None:
    objective, seen = mixing(plain_epochs=0, growth=1e9)  # never matched
    objective.begin_epoch(5, 10)
    for seed in range(5):
        loss = loss_of(objective, black_and_white(), seed)
        x = seen.pop()
        kept = 1 - x.double().mean().item()
        assert abs(kept - 0.5) > 0.02
        z = linear(objective.model.head, features(objective.model, x))
        expected = kept * cross_entropy(z, Y) + (1 - kept) * cross_entropy(z, FRONT_Y)
        assert loss == pytest.approx(expected, **CLOSE)


def test_otmix_takes_the_matched_backgrounds_with_their_labels() -> None:
    objective, seen = mixing(plain_epochs=0, growth=1e-9)  # always matched
    objective.begin_epoch(5, 10)
    objective.confusion.copy_(torch.tensor([[0, 0, 9, 0], [0, 0, 0, 9], [0, 9, 0, 0], [9, 0, 0, 0]]))
    back, front = image_batch(5), image_batch(6, FRONT_Y)
    batch = Batch(back.x, back.y, (), front)
    matched = objective._match(batch, front).numpy()
    taken_for = np.array([2, 3, 1, 0])  # there are as many backgrounds of that class as foregrounds
    np.testing.assert_array_equal(Y[matched], taken_for[FRONT_Y])
    loss = loss_of(objective, batch, 1)
    x = seen.pop()
    kept = (x == back.x[torch.from_numpy(matched)]).double().mean().item()
    z = linear(objective.model.head, features(objective.model, x))
    expected = kept * cross_entropy(z, Y[matched]) + (1 - kept) * cross_entropy(z, FRONT_Y)
    assert loss == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(("plain", "mixed"), [(0, [1, 2, 3, 4, 5, 6, 7, 8, 9]), (3, [4, 5, 6]), (5, [])])
def test_otmix_leaves_the_first_and_the_last_epochs_plain(plain: int, mixed: list[int]) -> None:
    objective, seen = mixing(plain_epochs=plain)
    found = []
    for epoch in range(10):
        objective.begin_epoch(epoch, 10)
        loss_of(objective, black_and_white())
        found += [epoch] if seen.pop().any() else []
    assert found == mixed


@pytest.mark.parametrize(("deferred", "weighted"), [(0, [0, 1, 2, 3]), (2, [2, 3]), (None, [])])
def test_otmix_weighs_classes_from_the_deferred_epoch_on(deferred: int | None, weighted: list[int]) -> None:
    objective, _ = mixing(epochs=4, plain_epochs=9, reweight_from=deferred)
    back = image_batch(7)
    z = linear(objective.model.head, features(objective.model, back.x))
    effective = (1 - 0.999) / (1 - 0.999 ** COUNTS.numpy().astype(np.float64))
    for epoch in range(4):
        objective.begin_epoch(epoch, 4)
        expected = cross_entropy(z, Y, effective if epoch in weighted else None)
        assert loss_of(objective, Batch(back.x, back.y, (), back)) == pytest.approx(expected, **CLOSE)
    assert cross_entropy(z, Y, effective) != pytest.approx(cross_entropy(z, Y), rel=1e-3)


def test_otmix_hands_the_confusions_of_one_epoch_to_the_next() -> None:
    objective, _ = mixing(plain_epochs=9)
    back = image_batch(8)
    predicted = linear(objective.model.head, features(objective.model, back.x)).argmax(1)
    expected = np.zeros((4, 4))
    np.add.at(expected, (Y, predicted), 2)  # rows are the true classes; the batch comes twice
    assert (expected != expected.T).any()
    objective.begin_epoch(0, 10)
    for _ in range(2):
        loss_of(objective, Batch(back.x, back.y, (), back))
    assert objective.confusion.sum() == 0
    objective.begin_epoch(1, 10)
    np.testing.assert_array_equal(objective.confusion, expected)
    assert objective.counting.sum() == 0
    objective.begin_epoch(2, 10)
    assert objective.confusion.sum() == 0

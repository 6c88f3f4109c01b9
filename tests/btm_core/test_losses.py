import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.nn import functional as F

from btm_core.errors import ConfigError
from btm_core.losses import BalancedSoftmax, GeometricMeanLoss, LabelAwareSmoothing, mixup

COUNTS = np.array([500, 100, 20, 5])


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(32, 4, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(4, (32,), generator=generator)


def test_label_aware_smoothing_is_cross_entropy_at_smoothing_zero(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, targets = batch
    loss = LabelAwareSmoothing(COUNTS, head=0, tail=0)(logits, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("shape", "weight"),
    [
        ("concave", lambda s: np.sin(np.pi / 2 * s)),
        ("linear", lambda s: s),
        ("convex", lambda s: 1 + np.sin(1.5 * np.pi + np.pi / 2 * s)),
        ("exponential", lambda s: s**2.5),
    ],
)
def test_label_aware_smoothing_against_numpy(batch, shape, weight) -> None:  # type: ignore[no-untyped-def]
    logits, targets = batch
    loss = LabelAwareSmoothing(COUNTS, 0.4, 0.1, shape, 2.5 if shape == "exponential" else None)
    epsilon = 0.1 + 0.3 * weight((COUNTS - 5) / 495)
    log_p = np.log(softmax(logits.detach().numpy(), axis=1))
    y = targets.numpy()
    expected = np.mean(-(1 - epsilon[y]) * log_p[np.arange(32), y] - epsilon[y] * log_p.mean(1))
    assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits)


def test_equal_smoothing_is_the_label_smoothing_of_torch(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, targets = batch
    loss = LabelAwareSmoothing(COUNTS, 0.2, 0.2)(logits, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, label_smoothing=0.2), rtol=1e-12, atol=0)


def test_the_head_is_smoothed_most() -> None:
    epsilon = LabelAwareSmoothing(COUNTS, 0.4, 0.1).epsilon
    assert epsilon[0].item() == pytest.approx(0.4)
    assert epsilon[-1].item() == pytest.approx(0.1)
    assert (epsilon.diff() < 0).all()
    assert torch.equal(LabelAwareSmoothing([7, 7], 0.4, 0.1).epsilon, torch.full((2,), 0.4, dtype=torch.float64))


def test_balanced_softmax_against_numpy(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, targets = batch
    loss = BalancedSoftmax(COUNTS)
    weighted = COUNTS * np.exp(logits.detach().numpy())
    p = weighted[np.arange(32), targets.numpy()] / weighted.sum(1)
    assert loss(logits, targets).item() == pytest.approx(-np.log(p).mean(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits)
    torch.testing.assert_close(
        BalancedSoftmax([3, 3, 3, 3])(logits, targets), F.cross_entropy(logits, targets), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_geometric_mean_loss_against_numpy(batch: tuple[torch.Tensor, torch.Tensor], power: float) -> None:
    logits, targets = batch
    loss = GeometricMeanLoss(COUNTS, p=power)
    weighted = COUNTS * np.exp(logits.detach().numpy())
    y = targets.numpy()
    p = np.clip(weighted[np.arange(32), y] / weighted.sum(1), 1e-5, 1)
    terms = [-math.log(p[y == c].mean()) for c in np.unique(y)]
    expected = np.mean(np.power(terms, power)) ** (1 / power)
    assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits)


def test_the_geometric_mean_loss_bounds_the_loss_of_a_hopeless_class() -> None:
    logits = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 3])
    hopeless = logits - 50 * F.one_hot(torch.tensor([1, 3, 3]), 4)  # class 3 has a probability of 1e-24
    loss = GeometricMeanLoss(COUNTS)(hopeless, targets)
    weighted = COUNTS * np.exp(hopeless.detach().numpy())
    right = (weighted / weighted.sum(1, keepdims=True))[0, 0]
    assert loss.item() == pytest.approx((-math.log(right) - math.log(1e-5)) / 2, rel=1e-12)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0].abs().sum() > 0 and logits.grad[1:].abs().sum() == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: LabelAwareSmoothing(COUNTS, 1.0, 0.1),
        lambda: LabelAwareSmoothing(COUNTS, 0.4, 0.1, "exponential"),
        lambda: LabelAwareSmoothing([[1, 2]], 0.4, 0.1),
        lambda: BalancedSoftmax([1, 0]),
        lambda: GeometricMeanLoss(COUNTS, p=0),
    ],
)
def test_wrong_arguments_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError):
        make()


def test_mixup_mixes_each_image_with_its_partner() -> None:
    x = torch.rand(8, 1, 4, 4)
    mixed, partner, lam = mixup(x, 1.0, torch.Generator().manual_seed(3))
    assert 0 <= lam <= 1
    assert sorted(partner.tolist()) == list(range(8))
    torch.testing.assert_close(mixed, lam * x + (1 - lam) * x[partner])


def test_mixup_draws_from_a_beta_distribution() -> None:
    from scipy import stats

    generator = torch.Generator().manual_seed(0)
    draws = [mixup(torch.zeros(2, 1), 0.2, generator)[2] for _ in range(2000)]
    assert stats.kstest(draws, stats.beta(0.2, 0.2).cdf).pvalue > 0.01

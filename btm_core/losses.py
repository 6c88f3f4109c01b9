"""Losses for long-tailed classification, and mixup.

B images a batch, C classes, n_c training images of class c; logits (B, C), targets (B,) int64. What is made of the
counts is kept in float64, and taken in the precision of the logits.
"""

import math
from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from btm_core.data.shares import Share
from btm_core.errors import ConfigError

__all__ = ["BalancedSoftmax", "GeometricMeanLoss", "LabelAwareSmoothing", "class_weights", "mixup"]


def _counts(class_counts: ArrayLike | Tensor) -> Tensor:
    counts = torch.as_tensor(class_counts).double()
    if counts.ndim != 1 or len(counts) < 2 or (counts < 0).any() or counts.max() == 0:
        raise ConfigError(f"class_counts must be (C,) training images a class, found shape {tuple(counts.shape)}")
    return counts


def class_weights(class_counts: ArrayLike | Tensor, kind: Literal["none", "inverse", "effective"]) -> Tensor | None:
    """Return weights (C,) float64 with mean 1 for re-weighting a loss, None for no weights.

    - inverse: proportional to 1 / n_c.
    - effective: proportional to (1 - beta) / (1 - beta ** n_c), beta = 0.999: the effective number of images (Cui et
      al., CVPR 2019, equation 3).
    """
    if kind == "none":
        return None
    n = _counts(class_counts).clamp(min=1)
    weights = 1 / n if kind == "inverse" else (1 - 0.999) / (1 - 0.999**n)
    return weights / weights.mean()


class LabelAwareSmoothing(nn.Module):
    """Cross-entropy with more label smoothing for frequent classes (Zhong et al., CVPR 2021, section 3.3).

    loss = -(1 - eps_y) ln p_y - eps_y / C * sum_c ln p_c, averaged over the batch: the published code's form, equal to
    torch's label smoothing at eps_y. (The paper writes eps_y / (C - 1) over the wrong classes; its numbers come from
    the code.)
    With s = (n_y - n_min) / (n_max - n_min) in [0, 1]:
    - concave: eps_y = tail + (head - tail) sin(pi/2 s)
    - linear: eps_y = tail + (head - tail) s
    - convex: eps_y = head + (head - tail) sin(3 pi/2 + pi/2 s), that is head - (head - tail) cos(pi/2 s)
    - exponential: eps_y = tail + (head - tail) s ** power
    Equal counts give eps_y = head for every class.

    Arguments:
    - class_counts: (C,) training images a class.
    - head, tail: smoothing of the most frequent and the rarest class, in [0, 1).
    - power: of the exponential shape.
    - weights: (C,) of the classes; the loss is then the weighted mean over the batch, as in torch's cross-entropy.
    """

    epsilon: Tensor
    weights: Tensor | None

    def __init__(
        self,
        class_counts: ArrayLike | Tensor,
        head: float,
        tail: float,
        shape: Literal["concave", "linear", "convex", "exponential"] = "concave",
        power: float | None = None,
        weights: Tensor | None = None,
    ):
        super().__init__()
        for name, value in (("head", head), ("tail", tail)):
            if not 0 <= value < 1:
                raise ConfigError(f"label-aware smoothing: {name} must be in [0, 1), found {value}")
        if (power is not None) != (shape == "exponential"):
            raise ConfigError("label-aware smoothing: power belongs to the exponential shape, and to it alone")
        n = _counts(class_counts)
        span = n.max() - n.min()
        s = (n - n.min()) / span if span > 0 else torch.ones_like(n)
        if shape == "concave":
            weight = torch.sin(math.pi / 2 * s)
        elif shape == "linear":
            weight = s
        elif shape == "convex":
            weight = 1 - torch.cos(math.pi / 2 * s)
        elif shape == "exponential":
            assert power is not None
            weight = s**power
        else:
            raise ConfigError(
                f"label-aware smoothing: unknown shape {shape!r}; known are concave, linear, convex, exponential"
            )
        self.register_buffer("epsilon", tail + (head - tail) * weight)
        self.register_buffer("weights", weights)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar."""
        log_p = F.log_softmax(logits, dim=1)
        right = log_p.gather(1, targets[:, None]).squeeze(1)
        epsilon = self.epsilon.to(log_p.dtype)[targets]
        losses = -((1 - epsilon) * right + epsilon * log_p.mean(1))
        if self.weights is None:
            return losses.mean()
        weights = self.weights.to(log_p.dtype)[targets]
        return (weights * losses).sum() / weights.sum()


class BalancedSoftmax(nn.Module):
    """Cross-entropy of logits_c + tau ln n_c.

    tau = 1 is balanced softmax (Ren et al., NeurIPS 2020, equation 3), any tau the logit-adjusted loss of Menon et al.
    (ICLR 2021, equation 10; ln n_c and ln of the prior differ by a constant).
    """

    log_counts: Tensor

    def __init__(self, class_counts: ArrayLike | Tensor, tau: float = 1.0):
        super().__init__()
        counts = _counts(class_counts)
        if (counts == 0).any():
            raise ConfigError("balanced softmax needs at least one training image a class")
        self.register_buffer("log_counts", tau * counts.log())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar."""
        return F.cross_entropy(logits + self.log_counts.to(logits.dtype), targets)


class GeometricMeanLoss(nn.Module):
    """Maximise the geometric mean of per-class recall in the batch (Du and Wu, CVPR 2023).

    p_i is the right class's probability of image i under a softmax weighted by counts,
    n_c exp(z_c) / sum_k n_k exp(z_k), clamped to [1e-5, 1]; q_c is the mean of p_i over the batch's images of class c.
    loss = (mean_c (-ln q_c) ** p) ** (1/p) over the classes present.

    Arguments:
    - class_counts: (C,) training images a class.
    - p: exponent of the power mean over classes; 1 is the paper's.
    """

    log_counts: Tensor

    def __init__(self, class_counts: ArrayLike | Tensor, p: float = 1.0):
        super().__init__()
        if p <= 0:
            raise ConfigError(f"geometric mean loss: p must be above 0, found {p}")
        self.p = p
        self.register_buffer("log_counts", _counts(class_counts).clamp(min=1e-12).log())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        probabilities = F.softmax(logits + self.log_counts.to(logits.dtype), dim=1)
        right = probabilities.gather(1, targets[:, None]).squeeze(1).clamp(1e-5, 1)
        # Over all C classes, for how many are present is not known without waiting for a GPU.
        images = right.new_zeros(logits.shape[1]).index_add(0, targets, torch.ones_like(right))
        absent = (images == 0).to(right.dtype)
        means = right.new_zeros(logits.shape[1]).index_add(0, targets, right) / (images + absent)
        terms = -(means + absent).log()  # 0 for absent classes
        present = len(terms) - absent.sum()
        return terms.sum() / present if self.p == 1 else (terms.pow(self.p).sum() / present).pow(1 / self.p)


def mixup(
    inputs: Tensor, alpha: float, generator: torch.Generator, share: Share | None = None
) -> tuple[Tensor, Tensor, float]:
    """Mix each image with another of its batch (Zhang et al., ICLR 2018): lam * x_i + (1 - lam) * x_j.

    lam is one draw of Beta(alpha, alpha) a batch. Train on lam * loss(., y) + (1 - lam) * loss(., y[partner]).

    Arguments:
    - inputs: (B, ...) float.
    - alpha: above 0.
    - share: which images of a batch these are; default: all. Partners are of the same share, lam is the batch's.

    Returns the mixed inputs, the partners' positions (B,), and lam.
    """
    # Beta(a, a) as a ratio of Gamma draws; torch._standard_gamma is what torch.distributions.Gamma samples with,
    # and unlike the distribution it takes a generator.
    gammas = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator)
    total = float(gammas.sum())
    lam = float(gammas[0]) / total if total > 0 else 0.5
    share = share or Share.everything(len(inputs))
    partner = torch.randperm(share.whole, generator=generator)
    inside = (partner >= share.start) & (partner < share.stop)  # in random order: a permutation of the share
    partner = (partner[inside] - share.start).to(inputs.device, non_blocking=True)
    return lam * inputs + (1 - lam) * inputs[partner], partner, lam

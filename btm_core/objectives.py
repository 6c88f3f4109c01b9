"""What a trainer minimises: networks, and the loss of a batch. One subclass a way to train.

B images a batch, K channels, S pixels a side, C classes.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from btm_core.data.shares import Share
from btm_core.losses import mixup
from btm_core.models import Classifier, trainable_modules

__all__ = ["Batch", "Groups", "Objective", "Supervised", "at_least_float32", "part_objective"]

Groups = list[tuple[Iterable[nn.Parameter], float]]


@dataclass(frozen=True)
class Batch:
    """Images x (B, K, S, S) float with labels y (B,), further views of the same images, and a second stream's batch.

    `share` says what part of a larger batch this is, where several processes train together.
    """

    x: Tensor
    y: Tensor
    views: tuple[Tensor, ...] = ()
    companion: "Batch | None" = None
    share: Share | None = None

    def map_inputs(self, function: Any) -> "Batch":
        """Return the batch with `function` applied to all inputs."""
        companion = None if self.companion is None else self.companion.map_inputs(function)
        return replace(self, x=function(self.x), views=tuple(map(function, self.views)), companion=companion)


class Objective(nn.Module):
    """Networks and a loss. All that must survive a restart is a parameter or a buffer.

    - views: how each image of a batch is shown; the first is `Batch.x` (see `btm_core.data.views`).
    - second_stream: whether `Batch.companion` is wanted.
    - precision: of the networks; losses are computed in float32 always.
    """

    views: tuple[str, ...] = ("standard",)
    second_stream: bool = False

    def __init__(self, precision: str = "float32"):
        super().__init__()
        self.precision = precision

    def groups(self) -> Groups:
        """Return what trains: (parameters, factor on the learning rate). Everything else is frozen."""
        raise NotImplementedError

    def set_mode(self) -> None:
        """Put the networks into their training mode; called before each epoch."""
        self.train()

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before epoch 0 .. epochs - 1."""

    def forward(self, batch: Batch, draws: torch.Generator) -> Tensor:
        """Return the loss, a scalar. `draws` is this epoch's randomness."""
        raise NotImplementedError

    def run(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return network(x) as float32, or float64 of a network that is, computed in the objective's precision."""
        low = self.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16) if low else nullcontext():
            out: Tensor = network(x)
        return at_least_float32(out)


def at_least_float32(x: Tensor) -> Tensor:
    """Return what losses are computed on: x in float32, or in float64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()


class Supervised(Objective):
    """loss(network(x), y), with mixup if alpha is above 0 (Zhang et al., ICLR 2018).

    Arguments:
    - network: inputs (B, K, S, S) to logits (B, C).
    - loss: called as loss(logits, targets).
    - trained: the modules that train; the others are frozen, their BN in evaluation mode: not one bit changes.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        trained: Iterable[nn.Module] | None = None,
        mixup_alpha: float = 0.0,
        precision: str = "float32",
    ):
        super().__init__(precision)
        self.network, self.loss, self.mixup_alpha = network, loss, mixup_alpha
        self._trained = [network] if trained is None else list(trained)

    def groups(self) -> Groups:
        """One group: the parameters of what trains."""
        return [([p for module in self._trained for p in module.parameters()], 1.0)]

    def set_mode(self) -> None:
        """Training mode for what trains, evaluation mode for the rest."""
        self.network.eval()
        for module in self._trained:
            module.train()

    def forward(self, batch: Batch, draws: torch.Generator) -> Tensor:
        """Return the loss of the first view."""
        x, targets, partners, lam = self.mixed(batch, draws)
        return self.loss_of(self.run(self.network, x), targets, partners, lam)

    def mixed(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return mixed inputs (B, K, S, S), targets (B,), those of each image's partner (B,), and the share lam."""
        if self.mixup_alpha == 0:
            return batch.x, batch.y, batch.y, 1.0
        x, partner, lam = mixup(batch.x, self.mixup_alpha, draws, batch.share)
        return x, batch.y, batch.y[partner], lam

    def loss_of(self, logits: Tensor, targets: Tensor, partners: Tensor, lam: float | Tensor) -> Tensor:
        """Return the loss of logits (B, C) for what `mixed` returned."""
        loss: Tensor = self.loss(logits, targets)
        if self.mixup_alpha == 0:
            return loss
        mixed: Tensor = lam * loss + (1 - lam) * self.loss(logits, partners)
        return mixed


def part_objective(
    model: Classifier, part: str, loss: nn.Module | None = None, mixup_alpha: float = 0.0, precision: str = "float32"
) -> Supervised:
    """Return cross-entropy (or `loss`) on one part of a classifier; see `trainable_modules` for the parts."""
    return Supervised(model, loss or nn.CrossEntropyLoss(), trainable_modules(model, part), mixup_alpha, precision)

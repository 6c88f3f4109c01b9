"""The learning rate of each epoch, and the optimizer.

E epochs, e = 0 .. E-1 the epoch.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from btm_core.config import TrainConfig

__all__ = ["learning_rate", "optimizer"]


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """Return the learning rate of an epoch, constant within it.

    - warm-up: lr * (e + 1) / warmup_epochs while e < warmup_epochs.
    - cosine: lr / 2 * (1 + cos(pi * e / E)).
    - step: lr * gamma ** (number of milestones m with e >= m): after m epochs have passed.
    """
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1) / config.warmup_epochs
    if config.schedule == "cosine":
        return config.lr / 2 * (1 + math.cos(math.pi * epoch / config.epochs))
    if config.schedule == "step":
        return config.lr * config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    return config.lr


def optimizer(groups: Iterable[tuple[Iterable[Tensor], float]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return SGD or Adam over (parameters, factor) groups; the factor scales the group's learning rate.

    On a GPU a step is one fused kernel. A CPU would gain nothing (below 1 % of a step of ResNet-32), and change bits.
    """
    params: list[dict[str, Any]] = [{"params": list(group), "factor": factor} for group, factor in groups]
    fused = all(parameter.is_cuda for group in params for parameter in group["params"]) or None
    if config.optimizer == "adam":
        return torch.optim.Adam(params, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(
        params,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=fused,
    )

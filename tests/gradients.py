"""Gradients of an objective against central differences of its loss, in float64."""

import copy

import pytest
import torch

from btm_core.objectives import Batch, Objective

STEP = 1e-5


def check_gradient(objective: Objective, batch: Batch, seed: int = 0) -> None:
    """Compare the slope of the loss along one random direction of all that trains; `seed` is that of its draws."""
    random = torch.Generator().manual_seed(100)
    along = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in _trained(objective)]

    def moved(step: float) -> tuple[Objective, torch.Tensor]:
        copied = copy.deepcopy(objective)  # a forward pass changes some: a queue, counts of confusions
        with torch.no_grad():
            for parameter, direction in zip(_trained(copied), along, strict=True):
                parameter.add_(direction, alpha=step)
        return copied, copied(batch, torch.Generator().manual_seed(seed))

    (_, ahead), (_, behind), (here, loss) = moved(STEP), moved(-STEP), moved(0)
    assert loss.dtype == torch.float64
    loss.backward()  # type: ignore[no-untyped-call]
    found = sum(float((p.grad * d).sum()) for p, d in zip(_trained(here), along, strict=True) if p.grad is not None)
    slope = float((ahead - behind).detach()) / (2 * STEP)
    assert abs(slope) > 1e-3
    assert found == pytest.approx(slope, rel=1e-5)


def _trained(objective: Objective) -> list[torch.nn.Parameter]:
    return [parameter for parameters, _ in objective.groups() for parameter in parameters]

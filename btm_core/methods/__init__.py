"""Stage-1 methods, one module each. A module has one function,

    objective(model, train_counts, config, precision, seed) -> Objective

- model: the classifier to train; it alone is kept afterwards. Whatever else a method needs (projection heads, momentum
  encoders, queues) are parameters and buffers of the objective, so that a restart finds them.
- train_counts: (C,) training images a class.
- config: the PretrainConfig; the method's own options are `config.method` (`btm_core.config.methods`).

To add one: its options there, a module here of the same name, and a preset. See docs/methods.md.
"""

from importlib import import_module

import torch
from torch import Tensor

from btm_core.config import PretrainConfig
from btm_core.config.methods import OTmixOptions, check_processes
from btm_core.data.dataset import LabelledImages
from btm_core.distributed import Group
from btm_core.models import Classifier
from btm_core.objectives import Objective
from btm_core.sampling import weighted_order
from btm_core.training import Trainer

__all__ = ["stage1_objective", "stage1_trainer"]


def stage1_objective(
    model: Classifier, train_counts: Tensor, config: PretrainConfig, precision: str = "float32", seed: int = 0
) -> Objective:
    """Return the objective of `config.method`. `seed` names the initial weights of whatever it adds to the model."""
    module = import_module(f"btm_core.methods.{config.method.name}")
    objective: Objective = module.objective(model, train_counts, config, precision, seed)
    return objective


def stage1_trainer(
    model: Classifier,
    data: LabelledImages,
    train_counts: Tensor,
    config: PretrainConfig,
    *,
    seed: int,
    precision: str = "float32",
    device: torch.device | None = None,
    group: Group | None = None,
) -> Trainer:
    """Return the trainer of stage 1: iterate over it, and `model` is trained.

    Arguments:
    - data: the long-tailed training set; train_counts: (C,) its images a class.
    - group: the processes that train it together, if there are several.
    """
    if group is not None:
        check_processes(config.method, group.size)
        group.prepare(model)  # before the objective takes hold of the modules it trains
    objective = stage1_objective(model, train_counts, config, precision, seed)
    name = ("pretrain", seed)

    def balanced(epoch: int) -> Tensor:
        assert isinstance(config.method, OTmixOptions)
        return torch.from_numpy(weighted_order(data.labels.numpy(), len(data), config.method.balance, *name, epoch))

    companion = balanced if objective.second_stream else None
    return Trainer(objective, data, config, seed=name, companion=companion, device=device, group=group)

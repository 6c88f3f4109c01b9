"""Stage-1 methods, one module each. A module has one function,

    objective(model, train_counts, config, precision, seed) -> Objective

- model: the classifier to train; it alone is kept afterwards. Whatever else a method needs (projection heads, momentum
  encoders, queues) are parameters and buffers of the objective, so that a restart finds them.
- train_counts: (C,) training images a class.
- config: the PretrainConfig; the method's own options are `config.method` (`btm_core.config.methods`).

To add one: its options there, a module here of the same name, and a preset. See docs/methods.md.
"""

from importlib import import_module

from torch import Tensor

from btm_core.config import PretrainConfig
from btm_core.models import Classifier
from btm_core.objectives import Objective

__all__ = ["stage1_objective"]


def stage1_objective(
    model: Classifier, train_counts: Tensor, config: PretrainConfig, precision: str, seed: int
) -> Objective:
    """Return the objective of `config.method`. `seed` names the initial weights of whatever it adds to the model."""
    module = import_module(f"btm_core.methods.{config.method.name}")
    objective: Objective = module.objective(model, train_counts, config, precision, seed)
    return objective

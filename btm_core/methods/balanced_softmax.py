"""Balanced softmax (Ren et al., NeurIPS 2020): cross-entropy of logits + ln n_c; at test time the logits alone."""

from torch import Tensor

from btm_core.config import PretrainConfig
from btm_core.losses import BalancedSoftmax
from btm_core.models import Classifier
from btm_core.objectives import Objective, part_objective


def objective(model: Classifier, train_counts: Tensor, config: PretrainConfig, precision: str, seed: int) -> Objective:
    """See `btm_core.methods`."""
    return part_objective(model, config.train, BalancedSoftmax(train_counts), config.mixup_alpha, precision)

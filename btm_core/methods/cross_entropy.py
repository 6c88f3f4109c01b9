"""Cross-entropy; with mixup it is stage 1 of MiSLAS (Zhong et al., CVPR 2021) and of H2T (Li et al., AAAI 2024)."""

from torch import Tensor

from btm_core.config import PretrainConfig
from btm_core.models import Classifier
from btm_core.objectives import Objective, part_objective


def objective(model: Classifier, train_counts: Tensor, config: PretrainConfig, precision: str, seed: int) -> Objective:
    """See `btm_core.methods`."""
    return part_objective(model, config.train, mixup_alpha=config.mixup_alpha, precision=precision)

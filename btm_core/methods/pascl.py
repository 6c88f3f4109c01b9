"""PASCL without outliers: its classification part (Wang et al., ICML 2022; https://github.com/amazon-science/long-tailed-ood-detection).

Cross-entropy of two views, and a supervised contrast among the images of tail classes. The published method also pushes
both away from out-of-distribution images, which serves the detection of such images and needs a set of them.

B images a batch, T of them of tail classes, D features, E embedding dimensions, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btm_core.config import PretrainConfig
from btm_core.config.methods import PASCLOptions
from btm_core.methods.contrast import mlp
from btm_core.models import Classifier, trainable_modules
from btm_core.objectives import Batch, Groups, Objective

__all__ = ["PASCL", "objective", "supervised_contrast"]


def supervised_contrast(embeddings: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al., NeurIPS 2020), a scalar; 0 if there is no positive pair.

    loss_i = -mean over j != i with y_j = y_i of ln softmax_(k != i)(e_i . e_k / temperature)_j.

    Arguments:
    - embeddings: (M, E) of unit length.
    - classes: (M,).
    """
    itself = torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    positive = (classes[:, None] == classes) & ~itself
    anchors = positive.any(1)
    if not anchors.any():
        return embeddings.sum() * 0
    log_p = F.log_softmax((embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf), 1)
    per_anchor = log_p.masked_fill(~positive, 0).sum(1)[anchors] / positive.sum(1)[anchors]
    return -per_anchor.mean()


class PASCL(Objective):
    """The network (or the part of it that trains) and a projection (D, D, E)."""

    views = ("simclr", "simclr")
    tail: Tensor

    def __init__(
        self, model: Classifier, train_counts: Tensor, part: str, options: PASCLOptions, precision: str, seed: int
    ):
        super().__init__(precision)
        self.options, self.model = options, model
        self.projection = mlp([model.head.in_features, model.head.in_features, options.dim], False, "pascl", seed)
        rarest = train_counts.argsort(stable=True)[: round(options.tail_share * len(train_counts))]
        self.register_buffer("tail", torch.zeros(len(train_counts), dtype=torch.bool).index_fill(0, rarest, True))
        self._trained: list[nn.Module] = [*trainable_modules(model, part), self.projection]

    def groups(self) -> Groups:
        """What trains of the network, and the projection."""
        return [([p for module in self._trained for p in module.parameters()], 1.0)]

    def set_mode(self) -> None:
        """Training mode for what trains."""
        self.eval()
        for module in self._trained:
            module.train()

    def forward(self, batch: Batch, draws: torch.Generator) -> Tensor:
        """Return cross-entropy of both views plus the weighted contrast of tail images."""
        features = self.run(self.model.backbone, torch.cat([batch.x, *batch.views]))
        classes = torch.cat([batch.y, batch.y])
        loss = F.cross_entropy(self.model.head(features), classes)
        chosen = self.tail[classes]
        if not chosen.any():
            return loss
        embeddings = F.normalize(self.projection(features[chosen]))
        return loss + self.options.weight * supervised_contrast(embeddings, classes[chosen], self.options.temperature)


def objective(model: Classifier, train_counts: Tensor, config: PretrainConfig, precision: str, seed: int) -> Objective:
    """See `btm_core.methods`."""
    assert isinstance(config.method, PASCLOptions)
    return PASCL(model, train_counts, config.train, config.method, precision, seed)

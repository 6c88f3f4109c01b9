"""PaCo: parametric contrastive learning (Cui et al., ICCV 2021; https://github.com/dvlab-research/Parametric-Contrastive-Learning).

Two views of each image: the first goes through the network, the second through a momentum encoder whose embeddings are
queued. The anchors are the first views; the candidates first views, second views and queue.

B images a batch, D features, E embedding dimensions, Q queued, C classes.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btm_core.config import PretrainConfig
from btm_core.config.methods import PaCoOptions
from btm_core.methods.contrast import Queue, mlp, parametric_contrast
from btm_core.models import Classifier
from btm_core.objectives import Batch, Groups, Objective


class PaCo(Objective):
    """The network, a projection (D, D, E), their slowly following copies, and the queue."""

    log_prior: Tensor

    def __init__(self, model: Classifier, train_counts: Tensor, options: PaCoOptions, precision: str, seed: int):
        super().__init__(precision)
        self.views = (options.view, "simclr")
        self.options, self.model = options, model
        features, classes = model.head.in_features, model.head.out_features
        self.projection = mlp([features, features, options.dim], True, "paco", seed)
        self.slow_backbone, self.slow_projection = copy.deepcopy(model.backbone), copy.deepcopy(self.projection)
        self.queue = Queue(options.queue, options.dim, classes, "paco", seed)
        self.register_buffer("log_prior", (train_counts / train_counts.sum()).log().float())

    def groups(self) -> Groups:
        """The network and its projection."""
        return [([*self.model.parameters(), *self.projection.parameters()], 1.0)]

    def forward(self, batch: Batch, draws: torch.Generator) -> Tensor:
        """Return the loss, and queue the second views."""
        features = self.run(self.model.backbone, batch.x)
        fast = F.normalize(self.projection(features))
        with torch.no_grad():
            self._follow(self.slow_backbone, self.model.backbone)
            self._follow(self.slow_projection, self.projection)
            slow = F.normalize(self.slow_projection(self.run(self.slow_backbone, batch.views[0])))
        others = torch.cat([fast, slow, self.queue.embeddings.clone()])
        classes = torch.cat([batch.y, batch.y, self.queue.classes.clone()])
        loss = parametric_contrast(
            self.model.head(features),
            fast @ others.T / self.options.temperature,
            batch.y,
            classes,
            self.log_prior,
            self.options.alpha,
        )
        self.queue.push(slow, batch.y)
        return loss

    def _follow(self, slow: nn.Module, fast: nn.Module) -> None:
        for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
            old.lerp_(new, 1 - self.options.momentum)


def objective(model: Classifier, train_counts: Tensor, config: PretrainConfig, precision: str, seed: int) -> Objective:
    """See `btm_core.methods`."""
    assert isinstance(config.method, PaCoOptions)
    return PaCo(model, train_counts, config.method, precision, seed)

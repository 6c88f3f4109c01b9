"""GPaCo: PaCo without a momentum encoder (Cui et al., TPAMI 2023; https://github.com/dvlab-research/Parametric-Contrastive-Learning).

Both views go through the network and both are anchors; the second ones are queued. The class label may be smoothed.

B images a batch, D features, E embedding dimensions, Q queued, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btm_core.config import PretrainConfig
from btm_core.config.methods import GPaCoOptions
from btm_core.methods.contrast import Queue, mlp, parametric_contrast
from btm_core.models import Classifier, trainable_modules
from btm_core.objectives import Batch, Groups, Objective


class GPaCo(Objective):
    """The network (or the part of it that trains), a projection (D, D, D, E), and the queue."""

    log_prior: Tensor

    def __init__(
        self, model: Classifier, train_counts: Tensor, part: str, options: GPaCoOptions, precision: str, seed: int
    ):
        super().__init__(precision)
        self.views = (options.view, "simclr")
        self.options, self.model = options, model
        features, classes = model.head.in_features, model.head.out_features
        self.projection = mlp([features, features, features, options.dim], False, "gpaco", seed)
        self.queue = Queue(options.queue, options.dim, classes, "gpaco", seed)
        self.register_buffer("log_prior", (train_counts / train_counts.sum()).log().float())
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
        """Return the loss, and queue the second views."""
        first, second = (self.run(self.model.backbone, x) for x in (batch.x, *batch.views))
        features = torch.cat([first, second])
        embeddings = F.normalize(self.projection(features))
        targets = torch.cat([batch.y, batch.y])
        loss = parametric_contrast(
            self.model.head(features),
            embeddings @ torch.cat([embeddings, self.queue.embeddings.clone()]).T / self.options.temperature,
            targets,
            torch.cat([targets, self.queue.classes.clone()]),
            self.log_prior,
            self.options.alpha,
            self.options.smoothing,
        )
        self.queue.push(embeddings[len(batch.y) :].detach(), batch.y)
        return loss


def objective(model: Classifier, train_counts: Tensor, config: PretrainConfig, precision: str, seed: int) -> Objective:
    """See `btm_core.methods`."""
    assert isinstance(config.method, GPaCoOptions)
    return GPaCo(model, train_counts, config.train, config.method, precision, seed)

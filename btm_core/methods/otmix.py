"""OTmix: pasting rare foregrounds on backgrounds matched by optimal transport (Gao et al., NeurIPS 2023;
https://github.com/JintongGao/Enhancing-Minority-Classes-by-Mixing).

Backgrounds are the plain batches, foregrounds a second stream that draws every class alike. At first they are pasted at
random (CMO; Park et al., CVPR 2022); with a probability that grows to 1, each foreground of a batch is put on the
background that optimal transport gives it, under a cost of features and of how often the classes are confused. (The
published code decides this once an epoch, this module once a batch.)

The published code counts confusions on the test split. Here they are counted on the training batches: choosing anything
on the test split is no fair comparison.

B images a batch, D features, C classes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from btm_core.config import PretrainConfig
from btm_core.config.methods import OTmixOptions
from btm_core.losses import class_weights
from btm_core.models import Classifier, trainable_modules
from btm_core.objectives import Batch, Groups, Objective

__all__ = ["OTmix", "objective", "transport_plan"]


def transport_plan(cost: Tensor, regularisation: float, iterations: int = 200) -> Tensor:
    """Return the entropy-regularised transport plan between uniform marginals (Cuturi, NeurIPS 2013).

    Sinkhorn's iterations on logarithms: no underflow, whatever the regularisation.

    Arguments:
    - cost: (R, S).

    Returns (R, S), above 0, rows summing to 1/R (up to convergence) and columns to 1/S.
    """
    log_kernel = -cost.double() / regularisation
    rows, columns = (math.log(1 / size) for size in cost.shape)
    g = log_kernel.new_zeros(cost.shape[1])
    for _ in range(iterations):
        f = rows - torch.logsumexp(log_kernel + g, 1)
        g = columns - torch.logsumexp(log_kernel + f[:, None], 0)
    return torch.exp(log_kernel + f[:, None] + g)


class OTmix(Objective):
    """The network, and how often it confused which classes in this epoch and the last."""

    second_stream = True
    confusion: Tensor
    counting: Tensor
    deferred_weights: Tensor | None

    def __init__(self, model: Classifier, train_counts: Tensor, config: PretrainConfig, precision: str):
        super().__init__(precision)
        assert isinstance(config.method, OTmixOptions)
        self.model, self.options = model, config.method
        self._trained = trainable_modules(model, config.train)
        classes = model.head.out_features
        self.register_buffer("confusion", torch.zeros(classes, classes))
        self.register_buffer("counting", torch.zeros(classes, classes))
        self.register_buffer("deferred_weights", class_weights(train_counts, "effective"))
        self.epoch, self.epochs = 0, config.epochs

    def groups(self) -> Groups:
        """What trains of the network."""
        return [([p for module in self._trained for p in module.parameters()], 1.0)]

    def set_mode(self) -> None:
        """Training mode for what trains."""
        self.eval()
        for module in self._trained:
            module.train()

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Take the last epoch's confusions, and count anew."""
        self.epoch, self.epochs = epoch, epochs
        self.confusion.copy_(self.counting)
        self.counting.zero_()

    def forward(self, batch: Batch, draws: torch.Generator) -> Tensor:
        """Return the weighted cross-entropy of a batch, mixed half of the time."""
        assert batch.companion is not None
        margin = self.options.plain_epochs
        mixing = margin < self.epoch < self.epochs - margin
        if not mixing or _uniform(draws) >= self.options.probability:
            logits = self.run(self.model, batch.x)
            with torch.no_grad():
                seen = batch.y * len(self.counting) + logits.argmax(1)
                ones = torch.ones_like(seen, dtype=self.counting.dtype)
                self.counting.view(-1).index_put_((seen,), ones, accumulate=True)
            return self._loss(logits, batch.y)
        x, y, front = batch.x, batch.y, batch.companion
        if _uniform(draws) < (self.epoch / self.epochs) ** self.options.growth:
            matched = self._match(batch, front)
            x, y = x[matched], y[matched]
        mixed, kept = paste(front.x, x, self.options.beta, draws)
        logits = self.run(self.model, mixed)
        return kept * self._loss(logits, y) + (1 - kept) * self._loss(logits, front.y)

    @torch.no_grad()
    def _match(self, back: Batch, front: Batch) -> Tensor:
        """Return the background of each foreground, positions (B,): the largest share of its row of the plan."""
        rates = self.confusion / self.confusion.sum(1, keepdim=True).clamp(min=1)
        rates = rates * (1 - torch.eye(len(rates), device=rates.device))
        features = [F.normalize(self.run(self.model.backbone, x)) for x in (front.x, back.x)]
        weight = self.options.feature_weight
        cost = weight * (1 - features[0] @ features[1].T) + (1 - weight) * (1 - rates[front.y][:, back.y])
        return transport_plan(cost, self.options.regularisation).argmax(1)

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        deferred = self.options.reweight_from
        weights = self.deferred_weights if deferred is not None and self.epoch >= deferred else None
        return F.cross_entropy(logits, y, None if weights is None else weights.to(logits.dtype))


def paste(front: Tensor, back: Tensor, beta: float, draws: torch.Generator) -> tuple[Tensor, float]:
    """Paste one box of the foregrounds (B, K, S, S) into the backgrounds, as CutMix does (Yun et al., ICCV 2019).

    The box keeps a share lam ~ Beta(beta, beta) of the background, less where it leaves the image. Returns the images
    and the share of background that is really kept.
    """
    gammas = torch._standard_gamma(torch.full((2,), beta, dtype=torch.float64), generator=draws)
    lam = float(gammas[0] / gammas.sum())
    height, width = back.shape[2:]
    box = []
    for side in (height, width):
        half = int(side * math.sqrt(1 - lam)) // 2
        centre = int(torch.randint(side, (1,), generator=draws))
        box.append(slice(max(centre - half, 0), min(centre + half, side)))
    mixed = back.clone()
    mixed[:, :, box[0], box[1]] = front[:, :, box[0], box[1]]
    area = (box[0].stop - box[0].start) * (box[1].stop - box[1].start)
    return mixed, 1 - area / (height * width)


def _uniform(draws: torch.Generator) -> float:
    return float(torch.rand(1, generator=draws))


def objective(model: Classifier, train_counts: Tensor, config: PretrainConfig, precision: str, seed: int) -> Objective:
    """See `btm_core.methods`."""
    return OTmix(model, train_counts, config, precision)

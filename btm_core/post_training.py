"""Post-training: freeze the backbone and re-train the head for all classes alike (Algorithm 1, line 4).

| method | loss | trains | batches |
|---|---|---|---|
| mislas | label-aware smoothing (Zhong et al., CVPR 2021) | head, and a scale on the logits | class-aware |
| crt | cross-entropy (Kang et al., ICLR 2020) | a new head | class-aware |
| lws | cross-entropy (Kang et al., ICLR 2020) | a scale on the logits | class-aware |
| balanced_softmax | cross-entropy of logits + tau ln n_c (Ren et al., NeurIPS 2020) | head | instance |
| gml | geometric mean loss (Du and Wu, CVPR 2023) | head, and a scale on the logits | instance |
| h2t | cross-entropy of fused features (Li et al., AAAI 2024) | head | class-aware, fused with instance |

B images a batch, C classes, D features, n_c training images of class c.
"""

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from btm_core.config import InputConfig, PostTrainConfig
from btm_core.data.dataset import FORWARD_BATCH, LabelledFeatures, LabelledImages
from btm_core.losses import BalancedSoftmax, GeometricMeanLoss, LabelAwareSmoothing, class_weights, mixup
from btm_core.models import Classifier
from btm_core.objectives import Batch, Groups, Objective
from btm_core.sampling import class_aware_order
from btm_core.seeding import derive_seed, torch_generator
from btm_core.training import Order, Trainer

__all__ = ["PostTraining", "post_trainer"]


@dataclass(frozen=True)
class _Method:
    """What trains, from which weights, on which batches."""

    head: bool = True
    scale: bool = False
    new_head: bool = False
    sampler: str = "class-aware"


_METHODS = {
    "mislas": _Method(scale=True),
    "crt": _Method(new_head=True),
    "lws": _Method(head=False, scale=True),
    "balanced_softmax": _Method(sampler="instance"),
    "gml": _Method(scale=True, sampler="instance"),
    "h2t": _Method(),
}


class PostTraining(Objective):
    """A frozen backbone, the head, and a scale (C,) on the logits, bias included (learnable weight scaling).

    Arguments:
    - on_features: batches hold the backbone's features (B, D) in place of images.
    """

    def __init__(
        self,
        model: Classifier,
        loss: nn.Module,
        config: PostTrainConfig,
        precision: str = "float32",
        on_features: bool = False,
    ):
        super().__init__(precision)
        self.model, self.loss, self.config, self.on_features = model, loss, config, on_features
        self.scale = nn.Parameter(torch.ones(model.head.out_features))

    def groups(self) -> Groups:
        """The head, at its own rate, and the scale, as far as the method trains them."""
        method = _METHODS[self.config.method]
        groups: Groups = [(self.model.head.parameters(), self.config.head_lr_factor)] if method.head else []
        return groups + ([([self.scale], 1.0)] if method.scale else [])

    def set_mode(self) -> None:
        """BN of the backbone follows the batches if it is to: its statistics move, its parameters do not."""
        self.train()
        self.model.backbone.train(self.config.shift_batchnorm)

    def features(self, x: Tensor) -> Tensor:
        """Return features (B, D) of inputs (B, K, S, S), or the inputs if they are the features."""
        return x if self.on_features else self.run(self.model.backbone, x)

    def logits(self, features: Tensor) -> Tensor:
        """Return scaled logits (B, C) of features (B, D)."""
        scaled: Tensor = self.scale * self.model.head(features)
        return scaled

    def forward(self, batch: Batch, draws: torch.Generator) -> Tensor:
        """Return the loss; nothing is differentiated through the backbone."""
        x, partner, lam = batch.x, None, 1.0
        if self.config.mixup_alpha > 0:
            x, partner, lam = mixup(x, self.config.mixup_alpha, draws)
        with torch.no_grad():
            features = self.features(x)
            if batch.companion is not None:
                features = self._fused(features, self.features(batch.companion.x), draws)
        logits = self.logits(features)
        loss: Tensor = self.loss(logits, batch.y)
        if partner is not None:
            loss = lam * loss + (1 - lam) * self.loss(logits, batch.y[partner])
        return loss

    def _fused(self, features: Tensor, others: Tensor, draws: torch.Generator) -> Tensor:
        """Take a share rho of the feature maps, chosen anew each batch, from the second stream (H2T, equation 4).

        Pooling treats each map by itself, so that maps can be exchanged after it: (B, D) and (B, D).
        """
        dim = features.shape[1]
        taken = torch.randperm(dim, generator=draws)[: int(self.config.h2t_ratio * dim)]
        taken = taken.to(features.device, non_blocking=True)
        return features.index_copy(1, taken, others[:, taken])

    @torch.no_grad()
    def folded(self) -> Classifier:
        """Multiply the scale into the head's weight and bias; the classifier alone then gives the same logits."""
        self.model.head.weight.mul_(self.scale[:, None])
        self.model.head.bias.mul_(self.scale)
        self.scale.fill_(1)
        return self.model


def post_trainer(
    model: Classifier,
    data: LabelledImages,
    train_counts: ArrayLike,
    config: PostTrainConfig,
    *,
    seed: tuple[int | str, ...],
    precision: str = "float32",
    device: torch.device | None = None,
) -> tuple[PostTraining, Trainer]:
    """Return the wrapped model and a trainer of its head; iterate over the trainer, then take `folded()`.

    A class-aware epoch is ceil(N / B) + 1 batches, as in the reference code. Without `shift_batchnorm` not one bit of
    the backbone changes; where nothing is drawn either, features are computed once, and epochs cost next to nothing.

    Arguments:
    - data: the whole, imbalanced training set.
    - train_counts: (C,) training images a class.
    """
    method = _METHODS[config.method]
    once = features_are_fixed(data.config, config)
    wrapped = PostTraining(model, _loss(config, train_counts), config, precision, on_features=once)
    if method.new_head:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(*seed, "new-head"))
            model.head.reset_parameters()
    order = _order(config.sampler or method.sampler, data, config, *seed)
    companion = _order("instance", data, config, *seed, "companion") if config.method == "h2t" else None
    device = device or torch.device("cpu")
    shown = LabelledFeatures(_features(wrapped, data, device), data.labels, data.config) if once else data
    trainer = Trainer(wrapped, shown, config, seed=seed, order=order, companion=companion, device=device)
    return wrapped, trainer


def features_are_fixed(view: InputConfig, config: PostTrainConfig) -> bool:
    """Whether each image has the same features in every epoch: nothing is drawn, and BN statistics stay."""
    drawn = view.augmentation != "none" or view.color_jitter > 0 or config.mixup_alpha > 0
    return not drawn and not config.shift_batchnorm


@torch.no_grad()
def _features(wrapped: PostTraining, data: LabelledImages, device: torch.device) -> Tensor:
    """Return the features (N, D) of all images, on the device."""
    backbone = wrapped.model.to(device).backbone.eval()
    return torch.cat([wrapped.run(backbone, x) for x, _ in data.to(device).test_batches(FORWARD_BATCH, device)])


def _loss(config: PostTrainConfig, train_counts: ArrayLike) -> nn.Module:
    if config.method == "balanced_softmax":
        return BalancedSoftmax(train_counts, config.tau)
    if config.method == "gml":
        return GeometricMeanLoss(train_counts, config.gml_power)
    weights = class_weights(train_counts, config.reweight)
    if config.method == "mislas":
        return LabelAwareSmoothing(train_counts, config.smoothing_head, config.smoothing_tail, weights=weights)
    return nn.CrossEntropyLoss(weight=None if weights is None else weights.float())


def _order(sampler: str, data: LabelledImages, config: PostTrainConfig, *seed: int | str) -> Order:
    """Return the positions of each epoch, as many for one sampler as for the other where two streams run together."""
    labels = data.labels.numpy()
    length = (-(-len(data) // config.batch_size) + 1) * config.batch_size

    def class_aware(epoch: int) -> Tensor:
        return torch.from_numpy(class_aware_order(labels, length, config.samples_per_class, *seed, epoch))

    def instance(epoch: int) -> Tensor:
        passes = [
            torch.randperm(len(data), generator=torch_generator(*seed, epoch, number, "order"))
            for number in range(-(-length // len(data)))
        ]
        return torch.cat(passes)[:length]

    return class_aware if sampler == "class-aware" else instance

"""Post-training: freeze the backbone and re-train the head on class-balanced batches (Algorithm 1, line 4).

The default is stage 2 of MiSLAS (Zhong et al., CVPR 2021): label-aware smoothing, a learnable scaling of the logits,
and BN statistics that follow the balanced batches. B images a batch, C classes, D features.
"""

from collections.abc import Iterable

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from btm_core.config import PostTrainConfig
from btm_core.data.dataset import LabelledImages
from btm_core.losses import LabelAwareSmoothing
from btm_core.models import Classifier
from btm_core.sampling import class_aware_order
from btm_core.seeding import derive_seed
from btm_core.training import Trainer

__all__ = ["PostTraining", "post_trainer"]


class PostTraining(nn.Module):
    """A frozen backbone, the head, and a scale (C,) on the logits, bias included (learnable weight scaling)."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.ones(model.head.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return scaled logits (B, C); nothing is differentiated through the backbone."""
        with torch.no_grad():
            features = self.model.backbone(x)
        scaled: Tensor = self.scale * self.model.head(features)
        return scaled

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

    An epoch is ceil(N / B) + 1 batches, as in the reference code. With `shift_batchnorm` the backbone's BN runs in
    training mode: its running statistics move, its parameters do not. Without it not one bit of the backbone changes.

    Arguments:
    - data: the whole, imbalanced training set; batches are drawn class-aware.
    - train_counts: (C,) training images a class.
    """
    wrapped = PostTraining(model)
    if config.method == "crt":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(*seed, "new-head"))
            model.head.reset_parameters()
    groups: list[tuple[Iterable[nn.Parameter], float]] = []
    if config.method in ("mislas", "crt"):
        groups.append((model.head.parameters(), config.head_lr_factor))
    if config.method in ("mislas", "lws"):
        groups.append(([wrapped.scale], 1.0))
    loss = (
        LabelAwareSmoothing(train_counts, config.smoothing_head, config.smoothing_tail)
        if config.method == "mislas"
        else nn.CrossEntropyLoss()
    )
    length = (-(-len(data) // config.batch_size) + 1) * config.batch_size
    labels = data.labels.numpy()

    def order(epoch: int) -> Tensor:
        return torch.from_numpy(class_aware_order(labels, length, config.samples_per_class, *seed, epoch))

    def set_mode() -> None:
        wrapped.train()
        model.backbone.train(config.shift_batchnorm)

    trainer = Trainer(
        wrapped,
        groups,
        data,
        config,
        loss,
        seed=seed,
        order=order,
        precision=precision,
        device=device,
        set_mode=set_mode,
    )
    return wrapped, trainer

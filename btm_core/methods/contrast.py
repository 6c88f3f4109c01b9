"""What PaCo and GPaCo share: the parametric contrastive loss and the queue of past embeddings.

B images, A anchors, E embedding dimensions, Q queued embeddings, C classes, n_c training images of class c.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btm_core.seeding import derive_seed

__all__ = ["Queue", "mlp", "parametric_contrast"]


def parametric_contrast(
    logits: Tensor,
    similarity: Tensor,
    targets: Tensor,
    candidates: Tensor,
    log_prior: Tensor,
    alpha: float,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the parametric contrastive loss (Cui et al., ICCV 2021, equation 5), a scalar.

    The class centres (the head's logits, with the prior added) and the embeddings of images stand in one softmax. For
    anchor i, p over centres and candidates is softmax([z_i + ln(n / N), s_i]) without the anchor itself;
    loss_i = -(sum_c t_ic ln p_ic + alpha sum_j [y_j = y_i] ln p_ij) / (1 + alpha * positives_i),
    where t_i is the smoothed label.

    Arguments:
    - logits: z, (A, C) of the anchors.
    - similarity: s, (A, M) of anchors to candidates, over the temperature. Candidate i is anchor i itself for i < A.
    - targets: (A,) classes of the anchors; candidates: (M,) classes of the candidates.
    - log_prior: (C,) ln(n_c / N).
    - alpha: weight of each positive pair.
    - smoothing: share of the label spread over the other classes (GPaCo).
    """
    anchors, classes = logits.shape
    itself = torch.zeros_like(similarity, dtype=torch.bool)
    itself[:, :anchors].fill_diagonal_(True)
    joint = torch.cat([logits + log_prior, similarity.masked_fill(itself, -torch.inf)], 1)
    log_p = F.log_softmax(joint, 1)
    positive = (targets[:, None] == candidates) & ~itself
    label = F.one_hot(targets, classes).to(logits.dtype)
    label = (1 - smoothing) * label + smoothing / (classes - 1) * (1 - label)
    of_centres = (label * log_p[:, :classes]).sum(1)
    of_images = log_p[:, classes:].masked_fill(~positive, 0).sum(1)
    return -((of_centres + alpha * of_images) / (1 + alpha * positive.sum(1).to(logits.dtype))).mean()


class Queue(nn.Module):
    """The last Q embeddings (Q, E), of unit length, and their classes (Q,); at first random ones."""

    embeddings: Tensor
    classes: Tensor
    position: Tensor

    def __init__(self, length: int, dim: int, num_classes: int, *seed: int | str):
        super().__init__()
        generator = torch.Generator().manual_seed(derive_seed(*seed, "queue"))
        self.register_buffer("embeddings", F.normalize(torch.randn(length, dim, generator=generator)))
        self.register_buffer("classes", torch.randint(num_classes, (length,), generator=generator))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, embeddings: Tensor, classes: Tensor) -> None:
        """Replace the oldest by a batch of embeddings (B, E) with classes (B,)."""
        length = len(self.embeddings)
        if length == 0:
            return
        keep = min(len(embeddings), length)
        slots = (self.position + torch.arange(keep, device=self.classes.device)) % length
        self.embeddings[slots] = embeddings[-keep:]
        self.classes[slots] = classes[-keep:]
        self.position.copy_((self.position + keep) % length)


def mlp(sizes: list[int], normalised: bool, *seed: int | str) -> nn.Sequential:
    """Return linear layers of the given sizes with ReLU between them, after BN if `normalised`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(*seed, "mlp"))
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.BatchNorm1d(inputs)] if layers and normalised else []
            layers += [nn.ReLU()] if layers else []
            layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)

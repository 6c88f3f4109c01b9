"""How much a stage has to do: epochs, steps of the optimizer, images. The trainers' own counts, without their data.

N images, B images a batch, C classes, n_c training images of class c, N_C shots.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from btm_core.config import PostTrainConfig, TrainConfig

__all__ = ["Workload", "forward", "post_training", "subset_images", "training"]

FORWARD_BATCH = 256
"""Images a batch where nothing is trained: `btm_core.data.dataset.FORWARD_BATCH`, which is not worth torch's import."""


@dataclass(frozen=True)
class Workload:
    """What one step of a stage does; an evaluation is one epoch without steps of an optimizer."""

    epochs: int
    batch_size: int
    batches_per_epoch: int
    images_per_epoch: int
    trains: bool = True

    @property
    def optimizer_steps(self) -> int:
        """Of all epochs."""
        return self.epochs * self.batches_per_epoch if self.trains else 0

    @property
    def images(self) -> int:
        """Images shown in all epochs, each as often as it is shown; a second stream or view is not counted."""
        return self.epochs * self.images_per_epoch


def training(config: TrainConfig, images: int) -> Workload:
    """Return the work of a stage that shows each of N images once an epoch.

    A last batch of one image is joined to the one before (`btm_core.data.dataset.in_batches`).
    """
    batches = -(-images // config.batch_size)
    batches -= batches > 1 and images % config.batch_size == 1
    return Workload(config.epochs, config.batch_size, batches, images)


def post_training(config: PostTrainConfig, images: int) -> Workload:
    """Return the work of post-training: ceil(N / B) + 1 full batches an epoch, as in the reference code."""
    batches = -(-images // config.batch_size) + 1
    return Workload(config.epochs, config.batch_size, batches, batches * config.batch_size)


def forward(images: int) -> Workload:
    """Return the work of predicting N images once."""
    return Workload(1, FORWARD_BATCH, -(-images // FORWARD_BATCH), images, trains=False)


def subset_images(counts: ArrayLike, shots: int) -> int:
    """Return how many images a balanced subset holds: the sum of min(N_C, n_c) over counts n_c, (C,)."""
    return int(np.minimum(np.asarray(counts), shots).sum())

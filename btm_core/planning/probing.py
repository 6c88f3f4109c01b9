"""How fast a network trains here: a few steps of the real trainers, on images of the right size made of noise.

Reading and decoding of image files is not in it: who trains from files may have to wait for those.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from btm_core.config import FcConfig, FinetuneConfig, InputConfig, ModelConfig, PostTrainConfig, PretrainConfig
from btm_core.config.schema import TrainConfig
from btm_core.data.dataset import FORWARD_BATCH, LabelledImages
from btm_core.data.images import PackedPixels
from btm_core.errors import ConfigError
from btm_core.evaluation import predict_all
from btm_core.methods import stage1_trainer
from btm_core.models import Classifier, build_model
from btm_core.post_training import post_trainer
from btm_core.training import Trainer, part_trainer

__all__ = ["Probed", "probe_evaluation", "probe_training"]

SECONDS = 3.0
"""What one stage may take, about: twice half of it."""
STEPS = 20
TRIAL = 4
"""Images of the first steps, which tell how many there may be."""
MEMORY = 256e6
"""Bytes of noise."""


@dataclass(frozen=True)
class Probed:
    """What was measured: `steps` of `batch_size` images took so many seconds."""

    steps: int
    batch_size: int
    images: int
    seconds: float


def probe_training(
    config: PretrainConfig | FcConfig | FinetuneConfig | PostTrainConfig,
    view: InputConfig,
    model: ModelConfig,
    train_counts: Tensor,
    device: torch.device,
) -> Probed:
    """Measure steps of a stage. A batch that would take too long is cut.

    Arguments:
    - train_counts: (C,) training images a class.

    Raises ConfigError if the network with its batch does not fit into a GPU.
    """

    def run(images: int, batch: int) -> tuple[int, float]:
        data = noise(images, view, len(train_counts))
        own = config.model_copy(update={"batch_size": batch, "epochs": 2, "milestones": (), "warmup_epochs": 0})
        *_, last = _trainer(own, data, model, train_counts, device)
        return last.images, last.seconds

    return _measured(run, config.batch_size, view, _name(config))


def probe_evaluation(
    view: InputConfig, model: ModelConfig, num_classes: int, precision: str, device: torch.device
) -> Probed:
    """Measure predictions."""
    network = build_model(model.backbone, num_classes, view.channels)

    def run(images: int, batch: int) -> tuple[int, float]:
        data = noise(images, view, num_classes)
        seconds = 0.0
        for _ in range(2):
            started = time.perf_counter()
            predict_all([network], data, device, precision, batch)
            seconds = time.perf_counter() - started
        return images, seconds

    return _measured(run, FORWARD_BATCH, view, "evaluation")


def noise(count: int, view: InputConfig, num_classes: int) -> LabelledImages:
    """Return so many images of noise, with labels of all classes, to be shown as packed images are."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, view.channels, view.size, view.size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(num_classes, (count,), generator=generator)
    shown = view if view.decode_once else view.model_copy(update={"augmentation": "crop-flip"})
    return LabelledImages(PackedPixels(pixels), labels, shown)


def _trainer(
    config: TrainConfig, data: LabelledImages, model: ModelConfig, train_counts: Tensor, device: torch.device
) -> Trainer:
    """Return the trainer of the stage whose configuration this is."""
    network: Classifier = build_model(model.backbone, len(train_counts), data.config.channels)
    precision = model.precision
    if isinstance(config, PretrainConfig):
        return stage1_trainer(network, data, train_counts, config, seed=0, precision=precision, device=device)
    if isinstance(config, PostTrainConfig):
        name = ("post_train", 0)
        return post_trainer(network, data, train_counts, config, seed=name, precision=precision, device=device)[1]
    part = config.train if isinstance(config, FinetuneConfig) else "head"
    return part_trainer(network, part, data, config, seed=("probe",), precision=precision, device=device)


def _measured(run: Callable[[int, int], tuple[int, float]], batch: int, view: InputConfig, name: str) -> Probed:
    """Run twice what fits into half of the time, by what a trial takes; the first time warms up."""
    try:
        images, seconds = run(min(TRIAL, batch), min(TRIAL, batch))
        affordable = int(SECONDS / 2 * images / seconds)
        batch = max(2, min(batch, affordable))
        most = int(MEMORY / (view.channels * view.size**2))
        steps = max(1, min(STEPS, affordable // batch, most // batch))
        images, seconds = run(steps * batch, batch)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"{name}: a batch of {batch} images does not fit into the memory of the GPU; lower its batch_size, and lr "
            "with it"
        ) from None
    return Probed(-(-images // batch), batch, images, seconds)


def _name(config: TrainConfig) -> str:
    return type(config).__name__.removesuffix("Config").lower()

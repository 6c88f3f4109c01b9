"""What several processes train together, for test_distributed.py: `ddp.py FOLDER`, with torchrun's variables set.

Each process writes what it ended with; `train` without a group is what one process would do.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from btm_core.config import InputConfig, PretrainConfig
from btm_core.data.dataset import LabelledImages
from btm_core.data.images import PackedPixels
from btm_core.distributed import Group, joined
from btm_core.methods import stage1_trainer
from btm_core.models import Classifier, build_model
from btm_core.training import Trainer

VIEW = InputConfig(
    size=8, channels=1, mean=(0.3,), std=(0.4,), augmentation="crop-flip", crop_padding=1, color_jitter=0.4
)
COUNTS = (60, 40, 15, 5)
SCENARIOS: dict[str, dict[str, Any]] = {
    "last-of-8": {"batch_size": 16},
    "last-of-3": {"batch_size": 13},
    "joined-and-odd": {"batch_size": 17},
    "balanced": {"batch_size": 17, "method": "balanced_softmax"},
    "head": {"batch_size": 17, "train": "head"},
}


def digits() -> LabelledImages:
    """120 real digits of four classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = np.concatenate([np.flatnonzero(bunch.target == c)[:n] for c, n in enumerate(COUNTS)])
    pixels = torch.from_numpy((bunch.images[chosen] * 255 / 16).astype(np.uint8)[:, None])
    return LabelledImages(PackedPixels(pixels), torch.from_numpy(bunch.target[chosen].astype(np.int64)), VIEW)


def without_batchnorm() -> Classifier:
    """A classifier whose gradients are sums over images: shares of a batch add up to it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten()]
    return Classifier(nn.Sequential(*layers), 64, 4, "2")


def trainer(model: Classifier, group: Group | None, **config: Any) -> Trainer:
    settings = PretrainConfig.model_validate({"epochs": 3, "lr": 0.05, **config})
    return stage1_trainer(model, digits(), torch.tensor(COUNTS), settings, seed=3, group=group)


def train(group: Group | None, name: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return weights and losses."""
    model = without_batchnorm()
    losses = [record.loss for record in trainer(model, group, **SCENARIOS[name])]
    return model.state_dict(), losses


def resumed(group: Group, make: Callable[[], Classifier], path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a training that was given up after one epoch, and taken up again from rank 0's state."""
    first = trainer(make(), group, batch_size=13)
    next(iter(first))
    if group.rank == 0:
        save_file({name: tensor.clone() for name, tensor in first.state_dict().items()}, path)
    group.check_equal("having saved", 1)  # all wait
    model = make()
    second = trainer(model, group, batch_size=13)
    second.load_state_dict(load_file(path))
    list(second)
    return model.state_dict()


def small_cnn() -> Classifier:
    return build_model("small_cnn", 4, 1)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as group:
        found, facts = {}, {}
        for name in SCENARIOS:
            found[name], facts[name] = train(group, name)
        model = small_cnn()
        facts["batchnorm"] = [record.loss for record in trainer(model, group, batch_size=13)]
        found["batchnorm"] = model.state_dict()
        found["batchnorm-resumed"] = resumed(group, small_cnn, folder / "state-bn")
        model = without_batchnorm()
        taken_over = trainer(model, group, batch_size=17)
        taken_over.load_state_dict(load_file(folder / "state-of-one"))
        list(taken_over)
        found["taken-over"] = model.state_dict()
        try:
            group.check_equal("their rank", group.rank)
        except RuntimeError as error:
            facts["disagreement"] = str(error)
    for name, weights in found.items():
        save_file({key: tensor.clone() for key, tensor in weights.items()}, folder / f"{name}-{group.rank}")
    (folder / f"facts-{group.rank}").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

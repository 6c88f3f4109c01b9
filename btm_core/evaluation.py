"""What a model predicts on a split.

N images, C classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btm_core.data.dataset import FORWARD_BATCH, LabelledImages
from btm_core.models import Classifier

__all__ = ["predict", "predict_all"]

Predictions = tuple[NDArray[np.int64], NDArray[np.float32]]


def predict(
    model: Classifier, data: LabelledImages, device: torch.device | None = None, precision: str = "float32"
) -> Predictions:
    """Return the predicted class (N,) and its softmax probability (N,) of each image; see `predict_all`."""
    return predict_all([model], data, device, precision)[0]


@torch.inference_mode()
def predict_all(
    models: Sequence[Classifier],
    data: LabelledImages,
    device: torch.device | None = None,
    precision: str = "float32",
    batch_size: int = FORWARD_BATCH,
) -> list[Predictions]:
    """Return what each of several models predicts; images are read, decoded and normalised once for all of them.

    Arguments:
    - precision: "float32", or "bfloat16" for autocast: faster, but not for every image the same class (docs/speed.md).
    """
    device = device or torch.device("cpu")
    low = precision == "bfloat16"
    layout = torch.channels_last if low else torch.contiguous_format
    models = [model.to(device).to(memory_format=layout).eval() for model in models]
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in models]
    for x, _ in data.to(device).test_batches(batch_size, device):
        x = x.contiguous(memory_format=layout)
        for model, seen in zip(models, found, strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                logits = model(x)
            probability, predicted = logits.float().softmax(1).max(1)
            seen.append((predicted, probability))  # left where they are: fetching each would make the CPU wait
    return [
        (torch.cat([c for c, _ in seen]).cpu().numpy(), torch.cat([p for _, p in seen]).cpu().numpy()) for seen in found
    ]

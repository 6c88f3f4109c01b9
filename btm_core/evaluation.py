"""What a model predicts on a split.

N images, C classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from btm_core.data.dataset import LabelledImages
from btm_core.models import Classifier

__all__ = ["predict"]


@torch.inference_mode()
def predict(
    model: Classifier, data: LabelledImages, device: torch.device | None = None, batch_size: int = 256
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the predicted class (N,) and its softmax probability (N,) of each image, in float32 arithmetic."""
    device = device or torch.device("cpu")
    model = model.to(device).eval()
    classes, confidences = [], []
    for x, _ in data.test_batches(batch_size, device):
        probability, predicted = model(x).float().softmax(1).max(1)
        classes.append(predicted.cpu())
        confidences.append(probability.cpu())
    return torch.cat(classes).numpy(), torch.cat(confidences).numpy()

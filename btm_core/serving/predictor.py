"""Labels and probabilities of images that come as text, shown to the network exactly as in evaluation.

B images, C classes, K channels, S pixels a side.
"""

import base64
import binascii
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from btm_core.checkpoints import CheckpointMetadata, load_checkpoint
from btm_core.config import InputConfig
from btm_core.data.decoding import decode_image, fit_square, to_array
from btm_core.data.transforms import normalise
from btm_core.errors import CheckpointError, DataError, some_of
from btm_core.models import Classifier
from btm_core.serving.fetching import fetch_image
from btm_core.serving.settings import ServingSettings, serving_settings

__all__ = ["Predictor", "ServingFacts", "labels_of", "pixels_of", "require_same_view"]

BATCH = 256
"""As evaluation does, so that not even the last bits differ."""
TOP = 5
_workers = ThreadPoolExecutor(8)


class ServingFacts(BaseModel):
    """What a predictor needs to know besides the weights."""

    model_config = ConfigDict(frozen=True)

    input: InputConfig
    checkpoint_sha256: str
    btm_version: str


@dataclass(frozen=True)
class Predictor:
    """A network with the names of its classes and the way images are shown to it."""

    model: Classifier
    labels: tuple[str, ...]
    config: InputConfig
    device: torch.device
    settings: ServingSettings

    @classmethod
    def load(cls, checkpoint: Path, facts: ServingFacts, device: torch.device) -> "Predictor":
        """Load a checkpoint of ours. Raises CheckpointError if it is damaged, or not the one that `facts` tell of."""
        with checkpoint.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != facts.checkpoint_sha256:
            raise CheckpointError(
                f"{checkpoint} is not the checkpoint that was packaged: its sha256 is {digest}, not "
                f"{facts.checkpoint_sha256}; fetch the model again"
            )
        model, metadata = load_checkpoint(checkpoint)
        require_same_view(metadata, facts.input)
        model = model.to(device).eval()
        return cls(model, labels_of(metadata.class_names), facts.input, device, serving_settings())

    def predict(self, images: Sequence[Any], top_k: int | None = None) -> list[dict[str, Any]]:
        """Return label, probability, top_k and probabilities of each image; JSON-ready.

        Arguments:
        - images: B images in base64, or URLs where the settings take them.
        - top_k: how many of the likeliest classes to list; default: 5, or all if there are fewer.

        Raises DataError that names all the images that are of no use, by their row from 0.
        """
        count = len(self.labels)
        wanted = min(TOP, count) if top_k is None else top_k
        if not 1 <= wanted <= count:
            raise DataError(f"top_k is {wanted}; this model knows {count} classes, so it must be 1 to {count}")
        return [self._answer(row, wanted) for row in self.probabilities(images)]

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Return the softmax probabilities (B, C) of images. Raises DataError as `predict` does."""
        pixels = self._pixels(images)
        batches = [normalise(batch.to(self.device), self.config) for batch in torch.split(pixels, BATCH)]
        return torch.cat([self.model(x).float().softmax(1).cpu() for x in batches]).numpy()

    def _pixels(self, images: Sequence[Any]) -> Tensor:
        """Return pixels (B, K, S, S) uint8."""
        if not len(images):
            raise DataError("no image was given")

        def read(image: Any) -> NDArray[np.uint8] | str:
            try:
                return pixels_of(self._bytes(image), self.config)
            except DataError as error:
                return str(error)

        found = list(_workers.map(read, images))
        bad = [f"row {row}: {problem}" for row, problem in enumerate(found) if isinstance(problem, str)]
        if bad:
            raise DataError(f"{len(bad)} of {len(found)} images cannot be used:\n{some_of(bad)}")
        return torch.from_numpy(np.stack([pixels for pixels in found if not isinstance(pixels, str)]))

    def _bytes(self, image: Any) -> bytes:
        if not isinstance(image, str) or not image:
            raise DataError("no image: text was expected, an image file in base64")
        if image.startswith(("http://", "https://")):
            if not self.settings.urls:
                raise DataError(
                    "URLs are not taken: send the image itself in base64, or set BTM_SERVE_URLS=1 where the model is "
                    "served"
                )
            return fetch_image(image, self.settings)
        if image.startswith("data:"):  # as browsers make them
            image = image.partition(",")[2]
        try:
            return base64.b64decode("".join(image.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"no base64: {error}") from None

    def _answer(self, probabilities: NDArray[np.float32], top_k: int) -> dict[str, Any]:
        # Equal probabilities in the order of the classes, as argmax takes the first.
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        top = [{"label": self.labels[c], "probability": float(probabilities[c])} for c in order]
        by_class = dict(zip(self.labels, probabilities.tolist(), strict=True))
        return {**top[0], "top_k": top, "probabilities": by_class}


def pixels_of(data: bytes, config: InputConfig) -> NDArray[np.uint8]:
    """Return the pixels (K, S, S) of an image file, as the network sees them at test time. Raises DataError."""
    return to_array(fit_square(decode_image(data, config.channels), config.size, config.test_resize))


def labels_of(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return C different labels: names that several classes have get the number of the class."""
    counts = Counter(class_names)
    return tuple(name if counts[name] == 1 else f"{name} (class {c})" for c, name in enumerate(class_names))


def require_same_view(metadata: CheckpointMetadata, config: InputConfig) -> None:
    """Raise CheckpointError if a checkpoint was trained on images that were shown in another way."""
    names: tuple[str, ...] = ("channels", "size", "mean", "std")
    value: Callable[[Any, str], Any] = getattr
    differing = [
        f"{n} {value(metadata, n)}, not {value(config, n)}" for n in names if value(metadata, n) != value(config, n)
    ]
    if differing:
        raise CheckpointError(
            f"the checkpoint was trained on images of {'; '.join(differing)}: they would not "
            "be shown to it in the same way"
        )

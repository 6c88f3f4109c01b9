"""Images in requests: what is read, what is refused, and what answers look like."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from btm_core.config import InputConfig
from btm_core.errors import DataError
from btm_core.models import build_model
from btm_core.serving.predictor import Predictor, labels_of, pixels_of
from btm_core.serving.settings import ServingSettings

INPUT = InputConfig(size=8, channels=1, mean=(0.3,), std=(0.4,), augmentation="none")


def predictor(*names: str) -> Predictor:
    model = build_model("small_cnn", len(names), 1).eval()
    return Predictor(model, labels_of(names), INPUT, torch.device("cpu"), ServingSettings())


def image(value: int = 9, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.linear_gradient("L").point(lambda v: v * value // 10).resize((12, 9)).save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


def test_the_batch_an_image_is_in_changes_nothing() -> None:
    one = predictor("a", "b", "c")
    images = [image(value) for value in range(1, 10)] * 30  # more than one batch
    together = one.probabilities(images)
    assert together.shape == (270, 3)
    np.testing.assert_allclose(together[:9], np.concatenate([one.probabilities([i]) for i in images[:9]]), rtol=1e-5)
    np.testing.assert_allclose(together[261:], together[:9], rtol=1e-5)


def test_an_answer() -> None:
    [answer] = predictor("a", "b", "c").predict([image()], top_k=2)
    assert list(answer) == ["label", "probability", "top_k", "probabilities"]
    assert list(answer["probabilities"]) == ["a", "b", "c"]
    assert answer["probabilities"][answer["label"]] == answer["probability"] == max(answer["probabilities"].values())
    assert [top["label"] for top in answer["top_k"]] == sorted("abc", key=lambda c: -answer["probabilities"][c])[:2]


@pytest.mark.parametrize(("names", "listed"), [("ab", 2), ("abcdefg", 5)])
def test_at_most_five_classes_are_listed_if_nobody_asks(names: str, listed: int) -> None:
    [answer] = predictor(*names).predict([image()])
    assert len(answer["top_k"]) == listed


def test_classes_of_one_name_are_told_apart() -> None:
    assert labels_of(("thrush", "wren", "thrush")) == ("thrush (class 0)", "wren", "thrush (class 2)")
    [answer] = predictor("thrush", "wren", "thrush").predict([image()])
    assert sum(answer["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize("given", [None, 3.5, "", b"bytes", float("nan"), "http://127.0.0.1/a.png"])
def test_what_is_no_image_is_named_by_its_row(given: object) -> None:
    with pytest.raises(DataError, match=r"1 of 3 images cannot be used:\n  row 1: "):
        predictor("a", "b").predict([image(), given, image(form="JPEG")])


def test_a_request_without_images() -> None:
    with pytest.raises(DataError, match="no image was given"):
        predictor("a", "b").predict([])


@pytest.mark.parametrize(
    ("changed", "shorter"),
    [
        ({}, 8),
        ({"augmentation": "random-resized-crop"}, 9),
        ({"augmentation": "random-resized-crop", "resize": 12}, 12),
    ],
)
def test_pixels_are_those_of_evaluation(changed: dict[str, object], shorter: int) -> None:
    """The same image through the classes that evaluation reads with."""
    from btm_core.data.images import LooseImages

    config = InputConfig.model_validate({**INPUT.model_dump(), **changed})
    assert config.test_resize == shorter
    data = base64.b64decode(image())
    expected = LooseImages(("a",), (data,)).batch(config, None)[0].numpy()
    np.testing.assert_array_equal(pixels_of(data, config), expected)

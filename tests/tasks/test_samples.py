"""Pictures of a report, read from real data artifacts: packed, as files, on S3, and gone."""

import base64
import io
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import small_experiment
from PIL import Image

from btm_core.config import ExperimentConfig
from btm_core.data import scan
from btm_core.errors import ArtifactError, BTMError
from btm_core.metrics import recall_report
from btm_core.pages.thumbnails import Sample, choose_samples, thumbnails
from btm_core.report import ModelResult
from btm_core.storage import Artifact, Store
from btm_core.tensor_files import load_arrays
from tasks.data import LABELS, prepare_data
from tasks.samples import image_reader, lowest_thumbnails, within
from tasks.step import perform

LARGE = {"size": 12, "channels": 3, "augmentation": "random-resized-crop"}


def experiment(root: Path, **data: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(small_experiment(format="image_folder", root=str(root), **data))


def made(store: Store, config: ExperimentConfig) -> Artifact:
    return perform(prepare_data("own", config.data, None), store, lambda event: None)


@pytest.fixture
def s3_store(s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    return Store(f"s3://btm/{tmp_path.name}")


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_packed_pixels_are_those_of_the_images(where: str, digit_images: Path, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue("s3_store") if where == "s3" else Store(str(digit_images.parent / "store"))
    config = experiment(digit_images)
    read = image_reader(store, made(store, config), None)
    for split in scan(config.data).splits:
        assert split.paths is not None
        images = read([Sample(split.name, position) for position in (0, 7, 17)])
        for position, image in zip((0, 7, 17), images, strict=True):
            np.testing.assert_array_equal(image, Image.open(digit_images / split.paths[position]))


def test_files_are_read_where_they_lie(digit_images: Path, tmp_path: Path) -> None:
    store, config = Store(str(tmp_path / "store")), experiment(digit_images, input=LARGE)
    [image] = image_reader(store, made(store, config), str(digit_images))([Sample("test", 9)])
    paths = scan(config.data).test.paths
    assert paths is not None
    np.testing.assert_array_equal(image.convert("L"), Image.open(digit_images / paths[9]))
    with pytest.raises(ArtifactError, match=r"data/.* holds no pixels, and data\.root names no folder"):
        image_reader(store, made(store, config), None)


def shown(store: Store, data: Artifact, config: ExperimentConfig, **changes: Any) -> tuple[dict[int, Any], str]:
    """Return the thumbnails of a model that takes everything for class 0."""
    labels = load_arrays(store.fetch(data, LABELS, Path("/nowhere")))
    targets = labels["test"]
    predicted = np.zeros_like(targets)
    confidences = np.linspace(0, 1, len(targets), dtype=np.float32)
    figures = recall_report(targets, predicted, [20, 8, 5])
    final = ModelResult("final", "post_train", "", "", figures, predicted, "test", "", confidences)
    report = {"lowest_classes": [{"class": 1}, {"class": 2}, {"class": 0}]}
    evaluation = config.evaluation.model_copy(update=changes)
    return lowest_thumbnails(store, data, config.model_copy(update={"evaluation": evaluation}), report, final, labels)


def test_the_lowest_classes_are_shown_as_they_are_and_as_they_were_taken(digit_images: Path, tmp_path: Path) -> None:
    store, config = Store(str(tmp_path / "store")), experiment(digit_images)
    found, note = shown(store, made(store, config), config, thumbnails=4)
    assert note == "" and list(found) == [1, 2, 0]
    assert [one.sample.split for one in found[1]] == ["train"] * 4 + ["test"] * 4
    assert {one.sample.predicted for one in found[2][4:]} == {0}
    sure = [one.sample.confidence for one in found[2][4:]]
    assert sure == sorted(sure, reverse=True) and sure[0] == 1.0  # type: ignore[type-var]
    assert len(found[0]) == 4  # nothing of class 0 is taken for another
    with Image.open(io.BytesIO(base64.b64decode(found[1][0].url.partition(",")[2]))) as image:
        assert image.size == (8, 8) and found[1][0].small


def test_none_are_shown_where_that_is_not_wanted(digit_images: Path, tmp_path: Path) -> None:
    store, config = Store(str(tmp_path / "store")), experiment(digit_images)
    data = made(store, config)
    (tmp_path / "store/artifacts" / data.address / "pixels.safetensors").unlink()  # and nothing is read
    assert shown(store, data, config, thumbnails=0) == ({}, "No images are shown: evaluation.thumbnails is 0.")


@pytest.mark.parametrize("view", [{}, {"input": LARGE}])
def test_images_that_are_gone_are_told_and_stop_nothing(view: dict[str, Any], digit_images: Path) -> None:
    store, config = Store(str(digit_images.parent / "store")), experiment(digit_images, **view)
    data = made(store, config)
    for path in [*digit_images.rglob("*.png"), *(digit_images.parent / "store").rglob("pixels.safetensors")]:
        path.unlink()
    found, note = shown(store, data, config)
    assert found == {} and note.startswith("No images are shown, for they could not be read: ")
    with pytest.raises((BTMError, OSError)):
        image_reader(store, data, str(digit_images))([Sample("test", 0)])


def test_nobody_waits_for_images_that_do_not_come() -> None:
    with pytest.raises(TimeoutError, match=r"longer than 0\.01 s"):
        within(0.01, lambda: time.sleep(1))
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 / 0)


def test_thumbnails_stay_small_together(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    samples = {c: [Sample("train", i) for i in range(6)] for c in range(10)}
    found = thumbnails(samples, lambda wanted: [Image.fromarray(noise)] * len(wanted), cap_kb=40)
    assert list(found) == list(range(len(found))) and 0 < len(found) < 10  # the first are the lowest
    assert sum(len(one.url) for made in found.values() for one in made) <= 40_000
    with Image.open(io.BytesIO(base64.b64decode(found[0][0].url.partition(",")[2]))) as image:
        assert image.size == (64, 48) and image.format == "JPEG"


def test_a_class_without_training_images_or_mistakes_has_none() -> None:
    labels, targets = np.array([0, 0]), np.array([0, 1])
    assert choose_samples([1], labels, targets, targets, None, 6) == {1: []}


def test_images_of_the_whole_class_are_chosen() -> None:
    labels = np.repeat([0, 1], 100)
    chosen = choose_samples([1], labels, np.array([1]), np.array([1]), None, 3)[1]
    assert [sample.position for sample in chosen] == [100, 149, 199]

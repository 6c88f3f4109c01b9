"""Published sets: their lists are known by content, and what is missing is told with where it is to be had."""

from pathlib import Path

import pytest

from btm_core.config import DataConfig, load_experiment
from btm_core.data.published import SETS, check_complete, list_digest, published_set
from btm_core.data.sources import read_list
from btm_core.errors import DataError


@pytest.fixture
def places(tmp_path: Path, published_lists: Path) -> DataConfig:
    """Places-LT's configuration over a folder with the real lists and no image."""
    for name in ("Places_LT_train.txt", "Places_LT_test.txt"):
        (tmp_path / name).write_bytes((published_lists / name).read_bytes())
    return load_experiment("places-lt", [f"data.root={tmp_path}"]).data


def told(config: DataConfig) -> str:
    known = published_set(config)
    assert known is not None
    with pytest.raises(DataError) as error:
        check_complete(config, known)
    return str(error.value)


def test_presets_of_published_sets_are_known() -> None:
    for preset, name in (
        ("imagenet-lt", "ImageNet-LT"),
        ("places-lt-gpaco", "Places-LT"),
        ("inat18", "iNaturalist 2018"),
    ):
        known = published_set(load_experiment(preset).data)
        assert known is not None and known.name == name
        config = load_experiment(preset).data
        assert {Path(str(config.train)).name, Path(str(config.test)).name} == {one.file for one in known.lists.values()}
    assert published_set(load_experiment("cifar100-lt").data) is None
    assert all(sum(one.groups) == one.classes for known in SETS for one in known.lists.values() if one.groups)


def test_the_real_lists_are_the_published_ones(published_lists: Path) -> None:
    checked = 0
    for known in SETS:
        for one in known.lists.values():
            if (published_lists / one.file).exists():
                paths, labels = read_list((published_lists / one.file).read_text(), one.file)
                assert list_digest(paths, labels) == one.digest
                restyled = [f"elsewhere/{path}" for path in paths[::-1]]
                assert list_digest(restyled, labels[::-1]) == one.digest
                checked += 1
    assert checked == 3


def test_missing_images_are_counted_and_the_archives_named(places: DataConfig) -> None:
    message = told(places)
    assert "train: 62,500 of 62,500 images are missing in 365 folders:\n" in message
    assert "test: 36,500 of 36,500 images are missing:\n    val_256/Places365_val_00003597.jpg" in message
    assert "train_256_places365standard.tar" in message and "val_256.tar" in message
    assert "places2.csail.mit.edu" in message and "liuziwei7" not in message  # the lists are there


def test_a_list_that_is_not_the_published_one(places: DataConfig) -> None:
    train = Path(str(places.root), "Places_LT_train.txt")
    text = train.read_text()
    train.write_text(text.split("\n", 1)[1])
    assert "has 62,499 lines; published are 62,500" in told(places)
    first, second, rest = text.split("\n", 2)
    train.write_text("\n".join([first.replace("/0000", "/9999"), second, rest]))
    assert "lists other images or labels" in told(places)
    train.write_text(f"{text}data_256/x/y/z.jpg 365\n")
    assert "has 366 classes; published are 365" in told(places)
    train.unlink()
    assert "Places_LT_train.txt is missing: 62,500 lines" in told(places)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    message = told(load_experiment("imagenet-lt", [f"data.root={tmp_path / 'absent'}"]).data)
    assert "absent does not exist" in message
    assert "liuziwei7.github.io" in message and "ILSVRC2012_img_val.tar" in message

"""What data can be wrong in, and that each message names the file, the place, what is expected and what to do."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_INPUT, write_digits, write_lists

from btm_core.config import DataConfig
from btm_core.data import cifar, scan
from btm_core.data.decoding import MAX_IMAGE_BYTES
from btm_core.data.inaturalist import parse_inaturalist
from btm_core.data.long_tail import long_tail_indices
from btm_core.errors import DataError
from tasks.data import image_digests


def refusal(**values: object) -> str:
    """Return the message that a data set is refused with."""
    with pytest.raises(DataError) as error:
        scan(DataConfig.model_validate({"input": SMALL_INPUT, **values}))
    return str(error.value)


@pytest.fixture
def root(digit_images: Path) -> Path:
    write_lists(digit_images)
    return digit_images


Change = Callable[[Path], Any]


def keep_one_a_class(root: Path) -> None:
    lines = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("".join(next(x for x in lines if x.endswith(f" {c}")) + "\n" for c in range(3)))


def large_file(root: Path) -> None:
    first = root / (root / "train.txt").read_text().partition(" ")[0]
    os.truncate(first, MAX_IMAGE_BYTES + 1)  # sparse: it takes no room


def names(text: str) -> Change:
    return lambda root: (root / "names.txt").write_text(text)


def one_class(root: Path) -> None:
    for split in ("train", "test"):
        lines = (root / f"{split}.txt").read_text().splitlines(keepends=True)
        (root / f"{split}.txt").write_text("".join(line for line in lines if line.endswith(" 0\n")))


LISTS: dict[str, tuple[Change | None, dict[str, object], str]] = {
    "no root": (None, {"root": "absent"}, "data.root absent does not exist, or is not a folder"),
    "no list": (None, {"train": "a.txt"}, "/a.txt does not exist; correct data.train"),
    "a folder": (None, {"test": "test"}, "data.test: {root}/test cannot be used: [Errno 21] Is a directory"),
    "empty": (
        lambda root: (root / "train.txt").write_text("\n"),
        {},
        "the train split holds no image; correct what data.train names",
    ),
    "binary": (
        lambda root: (root / "train.txt").write_bytes(b"a.png 0\nb\xff.png 1\n"),
        {},
        "data.train: {root}/train.txt, line 2: not UTF-8 text, as it has to be",
    ),
    "commas": (
        lambda root: (root / "train.txt").write_text("a.png,0\n"),
        {},
        "train.txt, line 1: expected 'path label' with an integer label, found 'a.png,0'",
    ),
    "outside": (
        lambda root: (root / "train.txt").write_text("../a.png 0\n"),
        {},
        "train.txt, line 1: '../a.png' leaves data.root; paths must be relative and inside it",
    ),
    "no path": (
        lambda root: (root / "train.txt").write_text(". 0\n"),
        {},
        "train.txt, line 1: '.' is no path of a file: correct the line",
    ),
    "label": (
        lambda root: (root / "train.txt").write_text("a.png 900\n"),
        {},
        "label 900 of a.png is out of range: with 1 training images there cannot be 901 classes; labels are 0, 1, 2",
    ),
    "label in test": (
        lambda root: (root / "test.txt").write_text("test/digit-0/a.png 3\n"),
        {},
        "1 labels of the test split are out of range, the first is 3 of test/digit-0/a.png; there are 3 classes, so "
        "labels are 0..2",
    ),
    "one class": (one_class, {}, "there are 1 classes, expected at least 2: digit-0"),
    "large": (large_file, {}, f"images below {{root}} have more than {MAX_IMAGE_BYTES} bytes; scale them down:\n"),
    "no names": (None, {"class_names": "a.txt"}, "data.class_names: a.txt does not exist; correct data.class_names"),
    "names twice": (
        names("a,b\nc\na,b\n"),
        {"class_names": "{root}/names.txt"},
        "{root}/names.txt names 1 classes twice, expected one name a line, each once:\n  a,b",
    ),
    "too few names": (
        names("a\nb\n"),
        {"class_names": "{root}/names.txt"},
        "5 labels of the train split are out of range, the first is 2 of train/digit-2/",
    ),
    "nothing to carve": (
        keep_one_a_class,
        {"validation_per_class": 1},
        "no validation split can be carved: every class has a single training image",
    ),
}


@pytest.mark.parametrize(("change", "values", "message"), LISTS.values(), ids=LISTS)
def test_lists(root: Path, change: Change | None, values: dict[str, str], message: str) -> None:
    if change is not None:
        change(root)
    given = {"root": str(root), "train": "train.txt", "test": "test.txt", **values}
    found = refusal(format="list", **{k: v.format(root=root) if isinstance(v, str) else v for k, v in given.items()})
    assert message.format(root=root) in found


def test_line_ends_marks_and_spaces_of_other_editors_do_no_harm(tmp_path: Path) -> None:
    root = write_digits(tmp_path / "my images, new")
    write_lists(root)
    text = (root / "train.txt").read_text()
    (root / "train.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", " \r\n").encode())
    catalog = scan(DataConfig.model_validate(
        {"input": SMALL_INPUT, "format": "list", "root": str(root), "train": "train.txt", "test": "test.txt"}
    ))  # fmt: skip
    assert catalog.train_counts.tolist() == [20, 8, 5]


TABLES: dict[str, tuple[str, str]] = {
    "empty": (
        "",
        "t.csv cannot be read as csv: No columns to parse from file; correct the file, data.format or data.tra",
    ),
    "no rows": ("path,label\n", "t.csv has columns but no rows, so there is no image in data.train"),
    "semicolons": (
        "path;label\na.png;0\n",
        "t.csv has no column 'path', it has 'path;label'; set data.path_column and data.label_column to columns of it "
        "(in a CSV file, commas separate them)",
    ),
    "a hole": ("path,label\na.png,0\n,1\n", "t.csv, row 2: column 'path' is empty (1 such rows); fill or drop them"),
    "a fraction": ("path,label\na.png,0.5\n", "t.csv, row 1: label 0.5 is no whole number of a class"),
    "text in test": ("path,label\na.png,0\n", "u.csv: labels are text, but those of the training split are numbers"),
    "another class": ("path,label\na.png,ant\n", "u.csv: 1 classes are without a training image:\n  oak"),
}


@pytest.mark.parametrize(("text", "message"), TABLES.values(), ids=TABLES)
def test_tables(root: Path, text: str, message: str) -> None:
    (root / "t.csv").write_text(text)
    (root / "u.csv").write_text("path,label\na.png,oak\n")
    assert f"{root}/{message}" in refusal(format="csv", root=str(root), train="t.csv", test="u.csv")


def test_a_table_of_another_format_and_of_other_classes(root: Path) -> None:
    (root / "names.txt").write_text("elm\nash\n")
    pd.DataFrame({"path": ["a.png"], "label": ["oak"]}).to_csv(root / "t.csv", index=False)
    known = {"root": str(root), "train": "t.csv", "test": "t.csv"}
    assert "t.csv cannot be read as parquet: " in refusal(format="parquet", **known)
    message = refusal(format="csv", class_names=str(root / "names.txt"), **known)
    assert "t.csv: 1 classes are not in data.class_names:\n  oak" in message


def test_folders(root: Path) -> None:
    (root / "none/class").mkdir(parents=True)
    given = {"format": "image_folder", "root": str(root)}
    message = refusal(**given, train="none")
    assert f"{root}/none holds no image (" in message
    assert "image_folder expects one sub-folder a class, with its images; correct data.root or data.train" in message
    message = refusal(**given, test="absent")
    assert f"{root}/absent is not a folder: image_folder expects one sub-folder a class in it; set data.test" in message
    (root / "test/wren").mkdir()
    assert "1 class folders are not among the training folders; add them there, or drop:\n  wren" in refusal(**given)


INATURALIST: dict[str, tuple[str, str]] = {
    "a list of lines": ("a.png 0", "t.json is not JSON, as iNaturalist's annotation files are: Expecting value"),
    "no images": ('{"annotations": []}', "t.json has no list 'images'; expected iNaturalist's images and annotations"),
    "no id": (
        '{"images": [{"id": null, "file_name": "a"}], "annotations": []}',
        "t.json, images[0]: id is neither a number nor text",
    ),
    "categories": (
        '{"images": [], "annotations": [], "categories": {"0": "oak"}}',
        "t.json: categories are no list of id and name, but dict",
    ),
}


@pytest.mark.parametrize(("text", "message"), INATURALIST.values(), ids=INATURALIST)
def test_annotation_files(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        parse_inaturalist(text, "t.json")
    assert message in str(error.value)


def test_cifar100(tmp_path: Path) -> None:
    def message(root: Path) -> str:
        with pytest.raises(DataError) as error:
            cifar.read_cifar100(root, download=False)
        return str(error.value)

    assert message(tmp_path) == (
        f"no CIFAR-100 in {tmp_path}: expected cifar-100-binary/ (train.bin, test.bin) or cifar-100-python/ (train, "
        "test, meta); set data.root, or data.download to true"
    )
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "train.bin").write_bytes(b"half")
    assert message(tmp_path) == f"{folder}/fine_label_names.txt is missing; it belongs to the official archive"
    (folder / "fine_label_names.txt").write_text("apple\n")
    text = message(tmp_path)
    assert f"{folder}/train.bin is not the official file: md5 " in text
    assert f", expected {cifar.BINARY_MD5['train.bin']}; delete it and fetch it again" in text


def test_images_in_two_splits_under_two_names(root: Path) -> None:
    source = sorted((root / "train/digit-0").iterdir())[0]
    (root / "test/digit-0/copy.png").write_bytes(source.read_bytes())
    catalog = scan(DataConfig.model_validate({"input": SMALL_INPUT, "format": "image_folder", "root": str(root)}))
    with pytest.raises(DataError) as error:
        image_digests(catalog, None, lambda done, total: None)
    assert str(error.value) == (
        "1 image is, byte for byte, in two splits, so the test would be no test; remove them from one (btm data "
        "inspect finds more that is wrong, and with --write-clean DIR writes lists without it):\n"
        f"  test image test/digit-0/copy.png is train image train/digit-0/{source.name}"
    )


def test_a_cut_of_nothing() -> None:
    with pytest.raises(DataError, match=r"imbalance_factor is largest over smallest class and at least 1, found 0\.5"):
        long_tail_indices([0, 1], 0.5)
    with pytest.raises(DataError, match="there are no labels to cut a long tail from"):
        long_tail_indices(np.array([], dtype=np.int64), 10)

"""What an inspection finds in lists of real digits that were damaged on purpose, and the lists it writes without it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_INPUT, write_digits, write_lists
from PIL import Image

from btm_core.config import DataConfig, load_experiment
from btm_core.data import scan
from btm_core.data.cleaning import write_clean_lists
from btm_core.data.inspection import Finding, Inspection, inspect
from btm_core.errors import DataError
from btm_core.plots import long_tail_profile
from btm_core.text_plots import long_tail_plot


@pytest.fixture
def damaged(tmp_path: Path) -> DataConfig:
    """One image unreadable, one missing, one in both splits, one under two labels, one twice."""
    root = write_digits(tmp_path / "images")
    first = sorted((root / "train/digit-0").iterdir())
    first[0].write_bytes(b"no image")
    shutil.copy(first[3], first[3].with_name("again.png"))
    shutil.copy(sorted((root / "test/digit-1").iterdir())[0], root / "train/digit-1/leak.png")
    Image.open(sorted((root / "train/digit-2").iterdir())[0]).save(root / "train/digit-1/other.bmp")
    write_lists(root)
    with (root / "train.txt").open("a") as file:
        file.write("\ntrain/digit-1/other.bmp 1\ntrain/digit-0/none.png 0\n")
    return DataConfig(format="list", root=str(root), train="train.txt", test="test.txt", input=SMALL_INPUT)


def by_kind(inspection: Inspection) -> dict[str, Finding]:
    return {finding.kind: finding for finding in inspection.findings}


def test_everything_is_found_at_its_line(damaged: DataConfig) -> None:
    told: list[tuple[int, int]] = []
    inspection = inspect(damaged, 10, lambda done, of: told.append((done, of)))
    found = by_kind(inspection)
    lines = Path(str(damaged.root), "train.txt").read_text().splitlines()
    for kind, name in (("missing", "none.png"), ("unreadable", "0000.png")):
        [item] = found[kind].items
        number = 1 + next(i for i, line in enumerate(lines) if name in line and "digit-0" in line)
        assert item.startswith(f"train.txt:{number} train/digit-0/{name} (digit-0)")
        assert found[kind].serious and found[kind].advice
    [leak] = found["leaks"].items
    assert "leak.png" in leak[0] and leak[0].startswith("train: ") and leak[1].startswith("test: test.txt:7 ")
    [labels] = found["labels"].items
    assert "(digit-2)" in labels[0] and "train/digit-1/other.bmp (digit-1)" in labels[1]
    [twice] = found["duplicates"].items
    assert "again.png" in twice[1] and not found["duplicates"].serious
    assert found["few_shots"].items == ["digit-2: 5"]
    assert "steps of 1/6 (17 %)" in found["few_test"].advice
    assert told[-1] == (55, 55)


def test_the_document_says_it_for_programs(damaged: DataConfig) -> None:
    document = inspect(damaged, 10).document()
    assert document["per_class"][1] == {"class": "digit-1", "label": 1, "train": 10, "test": 6}
    assert document["images"]["readable"] == 53 and document["images"]["median"] == [8, 8]
    assert document["images"]["kinds"] == [
        {"format": "PNG", "mode": "L", "images": 52},
        {"format": "BMP", "mode": "L", "images": 1},
    ]
    train = document["splits"][0]
    assert (train["images"], train["largest"], train["smallest"], train["medium"], train["few"]) == (37, 22, 5, 1, 2)
    assert (train["medium_images"], train["few_images"]) == (22, 15)


def test_clean_lists_pass_every_check_of_a_run(damaged: DataConfig, tmp_path: Path) -> None:
    left_out = write_clean_lists(inspect(damaged, 10), tmp_path / "clean")
    assert left_out == {"train": 6, "test": 0}
    config = damaged.model_copy(
        update={
            "train": str(tmp_path / "clean/train.txt"),
            "test": str(tmp_path / "clean/test.txt"),
            "class_names": str(tmp_path / "clean/classes.txt"),
        }
    )
    catalog = scan(config)
    assert catalog.class_names == ("digit-0", "digit-1", "digit-2")
    again = by_kind(inspect(config, 10))
    assert set(again) <= {"few_shots", "few_test", "near_leaks", "near_labels", "near_duplicates"}


def test_a_class_is_not_cleaned_away(damaged: DataConfig, tmp_path: Path) -> None:
    root = Path(str(damaged.root))
    for image in (root / "train/digit-2").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"nothing would be left of 1 classes of the train split \(digit-2\)"):
        write_clean_lists(inspect(damaged, 10), tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_what_a_run_refuses_is_a_finding_and_what_has_no_classes_an_error(damaged: DataConfig) -> None:
    root = Path(str(damaged.root))
    listed = (root / "train.txt").read_text()
    (root / "train.txt").write_text(listed + (root / "test.txt").read_text())
    assert "are in both the training and the test split" in by_kind(inspect(damaged, 10))["refused"].title
    (root / "train.txt").write_text("train/digit-0/0030.png 0\n")
    with pytest.raises(DataError, match="1 classes, expected at least 2"):
        inspect(damaged.model_copy(update={"test": "train.txt"}), 10)


def test_data_without_files_are_looked_at_too() -> None:
    digits = load_experiment("digits-lt").data
    inspection = inspect(digits, 10)
    assert inspection.looks is not None and inspection.looks.readable.all()
    assert inspection.document()["splits"][0]["images"] == 329
    with pytest.raises(DataError, match="this data set has none"):
        write_clean_lists(inspection, Path("nowhere"))


@pytest.mark.parametrize("classes", [2, 10, 31, 100, 8142])
@pytest.mark.parametrize("plain", [False, True])
def test_the_plot_fits_and_falls(classes: int, plain: bool) -> None:
    counts = (1000 * 0.002 ** (np.arange(classes) / (classes - 1))).astype(int)
    names = [f"class {c} with a name that is rather long" for c in range(classes)]
    shuffled = np.random.default_rng(0).permutation(classes)
    text = long_tail_plot(counts[shuffled], [names[c] for c in shuffled], 80, plain=plain)
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert text.isascii() == plain
    if classes <= 30:
        assert len(lines) == classes and lines[0].startswith("class 0 ") and lines[0].endswith(" 1,000")
        lengths = [line.count("#" if plain else "█") for line in lines]
        assert lengths == sorted(lengths, reverse=True) and lengths[-1] > 0
    else:
        rows = [len(line) for line in lines if ("|" in line or "│" in line)]
        assert rows == sorted(rows)
        assert lines[-1].rstrip().endswith(f"{classes:,}")


def test_a_class_without_images_has_no_bar() -> None:
    assert long_tail_plot([3, 0], ["a", "b"], 40).splitlines()[1].split() == ["b", "0"]
    assert long_tail_plot([0] * 50, ["a"] * 50, 40).count("█") == 0


def test_the_figure_shows_groups_and_test_counts() -> None:
    counts = np.array([500, 60, 5, 0])
    figure = long_tail_profile(counts, np.array([10, 10, 10, 0]), 100, 20)
    [axis] = figure.axes
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["many (1 classes)", "medium (1 classes)", "few (2 classes)", "test"]
    assert axis.get_yscale() == "log"
    figure.draw_without_rendering()

"""What lies in a folder is recognised by what is there, and read as it was meant."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import write_digits, write_lists

from btm_core.data import scan
from btm_core.data.readers import read
from btm_core.data.recognising import recognise
from btm_core.data.splitting import split_off_test
from btm_core.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_digits(tmp_path / "images")


def as_table(root: Path, split: str) -> list[tuple[str, str]]:
    paths = sorted(path.relative_to(root) for path in (root / split).rglob("*.png"))
    return [(str(path), path.parts[1]) for path in paths]


def write_csv(root: Path, columns: str = "file,species") -> None:
    for split in ("train", "test"):
        rows = [columns, *(",".join(row) for row in as_table(root, split))]
        (root / f"{split}.csv").write_text("\n".join(rows))


def write_parquet(root: Path) -> None:
    import pandas as pd

    for split in ("train", "test"):
        pd.DataFrame(as_table(root, split), columns=["image_path", "label"]).to_parquet(root / f"{split}.parquet")


def write_inaturalist(root: Path) -> None:
    for split, year in (("train", "2018"), ("val", "2018")):
        rows = as_table(root, "test" if split == "val" else split)
        document = {
            "images": [{"id": i, "file_name": path} for i, (path, _) in enumerate(rows)],
            "annotations": [{"image_id": i, "category_id": int(name[-1])} for i, (_, name) in enumerate(rows)],
        }
        (root / f"{split}{year}.json").write_text(json.dumps(document))


WRITERS = {
    "image_folder": lambda root: None,
    "list": write_lists,
    "csv": write_csv,
    "parquet": write_parquet,
    "inaturalist": write_inaturalist,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_recognised_and_read(images: Path, kind: str) -> None:
    WRITERS[kind](images)
    found = recognise(str(images))
    assert found.fields["format"] == kind and not found.unsplit
    catalog = scan(found.config())
    assert catalog.train_counts.tolist() == [20, 8, 5] and len(catalog.test) == 18


def test_published_names_of_lists_are_understood(images: Path, tmp_path: Path) -> None:
    """Lists that lie beside the folder of the images, called as those of Places-LT are."""
    write_lists(images)
    for old, new in (("train", "Places_LT_train"), ("test", "Places_LT_test"), ("test", "Places_LT_val")):
        shutil.copy(images / f"{old}.txt", tmp_path / f"{new}.txt")
    for target in (tmp_path, tmp_path / "Places_LT_train.txt"):
        found = recognise(str(target))
        assert found.fields["root"] == str(images)
        assert Path(found.fields["test"]).name == "Places_LT_test.txt"
        assert Path(found.fields["validation"]).name == "Places_LT_val.txt"


def test_a_split_may_have_other_names(images: Path) -> None:
    (images / "test").rename(images / "val")
    assert recognise(str(images)).fields["test"] == "val"
    shutil.copytree(images / "val", images / "Test")
    fields = recognise(str(images)).fields
    assert (fields["test"], fields["validation"]) == ("Test", "val")


@pytest.mark.parametrize("layout", ["classes", "train alone", "list", "csv", "annotations"])
def test_data_without_a_test_split_get_one(images: Path, layout: str) -> None:
    shutil.rmtree(images / "test")
    target = images
    if layout == "annotations":  # they say more than the folder does that lies beside them
        (images / "test").mkdir()
        write_inaturalist(images)
        (images / "val2018.json").unlink()
    elif layout == "classes":
        target = images / "train"
    elif layout == "list":
        lines = [f"{path} {name[-1]}\n" for path, name in as_table(images, "train")]
        target = images / "all.txt"
        target.write_text("".join(lines))
    elif layout == "csv":
        rows = ["path,label", *(",".join(row) for row in as_table(images, "train"))]
        (images / "labels.csv").write_text("\n".join(rows))
        shutil.move(images / "train", images / "pictures")
        (images / "labels.csv").write_text("\n".join(rows).replace("train/", ""))
    found = recognise(str(target))
    assert found.unsplit and (layout == "annotations") == (found.fields["format"] == "inaturalist")
    catalog = read(found.config())
    split = split_off_test(catalog, [str(i) for i in range(33)], 0.2, seed=0)
    assert split.train_counts.tolist() == [16, 6, 4] and len(split.test) == 4 + 2 + 1
    assert set(split.train.paths or ()).isdisjoint(split.test.paths or ())
    assert len(scan_paths(split.train.paths, catalog.root)) == 26


def scan_paths(paths: tuple[str, ...] | None, root: str | None) -> list[Path]:
    return [Path(str(root), path) for path in paths or () if Path(str(root), path).is_file()]


def test_copies_of_a_picture_never_part(images: Path) -> None:
    catalog = read(recognise(str(images)).config())
    digests = [str((i + 1) // 2) for i in range(33)]  # each picture twice; the one at 27, 28 bears two labels
    for seed in range(5):
        split = split_off_test(catalog, digests, 0.4, seed)
        digest_of = dict(zip(catalog.train.paths or (), digests, strict=True))
        parts = [{digest_of[path] for path in part.paths or ()} for part in (split.train, split.test)]
        assert parts[0].isdisjoint(parts[1])
        assert digests[27] == digests[28] and digests[27] in parts[0]
    again = split_off_test(catalog, digests, 0.4, 4)
    assert again.test.paths == split.test.paths
    assert split_off_test(catalog, digests, 0.4, 5).test.paths != split.test.paths


def test_a_class_of_one_picture_cannot_be_split(images: Path) -> None:
    catalog = read(recognise(str(images)).config())
    with pytest.raises(DataError, match="1 classes have too few images to give"):
        split_off_test(catalog, [*map(str, range(28)), *["same"] * 5], 0.2, 0)


def test_what_is_not_recognised_is_told_with_what_was_seen(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent does not exist; expected a folder with train/CLASS"):
        recognise(str(tmp_path / "absent"))
    other = tmp_path / "other"
    (other / "empty").mkdir(parents=True)
    (other / "notes.md").write_text("")
    with pytest.raises(DataError, match=r"no data set was recognised in .*other; .*There is:\n  empty/\n  notes.md"):
        recognise(str(other))
    with pytest.raises(DataError, match=r"notes.md is no list \(.txt\), CSV, Parquet or JSON file; "):
        recognise(str(other / "notes.md"))
    write_csv(images, "where,what")
    with pytest.raises(DataError, match="which column holds the paths"):
        recognise(str(images))


def test_another_file_system_is_looked_at_in_the_same_way(images: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    try:
        for path in images.rglob("*.png"):
            memory.pipe_file(f"/birds/{path.relative_to(images)}", path.read_bytes())
        found = recognise("memory://birds")
        assert (found.fields["root"], found.unsplit) == ("memory://birds", False)
        assert len(scan(found.config()).train) == 33
        found = recognise("memory://birds/train")
        assert (found.fields["root"], found.fields["train"], found.unsplit) == ("memory://birds", "train", True)
    finally:
        memory.store.clear()

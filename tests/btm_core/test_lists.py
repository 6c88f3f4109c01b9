"""Published list files, read as they are, over trees of any of their styles; and published balanced subsets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_INPUT, Btm, small_experiment, write_lists

from btm_core.config import DataConfig
from btm_core.data import read_list, scan
from btm_core.data.locate import short_name
from btm_core.errors import DataError

LISTS = Path(__file__).parents[3] / "shared" / "data" / "lists"


def config(root: Path) -> DataConfig:
    named: dict[str, Any] = {"root": str(root), "train": "train.txt", "test": "test.txt", "input": SMALL_INPUT}
    return DataConfig(format="list", **named)


@pytest.mark.parametrize("style", ["data_256/d/{}", "data_256_standard/d/{}", "train/{}"])
def test_one_list_serves_trees_of_every_style(digit_images: Path, tmp_path: Path, style: str) -> None:
    write_lists(digit_images)
    expected = scan(config(digit_images))
    for split in ("train", "test"):
        lines = (digit_images / f"{split}.txt").read_text().splitlines()
        restyled = [style.format(line.split("/", 1)[1]) for line in lines]
        (digit_images / f"{split}.txt").write_text("\n".join(restyled) + "\n")
    found = scan(config(digit_images))
    assert found.train.paths == expected.train.paths
    assert found.test.paths == expected.test.paths


def test_what_could_be_two_files_is_refused_and_what_is_none_is_told(digit_images: Path) -> None:
    write_lists(digit_images)
    text = (digit_images / "train.txt").read_text().replace("train/", "elsewhere/")
    (digit_images / "train.txt").write_text(text)
    first = text.splitlines()[0].split()[0]
    twin = digit_images / "other" / short_name(first)
    twin.parent.mkdir(parents=True)
    twin.write_bytes((digit_images / first.replace("elsewhere", "train")).read_bytes())
    with pytest.raises(DataError, match="several files there may be meant"):
        scan(config(digit_images))
    twin.unlink()
    (digit_images / first.replace("elsewhere", "train")).unlink()
    with pytest.raises(DataError, match=f"1 of .* listed images are missing .*\n.*{first}"):
        scan(config(digit_images))


@pytest.mark.skipif(not LISTS.is_dir(), reason="the published lists are not at hand")
@pytest.mark.parametrize("number", range(3))
def test_the_authors_subsets_are_part_of_places_lt(number: int) -> None:
    """10 images a class where there are as many: 3,568 in all, with 29 classes short."""
    paths, labels = read_list((LISTS / "Places_LT_train.txt").read_text(), "train")
    name = f"Places_BL_train_10_{number}.txt"
    drawn, classes = read_list((LISTS / name).read_text(), name)
    training = {(short_name(path), label) for path, label in zip(paths, labels.tolist(), strict=True)}
    assert len(training) == 62_500
    chosen = {(short_name(path), label) for path, label in zip(drawn, classes.tolist(), strict=True)}
    assert len(chosen) == 3_568
    assert chosen <= training
    np.testing.assert_array_equal(np.bincount(classes), np.minimum(10, np.bincount(labels)))


def test_given_subsets_are_taken_as_they_are(btm: Btm, digit_images: Path, tmp_path: Path) -> None:
    import yaml

    write_lists(digit_images)
    lines = (digit_images / "train.txt").read_text().splitlines()
    chosen = [lines[::3], lines[1::3]]
    for number, subset in enumerate(chosen):
        (tmp_path / f"subset-{number}.txt").write_text("".join(f"other/style/{line[6:]}\n" for line in subset))
    raw = small_experiment(format="list", root=str(digit_images), train="train.txt", test="test.txt")
    raw["sampling"] = {"num_subsets": 2, "shots": 5, "lists": [str(tmp_path / f"subset-{n}.txt") for n in (0, 1)]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(raw))
    done = btm("run", "x.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    for number, subset in enumerate(chosen):
        folder = Path(answer["artifacts"][f"sample/subset-{number:02d}"].removeprefix("file://"))
        positions = json.loads((folder / "subset.json").read_text())["positions"]
        assert [lines[i] for i in positions] == sorted(subset, key=lines.index)
    (tmp_path / "subset-1.txt").write_text("x/y/nothing.png 0\n")
    done = btm("run", "x.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "1 images are not in the training split" in done.stderr
    done = btm("run", "x.yaml", "--set=sampling.num_subsets=3", cwd=tmp_path)
    assert "give one list a subset" in done.stderr

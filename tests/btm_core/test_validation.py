"""The validation split: carved or given, never overlapping, and named wherever a figure comes from it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAST, Btm, write_lists
from safetensors.numpy import load_file

from btm_core.config import DataConfig, load_experiment
from btm_core.data import scan
from btm_core.data.long_tail import class_counts
from btm_core.errors import ConfigError, DataError
from btm_core.metrics import recall_report
from tasks.data import prepare_data
from tasks.tracking import mlflow_client

GREY: dict[str, Any] = {
    "size": 8, "channels": 1, "mean": [0.3], "std": [0.4], "augmentation": "crop", "crop_padding": 1
}  # fmt: skip


def digits(**values: Any) -> DataConfig:
    return DataConfig(format="digits", imbalance_factor=50, input=GREY, **values)  # type: ignore[arg-type]


def lists(root: Path, **values: Any) -> DataConfig:
    named = {"root": str(root), "train": "train.txt", "test": "test.txt"}
    return DataConfig(format="list", input=GREY, **{**named, **values})  # type: ignore[arg-type]


def test_carving_takes_at_most_half_of_a_class_out_of_training() -> None:
    whole, carved = scan(digits()), scan(digits(validation_per_class=5))
    assert carved.validation is not None
    taken = class_counts(carved.validation.labels, 10)
    np.testing.assert_array_equal(taken, np.minimum(5, whole.train_counts // 2))
    np.testing.assert_array_equal(taken + carved.train_counts, whole.train_counts)
    assert carved.train_counts.min() >= 1
    np.testing.assert_array_equal(carved.uncarved_counts, whole.train_counts)
    np.testing.assert_array_equal(carved.test.labels, whole.test.labels)
    assert carved.train.pixels is not None and carved.validation.pixels is not None and whole.train.pixels is not None
    together = np.concatenate([carved.train.pixels, carved.validation.pixels])
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in whole.train.pixels)


def test_carving_is_named_by_the_split_seed() -> None:
    chosen = [scan(digits(validation_per_class=5, split_seed=seed)).validation for seed in (1, 1, 2)]
    pixels = [split.pixels.tobytes() for split in chosen if split is not None and split.pixels is not None]
    assert pixels[0] == pixels[1] != pixels[2]


def test_a_given_split_is_read_and_may_not_overlap(digit_images: Path) -> None:
    write_lists(digit_images)
    lines = (digit_images / "train.txt").read_text().splitlines()
    (digit_images / "val.txt").write_text("\n".join(lines[::4]) + "\n")
    with pytest.raises(DataError, match="in both the training and the validation split"):
        scan(lists(digit_images, validation="val.txt"))
    (digit_images / "train.txt").write_text("".join(f"{line}\n" for i, line in enumerate(lines) if i % 4))
    catalog = scan(lists(digit_images, validation="val.txt"))
    assert catalog.validation is not None
    assert len(catalog.validation) == len(lines[::4])
    np.testing.assert_array_equal(catalog.uncarved_counts, catalog.train_counts)  # nothing was taken out of training
    copied = sorted((digit_images / "test/digit-0").iterdir())[0]
    (digit_images / "train/digit-0/copy.png").write_bytes(copied.read_bytes())
    with (digit_images / "val.txt").open("a") as file:
        file.write("train/digit-0/copy.png 0\n")
    with pytest.raises(DataError, match=r"validation image train/digit-0/copy.png is test image"):
        prepare_data("own", lists(digit_images, validation="val.txt"), None)


def test_every_split_has_a_hash_of_its_own(digit_images: Path) -> None:
    write_lists(digit_images)
    before = prepare_data("own", lists(digit_images, validation_per_class=2), None).hashes
    assert set(before) == {"train", "test", "validation"}
    image = sorted((digit_images / "test/digit-1").iterdir())[0]
    image.write_bytes(sorted((digit_images / "test/digit-0").iterdir())[0].read_bytes())
    after = prepare_data("own", lists(digit_images, validation_per_class=2), None).hashes
    assert {name for name in before if before[name] != after[name]} == {"test"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["data.validation=x", "data.validation_per_class=5"], "set one of them"),
        (["data.validation=x"], "carve a split with validation_per_class"),
        (["merge.criterion=test"], "nothing may be chosen on the test split"),
    ],
)
def test_what_contradicts_itself_is_refused(values: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment("digits-lt", values)


def test_absent_classes_are_left_out_only_where_that_is_asked_for() -> None:
    y, p, counts = [0, 0, 2, 2], [0, 1, 2, 2], [200, 50, 5]
    with pytest.raises(DataError, match="no test image"):
        recall_report(y, p, counts)
    report = recall_report(y, p, counts, absent="skip")
    present = recall_report([0, 0, 1, 1], [0, 2, 1, 1], [200, 5, 50], absent="skip")
    assert np.isnan(report.recall[1])
    assert (report.h_mean, report.lowest_recall, report.mean_recall) == (2 / (1 / 0.5 + 1), 0.5, 0.75)
    assert report.medium is None and report.few == 1.0
    assert present.h_mean == report.h_mean


def smoothed_h_mean(evaluation: Path) -> float:
    """The H-mean of (k + 1/2) / (n + 1), class by class, of what an evaluation predicted."""
    tensors = load_file(evaluation / "predictions.safetensors")
    target, right = tensors["target"], tensors["predicted"] == tensors["target"]
    recall = [(right[target == c].sum() + 0.5) / ((target == c).sum() + 1) for c in np.unique(target)]
    return float(len(recall) / sum(1 / r for r in recall))


def test_a_run_reports_both_splits_and_chooses_on_validation(btm: Btm, tmp_path: Path) -> None:
    chosen = ["--set=merge.strategy=greedy_h_mean", "--set=merge.criterion=validation"]
    done = btm("run", "digits-lt", "--json", *FAST, *chosen, "--set=data.validation_per_class=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    report = json.loads((tmp_path / ".btm/store/runs" / answer["run_id"] / "report.json").read_text())
    page = (tmp_path / ".btm/store/runs" / answer["run_id"] / "report.html").read_text()
    for rows, split in ((answer["models"], "test"), (answer["validation"], "validation")):
        assert {row["split"] for row in rows} == {split}
        [split_hash] = {row["split_hash"] for row in rows}
        assert split_hash == report["data"]["splits"][split]["hash"]
        assert split_hash[:12] in page
    assert [row["name"] for row in answer["models"]] == [row["name"] for row in answer["validation"]]
    logged = mlflow_client(answer["tracking"]["uri"]).get_run(answer["tracking"]["run_id"]).inputs.dataset_inputs
    contexts = {"training": "train", "validation": "validation", "evaluation": "test"}
    digests = {one.tags[0].value: json.loads(one.dataset.profile)["digest"] for one in logged}
    assert digests == {context: report["data"]["splits"][split]["hash"] for context, split in contexts.items()}
    merge = Path(answer["artifacts"]["merge"].removeprefix("file://"))
    choice = json.loads((merge / "choice.json").read_text())
    assert choice["criterion"] == "validation"
    assert sum(choice["weights"]) == pytest.approx(1)
    scores = {}
    for rows, split in ((answer["models"], "test"), (answer["validation"], "validation")):
        ingredients = [row["evaluation"] for row in rows if row["stage"] == "finetune"]
        scores[split] = [smoothed_h_mean(tmp_path / ".btm/store/artifacts" / address) for address in ingredients]
    assert choice["scores"] == pytest.approx(scores["validation"])
    assert choice["scores"] != pytest.approx(scores["test"])
    whole, carved = scan(digits()), scan(digits(validation_per_class=5))
    assert (whole.train_counts[4], carved.train_counts[4]) == (21, 16)  # medium, and few by what carving leaves
    assert report["classes"]["train_images"] == carved.train_counts.tolist()
    assert "1 many, 4 medium, 5 few); groups by the counts before the validation split" in report["data"]["profile"]
    for rows in (answer["models"], answer["validation"]):
        recall = json.loads((tmp_path / ".btm/store/artifacts" / rows[-1]["evaluation"] / "recall.json").read_text())
        for name, of_group in (("many", slice(0, 1)), ("medium", slice(1, 5)), ("few", slice(5, 10))):
            present = [value for value in recall["recall"][of_group] if value is not None]
            assert rows[-1][name] == pytest.approx(np.mean(present))
    without = btm("run", "digits-lt", "--json", *FAST, *chosen, cwd=tmp_path)
    assert without.returncode == 2
    assert "merge.criterion is validation, but there is no validation split; set data.validation or" in without.stderr

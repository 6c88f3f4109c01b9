from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from btm_core.errors import CheckpointError, DataError
from btm_core.evidence import Evidence, obstacles, require_comparable


@pytest.fixture
def evidence() -> Evidence:
    targets = np.array([0, 0, 1, 1, 2, 2])
    return Evidence(
        split="test",
        split_hash="a" * 64,
        class_names=("ash", "birch", "cedar"),
        train_counts=np.array([120, 50, 3]),
        group_counts=np.array([125, 55, 8]),
        targets=targets,
        predictions=np.array([0, 0, 1, 2, 0, 2]),
    )


def test_it_reads_what_it_wrote(evidence: Evidence, tmp_path: Path) -> None:
    evidence.save(tmp_path / "evidence.safetensors")
    found = Evidence.load(tmp_path / "evidence.safetensors")
    assert (found.split, found.split_hash, found.class_names) == ("test", "a" * 64, ("ash", "birch", "cedar"))
    assert found.report.recall.tolist() == [1.0, 0.5, 0.5]
    assert (found.report.many, found.report.medium, found.report.few) == (1.0, 0.5, 0.5)
    assert found.train_counts.tolist() == [120, 50, 3]
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "evidence.safetensors").read_bytes()


def test_another_file_is_refused(evidence: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "evidence.safetensors"
    save_file({"targets": np.arange(3)}, path)
    with pytest.raises(CheckpointError, match="holds no evidence of a model: "):
        Evidence.load(path)
    for wrong in (
        {"targets": np.array([0, 1, 7, 1, 2, 2])},
        {"predictions": np.array([0, 1])},
        {"train_counts": np.array([1, 2])},
        {"targets": np.array([0.0, 0, 1, 1, 2, 2])},
    ):
        replace(evidence, **wrong).save(path)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match="holds no evidence of a model: "):
            Evidence.load(path)


def test_what_stands_in_the_way_of_a_comparison(evidence: Evidence) -> None:
    assert obstacles(evidence, replace(evidence, predictions=evidence.targets)) == []
    [classes] = obstacles(evidence, replace(evidence, class_names=("ash", "cedar", "birch")))
    assert "class 1: 'birch', the other 'cedar'" in classes
    [fewer] = obstacles(evidence, replace(evidence, class_names=("ash", "birch")))
    assert "class 2: 'cedar', the other none" in fewer
    [images] = obstacles(evidence, replace(evidence, split_hash="b" * 64))
    assert "aaaaaaaaaaaa" in images and "bbbbbbbbbbbb" in images
    [damaged] = obstacles(evidence, replace(evidence, targets=evidence.targets[::-1].copy()))
    assert "damaged" in damaged
    with pytest.raises(DataError, match="new and old cannot be compared"):
        require_comparable([evidence, replace(evidence, split_hash="c" * 64)], ["new", "old"])

"""`btm evaluate` on what a real run left, and on a checkpoint file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, Btm


def test_what_a_run_predicted_is_told_without_training(btm: Btm, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, run = undisturbed
    done = btm("evaluate", f"{run['run_id']}:soup", "--json", "--lowest=3", cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    [soup] = [row for row in run["models"] if row["name"] == "soup"]
    assert all(document[key] == soup[key] for key in ("h_mean", "g_mean", "lowest_recall", "accuracy", "few"))
    recall = dict(zip(document["classes"]["name"], document["classes"]["recall"], strict=True))
    lowest = document["lowest_classes"]
    assert [row["recall"] for row in lowest] == sorted(recall.values())[:3]
    assert lowest[0]["recall"] == recall[lowest[0]["name"]] == document["lowest_recall"]
    wrong = round((1 - lowest[0]["recall"]) * lowest[0]["test_images"])
    assert 0 < sum(other["images"] for other in lowest[0]["taken_for"]) <= wrong
    told = btm("evaluate", run["run_id"][:-2], cwd=folder)
    assert told.returncode == 0, told.stderr
    assert f"{100 * run['models'][-1]['h_mean']:.1f}" in told.stdout and "taken for" in told.stdout


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_on_the_data_that_are_named(
    btm: Btm, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    final = undisturbed[1]["models"][-1]
    shutil.copy(
        undisturbed[0] / ".btm/store/artifacts" / final["artifact"] / "model.safetensors", tmp_path / "m.safetensors"
    )
    done = btm("evaluate", "m.safetensors", "--data=digits-lt", *FAST, "--json", cwd=tmp_path, BTM_DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["h_mean"] == final["h_mean"]
    refused = btm("evaluate", "m.safetensors", cwd=tmp_path)
    assert refused.returncode == 2
    assert "m.safetensors has to be evaluated, and nothing says on what: give --data PRESET|FILE" in refused.stderr
    refused = btm("evaluate", "m.safetensors", "--set=seed=1", cwd=tmp_path)
    assert refused.returncode == 2 and "--set changes the experiment of --data" in refused.stderr

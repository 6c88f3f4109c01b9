"""The whole of it: the command line, Prefect's ephemeral server, MLflow on sqlite, a real store, real workers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FAST, Btm, artifact_digests, clean_environment, small_experiment, write_digits, write_lists

Undisturbed = tuple[Path, dict[str, Any]]
CRASH = Path(__file__).parents[1] / "crash.py"


def test_the_json_answer(undisturbed: Undisturbed) -> None:
    folder, answer = undisturbed
    names = [row["name"] for row in answer["models"]]
    assert names == [
        *("stage 1", "stage 1 + post-train"), *(f"ingredient {i:02d}" for i in range(3)), *("soup", "final")
    ]  # fmt: skip
    stages = [row["stage"] for row in answer["models"]]
    assert stages == ["pretrain", "baseline", "finetune", "finetune", "finetune", "merge", "post_train"]
    for row in answer["models"]:
        assert 0 <= row["h_mean"] <= row["g_mean"] <= row["mean_recall"] + 1e-3 <= 1.001
        assert row["accuracy"] == pytest.approx(row["mean_recall"])  # the test split is balanced
    assert answer["trained_stages"] == ["pretrain", "finetune", "post_train"]
    assert answer["cached_stages"] == []
    for stage in ("data", "pretrain", "sample/subset-00", "finetune/subset-02", "merge", "post_train"):
        assert Path(answer["artifacts"][stage].removeprefix("file://"), "manifest.json").is_file()
    assert Path(answer["final_model"].removeprefix("file://")).is_file()
    assert answer["report"].startswith(f"file://{folder}")
    assert json.loads((folder / ".btm/store/runs" / answer["run_id"] / "run.json").read_text()) == answer


def test_models_score_what_the_report_says(undisturbed: Undisturbed) -> None:
    """The final checkpoint alone, loaded by the library, gives the figures of the report."""
    import numpy as np
    from torch import from_numpy

    from btm_core.checkpoints import load_checkpoint
    from btm_core.config import load_experiment
    from btm_core.data import scan
    from btm_core.data.dataset import LabelledImages
    from btm_core.data.images import PackedPixels
    from btm_core.evaluation import predict
    from btm_core.metrics import recall_report

    _, answer = undisturbed
    config = load_experiment("digits-lt").data
    catalog = scan(config)
    model, metadata = load_checkpoint(Path(answer["final_model"].removeprefix("file://")))
    assert metadata.class_names == catalog.class_names
    assert metadata.train_counts == tuple(catalog.train_counts.tolist())
    assert catalog.test.pixels is not None
    test = LabelledImages(PackedPixels(from_numpy(catalog.test.pixels)), from_numpy(catalog.test.labels), config.input)
    predicted, _ = predict(model, test)
    report = recall_report(catalog.test.labels, predicted, catalog.train_counts)
    final = answer["models"][-1]
    assert report.h_mean == pytest.approx(final["h_mean"])
    assert report.accuracy == final["accuracy"]
    assert np.isclose(report.few or 0, final["few"])


def test_the_report(undisturbed: Undisturbed) -> None:
    _, answer = undisturbed
    page = Path(answer["report"].removeprefix("file://"))
    html = page.read_text()
    report = json.loads(page.with_suffix(".json").read_text())
    assert 'src="http' not in html and 'href="http' not in html  # self-contained
    for row in answer["models"]:
        assert f'<th scope="row" class="text">{row["name"]}</th><td>{100 * row["h_mean"]:.1f}</td>' in html
    before, after = (report["calibration"][name]["overall"] for name in ("stage 1 + post-train", "final"))
    assert sum(before["images"]) == sum(after["images"]) == 600 and 0 < after["error"] < 1
    worst = report["lowest_classes"]
    assert len(worst) == 10
    assert [row["recall"] for row in worst] == sorted(row["recall"] for row in worst)
    assert worst[0]["recall"] == answer["models"][-1]["lowest_recall"]
    for row in worst:
        wrong = sum(other["images"] for other in row["taken_for"])
        assert wrong <= round((1 - row["recall"]) * row["test_images"])
    assert report["experiment"]["finetune"]["epochs"] == 4
    assert report["versions"]["torch"]
    made = {row["address"] for row in report["lineage"]}
    assert all(parent in made for row in report["lineage"] for parent in row["parents"])


def test_mlflow_holds_the_run(undisturbed: Undisturbed) -> None:
    script = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
parent = client.get_run(sys.argv[2])
children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{sys.argv[2]}'")
print(json.dumps({
    "status": parent.info.status, "metrics": parent.data.metrics, "params": parent.data.params,
    "artifacts": [f.path for f in client.list_artifacts(sys.argv[2])], "tags": parent.data.tags,
    "figures": [f.path for f in client.list_artifacts(sys.argv[2], "figures")],
    "datasets": [d.dataset.digest for d in parent.inputs.dataset_inputs],
    "children": [{
        "name": c.data.tags["mlflow.runName"], "status": c.info.status, "metrics": sorted(c.data.metrics),
        "losses": [[m.step, m.value] for m in client.get_metric_history(c.info.run_id, "train/loss")],
    } for c in children]}))
"""
    _, answer = undisturbed
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, answer["tracking"]["uri"], answer["tracking"]["run_id"]],
        capture_output=True, text=True, check=True, env=clean_environment(),
    )  # fmt: skip
    found = json.loads(done.stdout)
    final = answer["models"][-1]
    assert found["status"] == "FINISHED"
    assert found["metrics"]["test/h_mean"] == pytest.approx(final["h_mean"])
    assert found["metrics"]["test/recall_few"] == pytest.approx(final["few"])
    assert found["params"]["finetune.epochs"] == "4"
    assert {"experiment.json", "report.html", "report.json", "per_class_recall.json"} <= set(found["artifacts"])
    assert "figures/final.png" in found["figures"]
    assert found["tags"]["btm.report"] == answer["report"]
    assert found["tags"]["btm.prefect_run"] and answer["report"] in found["tags"]["mlflow.note.content"]
    assert len(set(found["datasets"])) == 2  # training and test
    epochs = {"pretrain": 6, "finetune": 4, "merge": 0, "post_train": 3}
    assert len(found["children"]) == 1 + 3 + 1 + 2
    for child in found["children"]:
        assert child["status"] == "FINISHED"
        assert [step for step, _ in child["losses"]] == list(range(1, 1 + epochs[child["name"].partition("/")[0]]))
        assert "test/h_mean" in child["metrics"]
        assert ("system/cpu_utilization_percentage" in child["metrics"]) == (not child["name"].startswith("merge"))


def test_a_second_run_trains_nothing_and_says_so(undisturbed: Undisturbed, btm: Btm) -> None:
    folder, answer = undisturbed
    before = artifact_digests(folder)
    done = btm("run", "digits-lt", *FAST, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Nothing was trained" in done.stdout
    assert done.stderr.count("found in the store") >= 7
    assert artifact_digests(folder) == before
    assert f"{100 * answer['models'][-1]['h_mean']:.1f}" in done.stdout


def test_a_change_re_runs_only_what_follows(undisturbed: Undisturbed, btm: Btm, tmp_path: Path) -> None:
    folder, answer = undisturbed
    shutil.copytree(folder / ".btm", tmp_path / ".btm")
    done = btm("run", "digits-lt", "--json", *FAST, "--set=post_train.smoothing_head=0.2", cwd=tmp_path)
    changed = json.loads(done.stdout)
    assert changed["trained_stages"] == ["post_train"]
    assert {"data", "pretrain", "sample", "finetune", "merge"} <= set(changed["cached_stages"])
    assert changed["artifacts"]["merge"].rpartition("/")[2] == answer["artifacts"]["merge"].rpartition("/")[2]
    assert changed["models"][0]["h_mean"] == answer["models"][0]["h_mean"]
    more = [*FAST, "--set=sampling.num_subsets=4", "--set=evaluation.baseline=false"]
    done = btm("run", "digits-lt", "--json", *more, cwd=tmp_path)
    grown = json.loads(done.stdout)
    assert grown["trained_stages"] == ["finetune", "post_train"]
    for index in range(3):  # the first three ingredients are those of before
        key = f"finetune/subset-{index:02d}"
        assert grown["artifacts"][key].rpartition("/")[2] == answer["artifacts"][key].rpartition("/")[2]
    assert "baseline" not in {row["stage"] for row in grown["models"]}


@pytest.mark.slow
def test_killed_at_every_stage_a_run_ends_as_if_undisturbed(
    undisturbed: Undisturbed, databases: Path, tmp_path: Path
) -> None:
    shutil.copytree(databases, tmp_path / ".btm")
    expected = artifact_digests(undisturbed[0])
    moments = [
        ("started", "data", 1), ("epoch", "pretrain", 3), ("started", "sample", 2), ("epoch", "finetune", 3),
        ("done", "finetune", 1), ("started", "merge", 1), ("epoch", "post_train", 2), ("started", "evaluate", 4),
    ]  # fmt: skip
    for event, stage, count in moments:
        done = crash(tmp_path, event, stage, count)
        assert done.returncode == -9, (event, stage, done.stderr)
        assert artifact_digests(tmp_path).items() <= expected.items()
    assert (tmp_path / ".btm/store/partial").is_dir()
    done = crash(tmp_path, "never", "-", 1)
    assert done.returncode == 0, done.stderr
    assert artifact_digests(tmp_path) == expected
    assert not list((tmp_path / ".btm/store/partial").rglob("*.safetensors"))


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(
    undisturbed: Undisturbed, databases: Path, tmp_path: Path
) -> None:
    shutil.copytree(databases, tmp_path / ".btm")
    done = crash(tmp_path, "worker", "finetune", 2)
    assert done.returncode == 0, done.stderr
    assert artifact_digests(tmp_path) == artifact_digests(undisturbed[0])


def crash(folder: Path, event: str, stage: str, count: int) -> "subprocess.CompletedProcess[str]":
    # One worker: how far the others are when one is struck would be a matter of luck.
    environment = {**clean_environment(), "BTM_CHECKPOINT_SECONDS": "0", "BTM_WORKERS": "1"}
    arguments = [str(CRASH), event, stage, str(count), "digits-lt", *FAST]
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_own_data_on_s3_with_fc_and_a_checkpoint(btm: Btm, databases: Path, s3: dict[str, str], tmp_path: Path) -> None:
    """Images and lists in S3, the store in S3, stage 1 from a checkpoint, the FC stage before BTM."""
    shutil.copytree(databases, tmp_path / ".btm")
    import s3fs

    root = write_digits(tmp_path / "images")
    write_lists(root)
    fs = s3fs.S3FileSystem(
        key=s3["AWS_ACCESS_KEY_ID"], secret=s3["AWS_SECRET_ACCESS_KEY"], endpoint_url=s3["AWS_ENDPOINT_URL_S3"]
    )
    fs.put(f"{root}/", "btm/own-data/", recursive=True)
    experiment = small_experiment(format="list", root="s3://btm/own-data", train="train.txt", test="test.txt")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(experiment))
    first = btm("run", "my.yaml", "--json", "--store", "s3://btm/store", cwd=tmp_path, **s3)
    assert first.returncode == 0, first.stderr
    answer = json.loads(first.stdout)
    assert answer["report"].startswith("s3://btm/store/runs/")
    assert fs.exists(answer["final_model"])
    fs.get(f"{answer['artifacts']['pretrain']}/model.safetensors", str(tmp_path / "stage1.safetensors"))

    experiment["data"] = {**experiment["data"], "root": str(root)}  # type: ignore[dict-item]
    experiment["pretrain"] = {"checkpoint": "stage1.safetensors"}
    experiment["fc"] = {"epochs": 1, "lr": 0.05}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(experiment))
    second = btm("run", "my.yaml", "--json", "--store", "s3://btm/store", cwd=tmp_path, **s3)
    assert second.returncode == 0, second.stderr
    local = json.loads(second.stdout)
    assert local["artifacts"]["data"] == answer["artifacts"]["data"]  # the same images, wherever they lie
    assert local["trained_stages"] == ["fc", "finetune", "post_train"]
    assert [row["stage"] for row in local["models"]].count("fc") == 1
    assert local["models"][0]["accuracy"] == answer["models"][0]["accuracy"]


@pytest.mark.slow
def test_large_images_stay_files(btm: Btm, databases: Path, tmp_path: Path) -> None:
    """random-resized-crop: images are decoded when they are used, not packed; worker counts make no difference."""
    shutil.copytree(databases, tmp_path / ".btm")
    root = write_digits(tmp_path / "images")
    experiment = small_experiment(format="image_folder", root=str(root))
    view = {"size": 12, "channels": 3, "augmentation": "random-resized-crop", "color_jitter": 0.2}
    experiment["data"] = {"format": "image_folder", "root": str(root), "input": view}
    experiment["model"] = {"backbone": "resnet20"}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(experiment))
    digests = []
    for workers in ("1", "2"):
        done = btm("run", "my.yaml", "--json", "--workers", workers, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        digests.append(artifact_digests(tmp_path))
        page = Path(json.loads(done.stdout)["report"].removeprefix("file://")).read_text()
        assert page.count("data:image/png;base64,") > 10  # images that are no pixels in the store are shown, too
        store = tmp_path / ".btm/store/artifacts"
        [data] = (store / "data").iterdir()
        assert sorted(path.name for path in data.iterdir()) == [
            *("dataset.json", "digests.safetensors", "labels.safetensors", "manifest.json", "test.txt", "train.txt")
        ]
        for stage in ("finetune", "merge", "post_train", "evaluate"):
            shutil.rmtree(store / stage)
    assert digests[0] == digests[1]

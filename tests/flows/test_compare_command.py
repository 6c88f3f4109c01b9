"""`btm compare` on what a real run left, on versions in a real MLflow registry, and on checkpoint files."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import FAST, Btm, clean_environment
from prefect_server import kill_tree
from safetensors.numpy import load_file, save_file
from seaweed import free_ports

from btm_core.evidence import Evidence
from btm_core.side_by_side import Evaluated, side_by_side
from btm_core.storage import Store
from btm_core.storage.folder import Folder
from flows import compare_command
from flows.printing import print_side_by_side
from tasks.evaluate import evidence_of

Undisturbed = tuple[Path, dict[str, Any]]
PASSWORD = "no/secret@all"


class Place(NamedTuple):
    """A folder with a store of one run, and what `btm run --json` said of it."""

    folder: Path
    run: dict[str, Any]

    def model(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(row for row in self.run["models"] if row["name"] == name)
        return found

    def checkpoint(self, name: str) -> Path:
        return self.folder / ".btm/store/artifacts" / self.model(name)["artifact"] / "model.safetensors"

    def artifacts(self) -> set[str]:
        root = self.folder / ".btm/store/artifacts"
        return {str(path.parent.relative_to(root)) for path in root.rglob("manifest.json")}


@pytest.fixture(scope="module")
def place(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A copy of the undisturbed run: what comparisons add to its store is no part of it."""
    folder, answer = undisturbed
    copy = tmp_path_factory.mktemp("compared") / "undisturbed"
    shutil.copytree(folder, copy)
    return Place(copy, answer)


def answer(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(done: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert all(part in done.stderr for part in parts), done.stderr


def test_models_of_a_run(btm: Btm, place: Place) -> None:
    run_id = place.run["run_id"]
    document = answer(btm("compare", f"{run_id}:stage 1", run_id[:-2], f"{run_id}: soup", "--json", cwd=place.folder))
    assert {"a", "b", "per_class", "summary", "others", "report"} <= set(document)
    [other] = document["others"]
    for side, name in ((document["a"], "stage 1"), (document["b"], "final"), (other["b"], "soup")):
        assert (side["kind"], side["name"]) == ("run", f"{run_id}, {name}")
        row = place.model(name)
        figures = ("h_mean", "g_mean", "lowest_recall", "accuracy", "mean_recall", "zero_recall_classes")
        for figure in (*figures, "many", "medium", "few", "split", "split_hash"):
            assert side[figure] == pytest.approx(row[figure]), figure
    assert document["b"]["spec"] == run_id[:-2]
    report = json.loads((place.folder / f".btm/store/runs/{run_id}/report.json").read_text())
    recall = report["classes"]["recall"]
    assert [row["a"] for row in document["per_class"]] == pytest.approx(recall["stage 1"])
    assert [row["b"] for row in document["per_class"]] == pytest.approx(recall["final"])
    assert [row["train_images"] for row in document["per_class"]] == report["classes"]["train_images"]
    assert all(row["low"] <= row["difference"] <= row["high"] for row in document["per_class"])
    page = Path(document["report"].removeprefix("file://"))
    assert page.is_relative_to(place.folder / ".btm/comparisons") and "C against A" in page.read_text()
    assert json.loads(page.with_name("compare.json").read_text()) == document
    assert page.with_name("compare.md").read_text().count("| H-mean |") == 2


def test_what_is_printed(btm: Btm, place: Place) -> None:
    run_id = place.run["run_id"]
    done = btm("compare", run_id, f"{run_id}:stage 1", "-o", "here", cwd=place.folder)
    assert done.returncode == 0, done.stderr
    document = json.loads((place.folder / "here/compare.json").read_text())
    first, worst = document["summary"]["h_mean"], document["summary"]["worse"][0]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["H-mean", f"{100 * first['a']:.1f}", f"{100 * first['b']:.1f}"] in [line[:3] for line in lines]
    row = document["per_class"][worst["class"]]
    shown = [row["name"], str(row["train_images"]), str(row["test_images"]), f"{100 * row['a']:.1f}"]
    assert shown in [line[:4] for line in lines]
    assert f"{len(document['summary']['new_zero_recall_classes'])} fell to zero" in done.stdout
    assert str(place.folder / "here/compare.html") in done.stdout


def test_more_models_than_there_are_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets, counts = np.repeat(np.arange(2), 3), np.array([9, 3])
    evidence = Evidence("test", "a" * 64, ("ash", "birch"), counts, counts, targets, targets)
    document = side_by_side([Evaluated(f"model {number}", evidence) for number in range(28)])
    document |= compare_command._write(document, Folder(str(tmp_path)))
    print_side_by_side(document, lost=10)
    page, text = (tmp_path / "compare.html").read_text(), (tmp_path / "compare.md").read_text()
    printed = capsys.readouterr().out
    for letters, number in {"B": 1, "Z": 25, "AA": 26, "AB": 27}.items():
        assert f'id="{letters}">{letters} against A</h2>' in page and f"<b>{letters}</b> model {number}<br>" in page
        assert f"**{letters}** model {number} (model)" in text
        assert f"{letters}  model {number}  (model)" in printed and f"{letters} against A" in printed


def test_names_that_are_none(btm: Btm, place: Place) -> None:
    run_id, folder = place.run["run_id"], place.folder
    shutil.copytree(folder / ".btm/store/runs" / run_id, folder / ".btm/store/runs" / f"{run_id}x")
    refused(btm("compare", run_id, run_id[:5], cwd=folder), "say more of the name", f"{run_id}x")
    shutil.rmtree(folder / ".btm/store/runs" / f"{run_id}x")
    refused(btm("compare", run_id, f"3{run_id[1:]}", cwd=folder), "did you mean", run_id)
    refused(btm("compare", run_id, "zzz", cwd=folder), "no run 'zzz'", "btm store ls")
    refused(btm("compare", run_id, f"{run_id}:soop", cwd=folder), "has no model 'soop'; it has ", "stage 1", "soup")
    refused(
        btm("compare", run_id, "old.pth.tar", cwd=folder),
        "old.pth.tar is no safetensors file: make one of it with btm import-checkpoint old.pth.tar",
    )
    refused(btm("compare", run_id, "absent.safetensors", cwd=folder), "absent.safetensors", "does not exist")
    refused(
        btm("compare", run_id, "models:/species", cwd=folder),
        "'models:/species' names no version of a registered model: say",
    )
    refused(btm("compare", run_id, "s3://key:hidden@b/x.safetensors", cwd=folder), "s3://***@b", "credentials")
    refused(btm("compare", run_id, cwd=folder), "name at least two models to compare")
    refused(
        btm("compare", run_id, run_id, "--set=seed=1", cwd=folder),
        "--set changes the experiment of --data, and none is named: add",
    )


def test_a_run_without_figures_says_why(btm: Btm, place: Place) -> None:
    store = Store(str(place.folder / ".btm/store"))
    store.write(b"{}", "runs", "half", "journal.json")
    table = {"name": "x", "runs": [{"run_id": "one-seed0"}, {"run_id": "one-seed1"}]}
    store.write(json.dumps(table).encode(), "runs", "table", "comparison.json")
    refused(
        btm("compare", place.run["run_id"], "half", cwd=place.folder),
        "half has no report in",
        ": it has not ended; run it again to its end",
    )
    refused(
        btm("compare", place.run["run_id"], "table", cwd=place.folder),
        "table is a table over several runs; take one of its runs: one-seed0",
    )
    store.remove("runs", "half")
    store.remove("runs", "table")


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_once(btm: Btm, place: Place) -> None:
    """The file is the run's own final model, so that it must do exactly as that one did."""
    folder, run_id = place.folder, place.run["run_id"]
    shutil.copy(place.checkpoint("final"), folder / "final.safetensors")
    before = place.artifacts()
    document = answer(btm("compare", run_id, "final.safetensors", "--json", cwd=folder))
    assert (document["b"]["kind"], document["b"]["name"]) == ("checkpoint", "final.safetensors")
    assert all(row["a"] == row["b"] and row["low"] == row["high"] == 0 for row in document["per_class"])
    assert document["summary"]["worse"] == document["summary"]["better"] == []
    made = place.artifacts() - before
    assert {address.partition("/")[0] for address in made} == {"pretrain", "evaluate"}
    done = btm("compare", run_id, (folder / "final.safetensors").as_uri(), "--json", cwd=folder)
    assert answer(done)["summary"] == document["summary"]
    assert place.artifacts() - before == made and " done" not in done.stderr


@pytest.mark.slow
def test_a_checkpoint_needs_data_that_fit(btm: Btm, place: Place) -> None:
    folder = place.folder
    shutil.copy(place.checkpoint("soup"), folder / "soup.safetensors")
    refused(btm("compare", "soup.safetensors", "soup.safetensors", cwd=folder), "on what: give --data PRESET|FILE")
    tensors = load_file(folder / "soup.safetensors")
    save_file(tensors, folder / "plain.safetensors")  # no metadata: the experiment tells the architecture
    document = answer(btm("compare", "soup.safetensors", "plain.safetensors", "--data=digits-lt", "--json", cwd=folder))
    assert document["a"]["h_mean"] == document["b"]["h_mean"] == pytest.approx(place.model("soup")["h_mean"])
    save_file({k: v for k, v in tensors.items() if k != "head.bias"}, folder / "broken.safetensors")
    done = btm("compare", "soup.safetensors", "broken.safetensors", "--data=digits-lt", cwd=folder)
    refused(done, "broken.safetensors", "another architecture", "missing: head.bias")
    assert "scratch" not in done.stderr


@pytest.mark.slow
def test_runs_on_other_images_are_compared_on_one_split(btm: Btm, place: Place) -> None:
    folder, run_id = place.folder, place.run["run_id"]
    other = btm("run", "digits-lt", "--json", *FAST, "--set=data.split_seed=5", "--set=pretrain.epochs=2", cwd=folder)
    other_id = answer(other)["run_id"]
    done = btm("compare", run_id, other_id, cwd=folder)
    refused(done, f"{run_id} and {other_id} cannot be compared", "other images", "give --data PRESET|FILE")
    before = place.artifacts()
    document = answer(btm("compare", run_id, other_id, "--data=digits-lt", "--json", cwd=folder))
    assert document["a"]["h_mean"] == pytest.approx(place.model("final")["h_mean"])
    assert document["a"]["split_hash"] == document["b"]["split_hash"] == place.model("final")["split_hash"]
    [made] = place.artifacts() - before  # the run's own evaluation, on these very data, was found
    assert made.startswith("evaluate/")


class Registry(NamedTuple):
    """Where models are registered: what a command has to know, and a file system folder that a server would hide."""

    environment: dict[str, str]
    folder: Path


@pytest.fixture(scope="module", params=["sqlite", "server"])
def registry(
    request: pytest.FixtureRequest, place: Place, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """A registry whose model `digits` has version 1, of stage 1, called champion, and version 2, without evidence."""
    folder = tmp_path_factory.mktemp("registry")
    if request.param == "sqlite":
        found = Registry({"BTM_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}, folder)
        register(found, place)
        yield found
        return
    [port] = free_ports(1)
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = btm\nadmin_password = unused\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    command = ["-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "x" * 20}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *command, "--app-name", "basic-auth", "--workers", "1"],
            cwd=folder,
            env={**clean_environment(), **secrets, "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, folder / "server.log")
        quoted = PASSWORD.replace("/", "%2F").replace("@", "%40")
        found = Registry({"BTM_TRACKING_URI": f"http://btm:{quoted}@127.0.0.1:{port}"}, folder)
        register(found, place)
        yield found
    finally:
        kill_tree(server.pid)
        server.wait()


def wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text()[-2000:]) from None
            time.sleep(0.2)


REGISTER = """
import sys, mlflow
from tasks.tracking import mlflow_client
client = mlflow_client(sys.argv[1])
mlflow.set_tracking_uri(client.tracking_uri)
for artifacts in ({"evidence": sys.argv[2], "weights": sys.argv[3]}, None):
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model", python_model="model.py", artifacts=artifacts, pip_requirements=["mlflow"],
            registered_model_name="digits",
        )
client.set_registered_model_alias("digits", "champion", "1")
"""
MODEL = """
import mlflow
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str]):
        return model_input
mlflow.models.set_model(Model())
"""


def register(registry: Registry, place: Place) -> None:
    """Register stage 1 of the run in a process of its own: MLflow keeps its tracking URI for the whole process."""
    store = Store(str(place.folder / ".btm/store"))
    evaluation = store.find(place.model("stage 1")["evaluation"])
    assert evaluation is not None
    evidence = registry.folder / "evidence.safetensors"
    evidence_of(store, evaluation).save(evidence)
    (registry.folder / "model.py").write_text(MODEL)
    arguments = [registry.environment["BTM_TRACKING_URI"], str(evidence), str(place.checkpoint("stage 1"))]
    done = subprocess.run(
        [sys.executable, "-c", REGISTER, *arguments],
        cwd=registry.folder,
        env={**clean_environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_registered_version(btm: Btm, place: Place, registry: Registry) -> None:
    run_id = place.run["run_id"]
    specs = ["models:/digits@champion", run_id, "digits/1", "models:/digits/1", "digits@champion"]
    done = btm("compare", *specs, "--json", cwd=place.folder, **registry.environment)
    document = answer(done)
    assert [document["a"][key] for key in ("spec", "kind", "name")] == [specs[0], "version", "digits, version 1"]
    assert document["a"]["h_mean"] == pytest.approx(place.model("stage 1")["h_mean"])
    assert document["b"]["h_mean"] == pytest.approx(place.model("final")["h_mean"])
    for other in document["others"]:
        assert other["b"]["name"] == "digits, version 1" and not any(row["difference"] for row in other["per_class"])
    texts = [done.stderr, *(path.read_text() for path in (place.folder / ".btm/comparisons").rglob("compare.*"))]
    assert not any(PASSWORD in text or "%2Fsecret" in text for text in texts)


def test_a_registered_version_on_other_data(btm: Btm, place: Place, registry: Registry) -> None:
    options = ["--data=digits-lt", "--set=data.split_seed=7", "--json"]
    specs = ["digits/1", f"{place.run['run_id']}:stage 1"]
    document = answer(btm("compare", *specs, *options, cwd=place.folder, **registry.environment))
    assert document["a"]["split_hash"] != place.model("stage 1")["split_hash"]
    assert document["summary"]["accuracy"]["difference"] == 0
    assert np.isfinite(document["a"]["h_mean"])


def test_versions_that_are_none(btm: Btm, place: Place, registry: Registry) -> None:
    def compare(spec: str) -> "subprocess.CompletedProcess[str]":
        return btm("compare", place.run["run_id"], spec, cwd=place.folder, **registry.environment)

    refused(compare("digit/1"), "no model 'digit'", "did you mean", "digits")
    refused(compare("digits/7"), "digits has no version 7; it has 1, 2")
    refused(compare("digits@challenger"), "no version called 'challenger'; it has champion")
    done = compare("digits/2")
    refused(done, "digits, version 2 has no artifacts/evidence.safetensors", "--data")
    assert "%2Fsecret" not in done.stderr


def test_a_registry_that_is_not_there(btm: Btm, place: Place, tmp_path: Path) -> None:
    for uri, part in (
        (f"sqlite:///{tmp_path}/absent.db", "set MLFLOW_TRACKING_URI to the one that has"),
        ("http://127.0.0.1:9", "MLflow at http://127.0.0.1:9 cannot be asked for"),
    ):
        environment = {"BTM_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        done = btm("compare", place.run["run_id"], "digits/1", cwd=place.folder, **environment)
        refused(done, part, "digits/1")
    assert not (tmp_path / "absent.db").exists()

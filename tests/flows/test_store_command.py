"""`btm store` on stores with known contents, on a local disk and on a real S3 server, and on what a real run left."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pytest
from conftest import Btm, clean_environment
from stores import address, aged, forge_run, make

from btm_core.storage import Store


class Place(NamedTuple):
    """A store, and how a command reaches it."""

    store: Store
    environment: dict[str, str]
    folder: Path


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Artifacts data <- base <- soup, other, lone; a run that is done with soup, one that failed with other."""
    environment = {}
    if request.param == "s3":
        environment = dict(request.getfixturevalue("s3"))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
    store = Store(str(tmp_path / "store") if request.param == "file" else f"s3://btm/{tmp_path.name}")
    for name, *parents in ("data",), ("base", "data"), ("soup", "base"), ("other", "base"), ("lone",):
        make(store, tmp_path, name, *parents)
    forge_run(store, "20260102-done", "soup", lost=("never",))
    forge_run(store, "20260103-failed", "other", state="failed")
    yield Place(store, {**environment, "BTM_STORE": store.url}, tmp_path)
    fsspec.filesystem("s3").clear_instance_cache()


def answer(done: "subprocess.CompletedProcess[str]", code: int = 0) -> dict[str, Any]:
    assert done.returncode == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(done: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert all(part in done.stderr for part in parts), done.stderr


def test_ls(btm: Btm, place: Place) -> None:
    store, environment, folder = place
    store.write(b"x", "artifacts", address("half"), "model.bin")
    store.write(b"x", "partial", address("half"), "state-0.safetensors")
    document = answer(btm("store", "ls", "--json", cwd=folder, **environment))
    runs = {row["run_id"]: row for row in document["runs"]}
    assert {run_id: row["state"] for run_id, row in runs.items()} == {
        "20260102-done": "done",
        "20260103-failed": "failed",
    }
    rows = {row["address"]: row for row in document["artifacts"]}
    needed = [rows[address(name)] for name in ("data", "base", "soup")]
    assert runs["20260102-done"]["bytes"] == sum(row["bytes"] for row in needed)
    assert runs["20260102-done"]["artifacts"] == 3
    assert [row["runs"] for row in needed] == [2, 2, 1]
    assert rows[address("lone")]["notes"] == ["unreferenced"]
    assert rows[address("half")]["notes"] == ["half: it has no manifest", "unreferenced"]
    assert all(0 <= row["age_hours"] < 1 for row in rows.values())
    totals = document["totals"]
    assert (totals["runs"], totals["artifacts"], totals["unreferenced"], totals["stages_under_way"]) == (2, 6, 2, 1)
    assert totals["bytes"] == sum(row["bytes"] for row in rows.values())
    printed = btm("store", "ls", "--artifacts", cwd=folder, **environment).stdout
    assert all(name in printed for name in rows)
    assert "20260102-done" not in printed


def test_show(btm: Btm, place: Place) -> None:
    store, environment, folder = place
    run = answer(btm("store", "show", "20260102", "--json", cwd=folder, **environment))
    assert run["report"] == f"{store.url}/runs/20260102-done/report.html"
    notes = {row["address"]: row["notes"] for row in run["artifacts"]}
    assert notes == {address("data"): [], address("base"): [], address("soup"): [], address("never"): ["never made"]}
    printed = btm("store", "show", "20260102", cwd=folder, **environment).stdout
    assert run["report"] in printed and "75.0" in printed and address("soup") in printed
    url = store.locate("artifacts", address("base"), "model.bin")
    document = answer(btm("store", "show", url, "--json", cwd=folder, **environment))
    assert document["parents"] == {"parent[0]": address("data")}
    assert document["children"] == [address("other"), address("soup")]
    assert document["runs"] == ["20260102-done", "20260103-failed"]
    assert {file["name"] for file in document["files"]} == {"manifest.json", "model.bin", "records.jsonl"}
    assert address("data") in btm("store", "show", "finetune/base", cwd=folder, **environment).stdout
    refused(btm("store", "show", "2026", cwd=folder, **environment), "20260102-done", "20260103-failed")
    refused(btm("store", "show", "20260112-done", cwd=folder, **environment), "did you mean", "20260102-done")
    refused(btm("store", "show", "zzz", cwd=folder, **environment), "has no run or artifact 'zzz'", "btm store ls")


def test_verify_finds_every_kind_of_damage_and_marks_it(btm: Btm, place: Place) -> None:
    store, environment, folder = place
    sound = answer(btm("store", "verify", "--json", cwd=folder, **environment))
    assert (sound["artifacts"], sound["damaged"], sound["leftovers"]) == (5, [], [])
    assert sound["bytes"] == sum(len(name) * 10 + 2 for name in ("data", "base", "soup", "other", "lone"))
    store.write(b"DATA" * 10, "artifacts", address("data"), "model.bin")  # of the right size
    store.write(b"soup", "artifacts", address("soup"), "model.bin")
    store.remove("artifacts", address("other"), "records.jsonl")
    store.write(b"{", "artifacts", address("lone"), "manifest.json")
    store.write(b"x", "artifacts", address("base"), "stray.bin")
    store.write(b"x", "artifacts", address("half"), "model.bin")
    done = btm("store", "verify", "--json", cwd=folder, **environment)
    found = {finding["address"]: finding["problems"] for finding in answer(done, 1)["damaged"]}
    assert set(found) == {address(name) for name in ("data", "soup", "other", "lone")}
    assert "sha256" in found[address("data")][0]
    assert "4 bytes" in found[address("soup")][0]
    assert "records.jsonl is gone" in found[address("other")][0]
    assert "cannot be understood" in found[address("lone")][0]
    assert json.loads(done.stdout)["leftovers"] == [
        f"artifacts/{address('base')}/stray.bin",
        f"artifacts/{address('half')}/model.bin",
    ]
    one = answer(btm("store", "verify", "finetune/soup", "--json", cwd=folder, **environment), 1)
    assert [finding["address"] for finding in one["damaged"]] == [address("soup")]
    printed = btm("store", "verify", "--mark", cwd=folder, **environment)
    assert printed.returncode == 1 and "makes them again" in printed.stdout
    assert [store.find(address(name)) for name in ("data", "soup", "other", "lone")] == [None] * 4
    assert store.find(address("base")) is not None
    make(store, folder, "soup", "base")
    make(store, folder, "data")
    run = answer(btm("store", "verify", "20260102", "--json", cwd=folder, **environment))
    assert (run["damaged"], run["artifacts"]) == ([], 3)


def test_verify_misses_what_is_gone(btm: Btm, place: Place) -> None:
    store, environment, folder = place
    store.remove("artifacts", address("soup"))
    document = answer(btm("store", "verify", "--json", cwd=folder, **environment), 1)
    assert [(row["address"], row["problems"], row["runs"]) for row in document["damaged"]] == [
        (address("soup"), ["it is gone"], ["20260102-done"])
    ]
    for options in ((), ("--mark",)):
        printed = btm("store", "verify", *options, cwd=folder, **environment).stdout
        assert printed.endswith("1 is not whole.\nThe next run of the same command makes it again.\n")
    store.write(b"DATA" * 10, "artifacts", address("data"), "model.bin")  # of the right size
    printed = btm("store", "verify", cwd=folder, **environment).stdout
    assert (
        "2 are not whole." in printed and "makes them again, once what still counts as whole (1) is marked" in printed
    )
    printed = btm("store", "verify", "--mark", cwd=folder, **environment).stdout
    assert printed.endswith("The next run of the same command makes them again.\n")


def test_gc_tells_first_and_deletes_when_told_to(btm: Btm, place: Place) -> None:
    store, environment, folder = place
    options = ("store", "gc", "--json", "--ignore-registry")
    assert answer(btm(*options, cwd=folder, **environment))["garbage"] == []  # all of it is young
    told = answer(btm(*options, "--grace=0", cwd=folder, **environment))
    names = {(item["kind"], item["name"]) for item in told["garbage"]}
    assert names == {("artifact", address("other")), ("artifact", address("lone")), ("run", "20260103-failed")}
    assert told["bytes"] > 0 and not told["deleted"]
    assert store.find(address("lone")) is not None
    printed = btm("store", "gc", "--ignore-registry", "--grace=0", cwd=folder, **environment).stdout
    assert "Would delete 3 things" in printed and "only runs without a result refer to it: 20260103-failed" in printed
    done = answer(btm(*options, "--grace=0", "--delete", cwd=folder, **environment))
    assert done["garbage"] == told["garbage"] and done["deleted"]
    left = answer(btm("store", "ls", "--json", cwd=folder, **environment))
    assert [row["address"] for row in left["artifacts"]] == sorted(address(n) for n in ("data", "base", "soup"))
    assert answer(btm("store", "verify", "--json", cwd=folder, **environment))["damaged"] == []


def test_gc_goes_by_the_age_of_files(btm: Btm, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    make(store, tmp_path, "old")
    aged(tmp_path / "store", 49)
    make(store, tmp_path, "new")
    options = ("store", "gc", "--json", "--ignore-registry", "--store=store")
    assert answer(btm(*options, cwd=tmp_path))["garbage"] == []
    [item] = answer(btm(*options, "--grace=48", cwd=tmp_path))["garbage"]
    assert item["name"] == address("old") and 49 <= item["age_hours"] < 50


@pytest.mark.parametrize("hours", ["inf", "nan", "1e30", "-1"])
def test_gc_takes_hours_that_are_a_time(btm: Btm, tmp_path: Path, hours: str) -> None:
    (tmp_path / "store").mkdir()
    refused(btm("store", "gc", f"--grace={hours}", "--store=store", cwd=tmp_path), "Invalid value for '--grace'")


def test_a_run_that_is_not_understood_is_one_row(btm: Btm, place: Place) -> None:
    store, environment, folder = place
    store.write(b'{"name": "x", "models": 5}', "runs", "20260101-odd", "run.json")
    rows = answer(btm("store", "ls", "--json", cwd=folder, **environment))["runs"]
    assert {row["run_id"]: row["state"] for row in rows}["20260101-odd"] == "unreadable" and len(rows) == 3
    printed = btm("store", "ls", "--runs", cwd=folder, **environment).stdout
    assert "20260101-odd: run.json cannot be understood: models: " in printed
    advice = "btm store rm 20260101-odd --delete"
    refused(btm("store", "show", "20260101", cwd=folder, **environment), "run.json cannot be understood", advice)
    options = ("--ignore-registry", "--delete")
    refused(btm("store", "gc", "--grace=0", *options, cwd=folder, **environment), "is not known", advice)
    assert store.find(address("lone")) is not None
    assert btm("store", "rm", "20260101-odd", *options, cwd=folder, **environment).returncode == 0
    assert answer(btm("store", "gc", "--grace=0", *options, "--json", cwd=folder, **environment))["garbage"] != []


def behind(prefix: list[str], *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line below another command; skips the test where that one is not allowed."""
    if not shutil.which(prefix[0]) or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{prefix[0]} cannot be used here")
    command = [*prefix, sys.executable, "-m", "flows.cli", "store", *arguments, "--store=store"]
    return subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False)


def test_a_read_only_disk_can_be_looked_at(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    make(store, tmp_path, "lone")
    forge_run(store, "run", state="failed")
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    read_only = ["unshare", "-rm", "sh", "-c", mount, str(tmp_path / "store")]
    gc = ("gc", "--grace=0", "--ignore-registry", "--json")
    for looking in (("ls", "--json"), ("show", "run", "--json"), ("verify", "--json"), gc):
        answer(behind(read_only, *looking, cwd=tmp_path))
    refused(behind(read_only, *gc, "--delete", cwd=tmp_path), "read-only")
    assert store.find(address("lone")) is not None


@pytest.mark.parametrize("locked", ["runs", "runs/run", "runs/run/journal.json", "artifacts/finetune"])
def test_what_cannot_be_read_stops_gc(tmp_path: Path, locked: str) -> None:
    store = Store(str(tmp_path / "store"))
    make(store, tmp_path, "needed")
    forge_run(store, "run", "needed")
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else ["env"]
    path = tmp_path / "store" / locked
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        done = behind(prefix, "gc", "--grace=0", "--ignore-registry", "--delete", cwd=tmp_path)
    finally:
        path.chmod(mode)
    refused(done, "access is denied", locked)
    assert store.check(address("needed")) == []


def test_gc_deletes_nothing_without_the_registry(btm: Btm, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    make(store, tmp_path, "lone")
    options = ("store", "gc", "--grace=0", "--store=store")
    refused(
        btm(*options, "--delete", cwd=tmp_path),
        "there is no MLflow at",
        "set MLFLOW_TRACKING_URI to the one that runs of this store are tracked with",
        "--ignore-registry",
    )
    down = {"MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = btm(*options, "--delete", cwd=tmp_path, **down)
    refused(
        done,
        "MLflow at http://***@127.0.0.1:1 cannot be asked",
        "check MLFLOW_TRACKING_URI, or, if no model was ever registered, say --ignore-registry",
    )
    told = btm(*options, cwd=tmp_path, **down)
    assert told.returncode == 0 and "Would delete 1 thing" in told.stdout and "would be refused" in told.stderr
    assert store.find(address("lone")) is not None


def test_rm_forgets_a_run(btm: Btm, place: Place) -> None:
    store, environment, folder = place
    options = ("store", "rm", "20260102-done", "--ignore-registry")
    told = btm(*options, cwd=folder, **environment)
    assert "Would forget: 20260102-done" in told.stdout and "1 artifact" in told.stdout
    assert store.read("runs", "20260102-done", "run.json") is not None
    document = answer(btm(*options, "--delete", "--json", cwd=folder, **environment))
    assert document["freed_artifacts"] == [address("soup")]
    assert list(store.walk("runs", "20260102-done")) == []
    refused(
        btm("store", "rm", "finetune/soup", "--ignore-registry", cwd=folder, **environment),
        "'finetune/soup' is an artifact: `btm store gc` deletes those, when no run refers to them",
    )
    forge_run(store, "20260104-running", "lone", state="running")
    refused(
        btm("store", "rm", "20260104", "--ignore-registry", cwd=folder, **environment),
        "run 20260104-running is under way; stop it first",
    )


def test_what_a_registered_model_needs_is_kept(btm: Btm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.settings import RuntimeSettings
    from tasks.tracking import mlflow_client

    store = Store(str(tmp_path / "store"))
    for name in ("kept", "lost", "tagged", "lone"):
        make(store, tmp_path, name)
    forge_run(store, "20260102-kept", "kept")
    forge_run(store, "20260103-free", "lone")
    settings = RuntimeSettings(home=tmp_path / ".btm", store=str(tmp_path / "store"))
    (tmp_path / ".btm").mkdir()
    client = mlflow_client(settings.mlflow_uri)
    experiment = client.create_experiment("btm", artifact_location=(tmp_path / "mlartifacts").as_uri())

    def register(model: str, source: str, **tags: str) -> str:
        run: str = client.create_run(experiment, tags=tags).info.run_id
        client.create_registered_model(model)
        client.create_model_version(model, source, run_id=run)
        return run

    register("one", "s3://x/model", **{"btm.run_id": "20260102-kept", "btm.store": store.url})
    gone = register("two", "s3://x/model", **{"btm.run_id": "20260101-gone", "btm.store": store.url})
    register("three", store.locate("artifacts", address("tagged"), "model.bin"))
    register("four", "s3://x/model", **{"btm.run_id": "of-another-store", "btm.store": "s3://elsewhere"})
    options = ("store", "gc", "--grace=0", "--store=store", "--json")
    refused(btm(*options, "--delete", cwd=tmp_path), "registered model two, version 1 needs run 20260101-gone")
    client.log_dict(gone, {"lineage": [{"address": address("lost")}]}, "report.json")
    refused(
        btm("store", "rm", "20260102", "--store=store", "--delete", cwd=tmp_path),
        "run 20260102-kept is needed by registered model one, version 1; delete that first",
    )
    assert btm("store", "rm", "20260103", "--store=store", "--delete", cwd=tmp_path).returncode == 0
    shutil.rmtree(tmp_path / "store/runs/20260102-kept")  # by hand
    client.log_dict(client.search_model_versions("name='one'")[0].run_id, {"of": address("kept")}, "report.json")
    document = answer(btm(*options, "--delete", cwd=tmp_path))
    assert [item["name"] for item in document["garbage"]] == [address("lone")]
    assert set(document["registry"]["addresses"]) == {address(name) for name in ("kept", "lost", "tagged")}


def test_a_store_that_is_not_there_is_named(btm: Btm, tmp_path: Path, s3: dict[str, str]) -> None:
    refused(
        btm("store", "ls", "--store=absent", cwd=tmp_path), f"there is no store at {(tmp_path / 'absent').as_uri()}"
    )
    wrong = {**s3, "AWS_SECRET_ACCESS_KEY": "wrong"}
    refused(btm("store", "ls", "--store=s3://btm/x", cwd=tmp_path, **wrong), "s3://btm/x")
    empty = answer(btm("store", "ls", "--json", "--store=s3://btm/nothing-here", cwd=tmp_path, **s3))
    assert empty["runs"] == empty["artifacts"] == []


@pytest.mark.slow
def test_a_real_run(btm: Btm, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, result = undisturbed
    document = answer(btm("store", "ls", "--json", cwd=folder))
    run = next(row for row in document["runs"] if row["run_id"] == result["run_id"])
    assert (run["state"], run["experiment"], run["seed"]) == ("done", "digits-lt", 0)
    assert run["artifacts"] == len(document["artifacts"])
    assert all(row["runs"] and not row["notes"] for row in document["artifacts"])
    assert document["totals"]["stages_under_way"] == 0
    shown = answer(btm("store", "show", result["run_id"], "--json", cwd=folder))
    assert shown["report"] == result["report"]
    assert {url.rpartition("artifacts/")[2] for url in result["artifacts"].values()} <= {
        row["address"] for row in shown["artifacts"]
    }
    assert [model["h_mean"] for model in shown["models"]] == [model["h_mean"] for model in result["models"]]
    verdict = answer(btm("store", "verify", "--json", cwd=folder))
    assert (verdict["artifacts"], verdict["leftovers"]) == (run["artifacts"], [])
    assert answer(btm("store", "gc", "--grace=0", "--json", cwd=folder))["garbage"] == []

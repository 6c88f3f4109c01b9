"""`btm doctor`: it finds what is wrong with a machine and its settings, and leaves nothing behind."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Btm

from flows.doctor import checks
from flows.doctor.checks import Check, packages, processor, space, store, variables
from tasks.settings import RuntimeSettings


def states(document: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in document["checks"]}


def test_a_machine_that_is_well(btm: Btm, tmp_path: Path) -> None:
    done = btm("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert document["ok"] and "fail" not in states(document).values()
    assert {
        "Python",
        "packages",
        "torch",
        "workers",
        "memory",
        "cache",
        "store",
        "Prefect",
        "MLflow",
        "settings",
    } <= set(states(document))
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_is_not_well(btm: Btm, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nobody = "http://127.0.0.1:9"
    done = btm(
        *("doctor", "--store", "file/store"),
        cwd=tmp_path,
        PREFECT_API_URL=f"{nobody}/api",
        MLFLOW_TRACKING_URI=nobody.replace("://", "://name:secret@"),
        CUDA_VISIBLE_DEVICES="0",
        BTM_WORKER="3",
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "Failed: GPU, store, Prefect, MLflow."
    words = " ".join(done.stdout.split())
    for part in (
        "1 GPUs are visible, torch",
        "set BTM_DEVICE=cpu to say that you mean it",
        "file is a file, not a folder",
        "(PREFECT_API_URL) cannot be reached",
        "nobody reads BTM_WORKER -> did you mean BTM_WORKERS?",
    ):
        assert part in words, part
    assert "secret" not in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_versions_that_do_not_work_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages()[0].state == "ok"
    really = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.1.3" if name == "sqlalchemy" else really(name))
    first = packages()[0]
    assert first.state == "fail" and "never starts a scheduled run" in first.found


def test_extras_are_only_missed_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    really = metadata.version

    def without_ray(name: str) -> str:
        if name == "ray":
            raise metadata.PackageNotFoundError(name)
        return really(name)

    monkeypatch.setattr(metadata, "version", without_ray)
    for engine, state in (("local", "ok"), ("ray", "fail")):
        [row] = [row for row in packages(engine) if row.name == "extra ray"]
        assert (row.state, row.todo) == (state, 'pip install "btm[ray]"')


class Usage(NamedTuple):
    free: float


@pytest.mark.parametrize(("free", "state"), [(1e8, "fail"), (1e9, "warn"), (1e10, "ok")])
def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free))
    assert space("home", tmp_path / "not" / "there").state == state
    assert store(RuntimeSettings(store=str(tmp_path))).state == state


def test_a_store_that_is_there(tmp_path: Path) -> None:
    found = store(RuntimeSettings(store=str(tmp_path)))
    assert found.state == "ok" and "can be written and read" in found.found
    assert list(tmp_path.iterdir()) == []


def test_more_threads_than_cores() -> None:
    settings = RuntimeSettings(device="cpu", workers=500)
    assert processor(settings).state == "warn" and processor(settings.model_copy(update={"workers": 1})).state == "ok"


def test_settings_without_secrets() -> None:
    given = {"BTM_STORE": "s3://user:pass@bucket", "BTM_STORE_REGION": "eu", "BTM_SERVE_URLS": "x", "HOME": "/"}
    found = variables(given)
    assert found.state == "ok" and "BTM_STORE_REGION=eu" in found.found and "pass" not in found.found


def test_a_check_that_stumbles_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Check]:
        raise RuntimeError("broken")

    [row] = checks._carefully(broken)
    assert row.state == "fail" and "RuntimeError: broken" in row.found

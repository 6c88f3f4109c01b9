"""What a command does before its flow runs: what it imports, and what it starts and does not leave behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from conftest import FAST, Btm, clean_environment

from btm_core.config import load_experiment
from btm_core.data import scan
from tasks.engines.pool import pool_of
from tasks.settings import RuntimeSettings

HEAVY = {"torch", "prefect", "mlflow", "sklearn", "scipy", "pandas", "matplotlib"}
WATCHED = """
import json, sys
started, opened = [], []
def hear(event, values):
    if event == "subprocess.Popen":
        started.append(list(map(str, values[1])))
    elif event == "open":
        opened.append(str(values[0]))
sys.addaudithook(hear)
from flows.cli import main
report, *sys.argv[1:] = sys.argv[1:]
try:
    main()
finally:
    with open(report, "w") as file:
        json.dump({"modules": list(sys.modules), "started": started, "opened": opened}, file)
"""


class Report(NamedTuple):
    """What the process of a command did."""

    modules: list[str]
    started: list[list[str]]
    """The processes, by their arguments."""
    opened: list[str]


def watched(folder: Path, *arguments: str) -> Report:
    """Run a command, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "report.json", *arguments],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Report(**json.loads((folder / "report.json").read_text()))


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["presets"], ["store", "ls"]])
def test_what_computes_nothing_imports_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    (tmp_path / ".btm" / "store").mkdir(parents=True)
    report = watched(tmp_path, *command)
    assert "flows.cli" in report.modules
    assert HEAVY.isdisjoint(report.modules)
    assert report.started == []


def test_a_run_that_finds_everything_neither_imports_nor_starts_what_trains(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[0] / ".btm", tmp_path / ".btm")
    report = watched(tmp_path, "run", "digits-lt", *FAST)
    assert {"prefect", "mlflow"} <= set(report.modules)
    # Scikit-learn's digits are read without it (SciPy comes with MLflow), and Prefect's server is another process.
    assert {"torch", "sklearn", "prefect.server.api.server"}.isdisjoint(report.modules)
    assert [command for command in report.started if "flows.own_server" in command]
    assert not [command for command in report.started if "tasks.engines.worker" in command]
    assert len([path for path in report.opened if path.endswith("digits.csv.gz")]) == 1  # scanned once


def test_a_worker_is_started_early_if_stage_1_is_to_be_trained(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from flows.warm import warm_worker

    experiment = load_experiment("digits-lt", [option.removeprefix("--set=") for option in FAST])
    catalog = scan(experiment.data)

    def warmed(home: Path, **more: Any) -> int:
        settings = RuntimeSettings(home=home, device="cpu", workers=2, **more)
        warm_worker(experiment, settings, catalog)
        return sum(worker.pid is not None for worker in pool_of(settings).queue)

    shutil.copytree(undisturbed[0] / ".btm", tmp_path / "full")
    assert warmed(tmp_path / "full") == 0
    shutil.rmtree(tmp_path / "full/store/artifacts/pretrain")
    assert warmed(tmp_path / "full") == 1
    assert warmed(tmp_path / "empty") == 1
    assert warmed(tmp_path / "elsewhere", engine="ray") == 0


SERVING = """
import sys
from pathlib import Path
from flows.environment import prepare_prefect, server_ready, server_stays
from tasks.settings import RuntimeSettings
prepare_prefect(Path(".btm"))
server = server_ready(RuntimeSettings())
server.wait()
from prefect import get_client
with get_client(sync_client=True) as client:
    assert client.api_healthcheck() is None and not server_stays()
print(server._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["exit", "kill -9"])
def test_the_server_of_a_run_ends_with_it(end: str, tmp_path: Path, databases: Path) -> None:
    shutil.copytree(databases, tmp_path / ".btm")
    command = [sys.executable, "-c", SERVING]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin and run.stdout
        server = psutil.Process(int(run.stdout.readline()))
        if end == "exit":
            run.stdin.close()
            assert run.wait() == 0
            assert not server.is_running()
        else:
            os.kill(run.pid, signal.SIGKILL)
            assert psutil.wait_procs([server], timeout=30)[1] == []


def test_a_server_that_does_not_start_is_told(btm: Btm, tmp_path: Path) -> None:
    (tmp_path / ".btm/prefect").mkdir(parents=True)
    (tmp_path / ".btm/prefect/prefect.db").write_text("no database, but long enough to be looked at as one " * 99)
    done = btm("run", "digits-lt", *FAST, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "btm: the Prefect server that BTM starts for a run did not start" in done.stderr
    assert "not a database" in done.stderr and "PREFECT_HOME" in done.stderr
    assert not (tmp_path / ".btm/store/artifacts").exists()

"""Worker processes: warm, replaced when dead, and what dies is tried again."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from family import worker_process

from btm_core.config import ExperimentConfig, load_experiment
from btm_core.errors import ArtifactError, NonFiniteLossError, StoreError
from btm_core.storage import Artifact, Store
from tasks import outage
from tasks.data import prepare_data
from tasks.engines.pool import Worker, WorkerDiedError, WorkerError, pool_of
from tasks.events import listening
from tasks.execution import execute
from tasks.pretrain import Pretrain
from tasks.settings import RuntimeSettings
from tasks.step import perform
from tasks.stopping import stopping


@pytest.fixture
def settings(tmp_path: Path) -> RuntimeSettings:
    return RuntimeSettings(home=tmp_path / ".btm", workers=1, checkpoint_seconds=0, retries=1)


def pretrain(settings: RuntimeSettings, epochs: int = 2, **overrides: Any) -> Pretrain:
    """Return a short stage 1 on digits."""
    experiment: ExperimentConfig = load_experiment("digits-lt")
    data: Artifact = perform(prepare_data("own", experiment.data, None), Store(settings.store_url), lambda event: None)
    config = experiment.pretrain.model_copy(update={"epochs": epochs, **overrides})
    return Pretrain(data=data, view=experiment.data.input, model=experiment.model, seed=0, config=config)


def the_worker(settings: RuntimeSettings) -> Worker:
    pool = pool_of(settings)
    worker = pool.get_nowait()
    pool.put(worker)
    return worker


def test_a_worker_takes_order_after_order_until_it_dies(settings: RuntimeSettings) -> None:
    execute([pretrain(settings)], settings)
    worker = the_worker(settings)
    first = worker.pid
    assert first is not None
    with pytest.raises(NonFiniteLossError, match="the loss became nan"):  # refused, and told as what it is
        execute([pretrain(settings, lr=1e9)], settings)
    execute([pretrain(settings, epochs=3)], settings)
    assert worker.pid == first
    psutil.Process(first).kill()
    psutil.wait_procs([psutil.Process(first)] if psutil.pid_exists(first) else [])
    execute([pretrain(settings, epochs=4)], settings)  # one that died while idle costs no try
    assert worker.pid not in (None, first)
    worker.kill()
    assert worker.pid is None


def test_what_dies_is_tried_again_and_goes_on(settings: RuntimeSettings, caplog: pytest.LogCaptureFixture) -> None:
    step = pretrain(settings, epochs=6)
    news: list[dict[str, Any]] = []

    def kill_once(event: dict[str, Any]) -> None:
        news.append(event)
        if event["event"] == "epoch" and len([n for n in news if n["event"] == "epoch"]) == 3:
            worker_process().kill()

    with listening(kill_once), caplog.at_level(logging.WARNING):
        [artifact] = execute([step], settings)
    assert Store(settings.store_url).find(step.address) == artifact
    assert [event["event"] for event in news].count("resumed") == 1
    epochs = [event["epoch"] for event in news if event["event"] == "epoch"]
    assert len(epochs) <= 6 + 1  # one at most was trained twice
    assert "was killed by signal SIGKILL" in caplog.text
    assert "Trying again (1 of 1)" in caplog.text
    the_worker(settings).kill()


def test_retries_are_bounded(settings: RuntimeSettings, caplog: pytest.LogCaptureFixture) -> None:
    step = pretrain(settings, epochs=200)

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            worker_process().kill()

    with listening(kill), pytest.raises(WorkerDiedError, match="SIGKILL"), caplog.at_level(logging.WARNING):
        execute([step], settings)
    assert caplog.text.count("Trying again") == settings.retries == 1


def test_what_was_made_before_a_death_is_not_made_again(settings: RuntimeSettings) -> None:
    """Two steps in one order; the worker dies in the second."""
    steps = [pretrain(settings), pretrain(settings, epochs=6)]
    started: list[str] = []

    def kill_in_the_second(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            started.append(event["step"])
            if event["step"] == steps[1].address and started.count(event["step"]) == 2:
                worker_process().kill()

    with listening(kill_in_the_second):
        artifacts = execute(steps, settings)
    assert [artifact.address for artifact in artifacts] == [step.address for step in steps]
    assert started.count(steps[0].address) == 2  # epochs, of one training
    the_worker(settings).kill()


def test_a_deadline_is_that_of_one_order(settings: RuntimeSettings) -> None:
    soon = settings.model_copy(update={"deadline_hours": 8 / 3600})
    execute([pretrain(soon)], soon)
    worker = the_worker(soon)
    first = worker.pid
    assert first is not None
    with pytest.raises(psutil.TimeoutExpired):
        psutil.Process(first).wait(9)  # nobody kills it when that order's deadline passes
    worker.kill()


def test_a_deadline_ends_what_the_worker_started_too(settings: RuntimeSettings) -> None:
    """A child that holds the worker's pipes would be waited for."""
    worker = Worker(None)
    process = worker.ready()
    script = f"import subprocess, sys; subprocess.Popen(['sleep', '60'], process_group={process.pid}); print('here')"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
    group = [p for p in psutil.process_iter() if os.getpgid(p.pid) == process.pid]
    assert len(group) == 2
    worker.kill()
    _, alive = psutil.wait_procs(group, timeout=5)
    assert not alive


def test_nothing_of_a_worker_stays_in_the_temporary_folder(settings: RuntimeSettings) -> None:
    worker = Worker(None)
    scratch = Path((worker.ready() and worker._scratch) or "")
    assert scratch.is_dir()
    worker.kill()
    assert not scratch.exists()


def test_nothing_is_started_while_stopping(settings: RuntimeSettings) -> None:
    step = pretrain(settings)
    stopping.set()
    try:
        with pytest.raises(WorkerError, match="being stopped"):
            execute([step], settings)
    finally:
        stopping.clear()


def test_what_a_worker_prints_is_logged(settings: RuntimeSettings, caplog: pytest.LogCaptureFixture) -> None:
    """Of a corrupt state it tells that it starts anew."""
    step = pretrain(settings)
    Store(settings.store_url).write(b"nonsense", "partial", step.address, "state-0.safetensors")
    with caplog.at_level(logging.INFO):
        execute([step], settings)
    [line] = [record for record in caplog.records if "is unusable" in record.getMessage()]
    assert line.name == "tasks.engines.output"
    the_worker(settings).kill()


def test_a_store_that_one_could_not_use_is_not_tried_by_those_who_wait(
    settings: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_unusable", {})
    steps = [pretrain(settings), pretrain(settings, epochs=6)]
    obstacle = Path(settings.home, "store/partial", steps[0].address)
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where a folder is needed")
    with pytest.raises(StoreError, match="Not a directory") as first:
        execute(steps[:1], settings)
    the_worker(settings).kill()
    with pytest.raises(StoreError) as second:
        execute(steps[1:], settings)
    assert str(second.value) == str(first.value)
    assert the_worker(settings).pid is None, "a worker was started"
    monkeypatch.setattr(outage, "VALID_SECONDS", 0.0)
    assert execute(steps[1:], settings)
    the_worker(settings).kill()


def test_damage_of_one_artifact_says_nothing_about_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "_unusable", {})
    outage.remember("s3://btm/x", ArtifactError("gone"))
    outage.raise_if_unusable("s3://btm/x")

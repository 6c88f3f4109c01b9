"""Stage 1 by two processes on the CPU, as the engine runs it: kills, errors, resuming. No GPU is needed."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import small_experiment, write_digits, write_lists
from family import descendants

from btm_core.config import ExperimentConfig
from btm_core.errors import ConfigError, NonFiniteLossError
from btm_core.storage import Store
from tasks.data import prepare_data
from tasks.distributed import GroupDiedError, launch
from tasks.engines.pool import Worker, take
from tasks.events import listening
from tasks.execution import WorkerDiedError, execute
from tasks.pretrain import Pretrain
from tasks.settings import RuntimeSettings
from tasks.step import perform
from tasks.workspace import Workspace

pytestmark = pytest.mark.slow  # each test starts four processes that import torch

EPOCHS = 60


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    root = write_digits(tmp_path / "images")
    write_lists(root)
    return ExperimentConfig.model_validate(
        small_experiment(format="list", root=str(root), train="train.txt", test="test.txt")
    )


@pytest.fixture
def settings(tmp_path: Path) -> RuntimeSettings:
    store = Store(str(tmp_path / "store"))
    return RuntimeSettings(
        home=tmp_path / ".btm",
        store=store.url,
        checkpoint_seconds=0,
        device="cpu",
        pretrain_gpus=2,
        threads=1,
        retries=0,
    )


def pretrain(experiment: ExperimentConfig, settings: RuntimeSettings, **config: Any) -> Pretrain:
    data = perform(prepare_data("own", experiment.data, None), Store(settings.store_url), lambda event: None)
    raw = {**experiment.pretrain.model_dump(), "epochs": EPOCHS, **config}
    section = type(experiment.pretrain).model_validate(raw)
    return Pretrain(data=data, view=experiment.data.input, model=experiment.model, seed=0, config=section)


def family() -> list[psutil.Process]:
    """Return torchrun's agent and those that train."""
    return descendants("tasks.distributed") + descendants("tasks.rank")


def rank(number: int) -> psutil.Process:
    [found] = [p for p in descendants("tasks.rank") if p.environ()["RANK"] == str(number)]
    return found


def strike(victim: Callable[[], psutil.Process], epoch: int) -> tuple[Callable[[dict[str, Any]], None], list[Any]]:
    """Return a listener that kills at the end of an epoch, and what it saw: events, then when, and who lived then."""
    seen: list[Any] = []

    def listen(event: dict[str, Any]) -> None:
        seen.append(event)
        if event["event"] == "epoch" and event["epoch"] == epoch:
            seen.append(family())
            seen.append(time.monotonic())
            victim().kill()

    return listen, seen


def assert_gone(processes: list[psutil.Process]) -> None:
    assert len(processes) == 3  # torchrun's agent and two that train
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def test_a_killed_rank_ends_all_and_the_next_try_goes_on(
    experiment: ExperimentConfig, settings: RuntimeSettings, tmp_path: Path
) -> None:
    step = pretrain(experiment, settings)
    listen, seen = strike(lambda: rank(1), 3)
    with (
        listening(listen),
        pytest.raises(WorkerDiedError, match=r"2 processes: rank 1 was killed by SIGKILL.*; all were ended"),
    ):
        execute([step], settings)
    [killed] = [i for i, item in enumerate(seen) if isinstance(item, float)]
    assert time.monotonic() - seen[killed] < 20
    assert_gone(seen[killed - 1])
    news: list[dict[str, Any]] = []
    with listening(news.append):
        [artifact] = execute([step], settings)
    assert [event["event"] for event in news[:2]] == ["started", "resumed"]
    assert [event["epoch"] for event in news if event["event"] == "epoch"][-1] == EPOCHS
    store = Store(settings.store_url)
    manifest = store.manifest(step.address)
    assert manifest is not None and manifest.host["processes"] == 2
    records = (Path(store.locate("artifacts", step.address).removeprefix("file://")) / "records.jsonl").read_text()
    assert [f'"epoch": {n},' in line for n, line in enumerate(records.splitlines(), 1)] == [True] * EPOCHS
    elsewhere = settings.model_copy(update={"store": str(tmp_path / "undisturbed")})
    assert pretrain(experiment, elsewhere) == step
    [expected] = execute([step], elsewhere)
    assert artifact == expected


@pytest.mark.parametrize("victim", ["worker", "agent"])
def test_whoever_is_killed_no_process_is_left(
    experiment: ExperimentConfig, settings: RuntimeSettings, victim: str
) -> None:
    """In the middle of an epoch, while rank 0 waits for rank 1 in a collective: nobody is about to report anything."""
    step = pretrain(experiment, settings, epochs=10_000)
    words = ("tasks.engines.worker",) if victim == "worker" else ("tasks.distributed",)

    survivors: list[psutil.Process] = []

    def kill_with_a_collective_under_way() -> psutil.Process:
        hanging = rank(1)
        others = [process for process in family() if process != hanging]

        def look_and_resume() -> None:
            survivors.extend(p for p in others if p.is_running() and p.status() != psutil.STATUS_ZOMBIE)
            hanging.resume()

        hanging.suspend()
        threading.Timer(3, look_and_resume).start()
        return descendants(*words)[0]

    listen, seen = strike(kill_with_a_collective_under_way, 1)
    message = "killed by signal SIGKILL" if victim == "worker" else "torchrun's agent ended with code -9"
    hasty = settings.model_copy(update={"deadline_hours": 60 / 3600})
    try:
        with listening(listen), pytest.raises(WorkerDiedError, match=message):
            execute([step], hasty)
        assert not survivors
        [processes] = [item for item in seen if isinstance(item, list)]
        assert_gone(processes)
    finally:
        for process in next((item for item in seen if isinstance(item, list)), []):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def test_an_error_of_the_input_is_told_as_by_one_process(
    experiment: ExperimentConfig, settings: RuntimeSettings
) -> None:
    step = pretrain(experiment, settings, lr=1e30)
    with pytest.raises(NonFiniteLossError, match=r"pretrain .*: the loss became .* in epoch 1 of 60"):
        execute([step], settings)


def test_a_process_that_cannot_start_says_why(
    experiment: ExperimentConfig, settings: RuntimeSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Called as a library does: `launch` raises, rather than the process of a worker."""
    step = pretrain(experiment, settings)
    (tmp_path / "scratch" / "rank-1").mkdir(parents=True)  # in the way
    store = Store(settings.store_url)
    work = Workspace(store, step.address, tmp_path / "output", tmp_path / "scratch", lambda event: None, processes=2)
    with pytest.raises(GroupDiedError, match=r"2 processes: rank 1 ended with code 1.*; all were ended"):
        launch(step, work)
    assert "FileExistsError" in capfd.readouterr().err


def test_paco_is_refused_before_anything_starts(experiment: ExperimentConfig, settings: RuntimeSettings) -> None:
    step = pretrain(experiment, settings, method={"name": "paco"})
    started: list[dict[str, Any]] = []
    with pytest.raises(ConfigError, match=r"pretrain\.method paco trains on one GPU; set BTM_PRETRAIN_GPUS=1"):
        perform(step, Store(settings.store_url), started.append, processes=2)
    assert not started
    assert not family()


def test_the_command_line_refuses_paco(btm: Any, tmp_path: Path) -> None:
    paco = ["--set=pretrain.method=paco", "--set=pretrain.mixup_alpha=0"]
    environment = {"BTM_DEVICE": "cpu", "BTM_PRETRAIN_GPUS": "2"}
    done = btm("run", "digits-lt", *paco, cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert "pretrain.method paco trains on one GPU; set BTM_PRETRAIN_GPUS=1" in done.stderr


def test_different_gpus_are_taken_and_all_slots_come_back() -> None:
    free: queue.LifoQueue[Worker] = queue.LifoQueue()
    for name in ("0", "0", "1", "1", "2"):
        free.put(Worker(name))
    assert [worker.gpu for worker in take(free, 3)] == ["2", "1", "0"]
    assert sorted(str(free.get_nowait().gpu) for _ in range(free.qsize())) == ["0", "1"]
    free.put(Worker(None))
    assert [worker.gpu for worker in take(free, 3)] == [None]


@pytest.mark.parametrize(
    ("device", "gpus", "workers", "usable"),
    [("cuda", 2, None, 2), ("cuda", 4, 1, 1), ("cuda", 2, 8, 2), ("auto", 0, None, 1)],
)
def test_more_gpus_than_there_are_is_an_error(
    settings: RuntimeSettings, monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, workers: int | None, usable: int
) -> None:
    """Found before anything starts: who waits for more slots than there are waits for ever."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    greedy = settings.model_copy(update={"device": device, "gpus": gpus, "workers": workers, "pretrain_gpus": 3})
    with pytest.raises(
        ConfigError,
        match=f"BTM_PRETRAIN_GPUS asks for 3 GPUs, {usable} can be used; lower it, or see CUDA_VISIBLE_DEVICES",
    ):
        greedy.slots()

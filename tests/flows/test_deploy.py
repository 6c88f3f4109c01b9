"""Deployments, on a real Prefect server with real workers; of Kubernetes only the rendered job: no cluster here."""

import asyncio
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import seaweed
import yaml
from conftest import Btm, clean_environment
from prefect_server import PrefectServer, until, worker

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
QUICK = [f"--set={value}" for value in ("pretrain.epochs=2", "finetune.epochs=1", "post_train.epochs=1")]
QUICK += ["--set=sampling.num_subsets=2", "--set=evaluation.baseline=false"]

NIGHTLY = ["digits-lt", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin", "--limit=1", "--promote"]


class Server(PrefectServer):
    """What the server knows of deployments."""

    def state(self) -> dict[str, Any]:
        """Return all that `btm deploy` makes, without times, and without the ids of what the server always replaces."""
        kinds = ("work_pools", "deployments", "automations", "v2/concurrency_limits")
        return {kind: sorted(map(_lasting, self.all(kind)), key=lambda one: str(one["name"])) for kind in kinds}


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        replaced = {"created", "updated", "last_polled", "status", "active_slots"}
        replaced |= {"id"} if "schedule" in value or "posture" in value else set()
        return {key: _lasting(part) for key, part in value.items() if key not in replaced}
    return sorted(map(_lasting, value), key=str) if isinstance(value, list) else value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("prefect"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def deployed(btm: Btm, server: Server, cwd: Path, *arguments: str) -> Any:
    done = btm("deploy", *arguments, "--json", cwd=cwd, **server.environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_twice_is_the_same_as_once(btm: Btm, server: Server, tmp_path: Path) -> None:
    first = deployed(btm, server, tmp_path, *NIGHTLY)
    state = server.state()
    assert deployed(btm, server, tmp_path, *NIGHTLY) == first
    assert server.state() == state
    assert first["deployments"].keys() == {"btm-step/btm", "btm/digits-lt", "btm-promote/digits-lt"}
    automations = {"btm: missing heartbeats", "btm/digits-lt: new data", "btm-promote/digits-lt: after a run"}
    assert first["automations"].keys() == automations
    assert first["pool"] == {"name": "btm", "type": "process", "limit": 1}
    [deployment] = [one for one in state["deployments"] if one["entrypoint"] == "flows.btm.btm"]
    assert [one["schedule"] for one in deployment["schedules"]] == [
        {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "day_or": True}
    ]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert deployment["work_pool_name"] == "btm-flows"  # its runs take no place of the steps they wait for
    planned = until(lambda: [run for run in server.all("flow_runs") if run["auto_scheduled"]], 60)
    assert {run["expected_start_time"][11:16] for run in planned} <= {"01:00", "02:00"}  # 3 o'clock in Berlin
    assert {pool["name"]: pool["concurrency_limit"] for pool in state["work_pools"]} == {"btm": 1, "btm-flows": None}


def test_the_pool_of_runs_is_there_before_the_first_of_them(btm: Btm, server: Server, tmp_path: Path) -> None:
    """Its worker may come first, and would make the pool by a template of Prefect's own."""
    deployed(btm, server, tmp_path, "--pool=early")
    templates = {pool["name"]: pool["base_job_template"] for pool in server.all("work_pools")}
    assert templates["early-flows"] == templates["early"]


def test_prefect_yaml_registers_the_same_from_any_folder(btm: Btm, server: Server, tmp_path: Path) -> None:
    """All but the experiment's defaults, which it leaves out."""
    deployed(btm, server, tmp_path, *NIGHTLY)
    state = server.state()
    shutil.copytree(DEPLOYMENTS, tmp_path / "elsewhere")
    done = server.prefect("--no-prompt", "deploy", "--all", "--prefect-file", "elsewhere/prefect.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = server.state()
    for one in [*theirs["deployments"], *state["deployments"]]:  # Prefect's own tool adds a version
        for key in ("parameters", "labels", "version", "version_id", "version_info"):
            one.pop(key, None)
    assert theirs["deployments"] == state["deployments"]
    assert str(tmp_path) not in json.dumps(theirs["deployments"])
    assert len(theirs["automations"]) == 3


def test_prefect_yaml_holds_the_preset() -> None:
    from btm_core.config import ExperimentConfig, load_experiment

    document = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text())
    written = ExperimentConfig.model_validate(document["deployments"][1]["parameters"]["experiment"])
    preset = load_experiment("digits-lt")
    assert written == preset.model_copy(update={"source": None, "hardware": None})


def test_heartbeats_are_awaited_for_three_times_their_frequency_or_an_end() -> None:
    from tasks.engines.remote import FAILURES

    automation = yaml.safe_load((DEPLOYMENTS / "heartbeats.yaml").read_text())
    document = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text())
    for deployment in document["deployments"]:
        assert "btm-heartbeat" in deployment["tags"]
        frequency = int(deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        assert automation["trigger"]["within"] >= 3 * frequency
    ends = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed", *FAILURES)}
    assert ends <= set(automation["trigger"]["expect"])


def test_new_data_start_the_deployment(btm: Btm, server: Server, tmp_path: Path) -> None:
    document = deployed(btm, server, tmp_path, "digits-lt", "--name=arrival", "--pool=arrivals", *QUICK)
    assert document["schedule"] is None
    event = document["event"]
    assert event == {"event": "btm.data-arrived", "resource": "btm.data.digits-lt"}
    # What a script without Prefect sends; README.md shows it with curl.
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    body = {"event": event["event"], "resource": {"prefect.resource.id": event["resource"]}, "occurred": now}
    body["id"] = "00000000-0000-4000-8000-000000000001"
    httpx.post(f"{server.environment['PREFECT_API_URL']}/events", json=[body]).raise_for_status()
    [run] = until(lambda: server.runs("arrival"), 30)
    assert run["created_by"]["type"] == "AUTOMATION"
    assert run["parameters"]["experiment"]["pretrain"]["epochs"] == 2
    assert {"btm", "btm-heartbeat"} <= set(run["tags"])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            [],
            [
                "deployments live on a Prefect server, and PREFECT_API_URL names none; start one",
                "export PREFECT_API_URL=",
            ],
        ),
        (["--cron", "0 3 * * *"], ["--cron", "name a preset"]),
        (["digits-lt", "--timezone", "Europe/Berlin"], ["--timezone is that of a schedule: give --cron as well"]),
        (
            ["digits-lt", "--cron", "0 3 * *"],
            ["--cron '0 3 * *' in --timezone UTC is no schedule: ", "expected five fields, such"],
        ),
        (["digits-lt", "--type", "docker"], ["--type docker is unknown: process or kubernetes"]),
        (
            ["digits-lt", "--job-variable", "image"],
            ["--job-variable 'image' is not of the form KEY=VALUE, such as image="],
        ),
        (
            ["digits-lt", "--job-variable", "gpu=[1"],
            ["--job-variable gpu: '[1' is not valid YAML: ", "; put it in quotes"],
        ),
        (
            ["cifar100-lt"],
            ["data.root has to say where CIFAR-100 lies, or is to be downloaded to", "add --set data.root="],
        ),
        (["--promote"], ["--promote belongs to an experiment: name a preset or a file"]),
        (
            ["digits-lt", "--alert", "webhook/ops"],
            ["--alert tells of what --promote refuses: give both, and the block"],
        ),
        (["digits-lt", "--promote", "--alert", "ops"], ["TYPE/NAME"]),
    ],
)
def test_refusals(btm: Btm, tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    done = btm("deploy", *arguments, cwd=tmp_path, PREFECT_HOME=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    [message] = done.stderr.splitlines()
    assert all(part in message for part in parts), message


def test_a_server_that_is_away_and_a_pool_of_another_type(btm: Btm, server: Server, tmp_path: Path) -> None:
    [port] = seaweed.free_ports(1)
    away = {**server.environment, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    done = btm("deploy", cwd=tmp_path, **away)
    assert done.returncode == 2 and f"127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr
    done = btm("run", "digits-lt", "--engine=workpool", cwd=tmp_path, BTM_WORK_POOL="nothing", **server.environment)
    cure = "knows no work pool nothing of BTM's; register it with: btm deploy --pool nothing"
    assert done.returncode == 2 and cure in done.stderr and "Traceback" not in done.stderr
    deployed(btm, server, tmp_path, "--pool=pods", "--type=kubernetes", "--job-variable", "image=registry/btm:1")
    done = btm("deploy", "--pool=pods", cwd=tmp_path, **server.environment)
    assert done.returncode == 2 and "pods is of type kubernetes" in done.stderr and "Traceback" not in done.stderr


def test_the_kubernetes_template_renders(server: Server) -> None:
    """As Prefect's Kubernetes worker renders it; by its own class, where that is installed."""
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.workers.base import BaseJobConfiguration

    class Plain(BaseJobConfiguration):
        job_manifest: dict[str, Any]

    try:
        from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration
    except ImportError:
        Configuration = Plain  # noqa: N806
    template = json.loads((DEPLOYMENTS / "kubernetes-base-job-template.json").read_text())
    values = {"gpu": 2, "memory": "64Gi", "shm_size": "16Gi", "node_selector": {"gpu": "a100"}, "backoff_limit": 1}

    async def render() -> Any:
        async with get_client() as client:
            return await Configuration.from_template_and_values(template, values, client=client)

    with temporary_settings({PREFECT_API_URL: server.environment["PREFECT_API_URL"]}):
        job = asyncio.run(render())
    assert "{{" not in json.dumps(job.job_manifest)
    spec = job.job_manifest["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    assert container["envFrom"] == [{"secretRef": {"name": "btm", "optional": True}}]
    assert container["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
    assert pod["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}]
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert spec["backoffLimit"] == 1
    assert job.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    placeholders = set(template["variables"]["properties"])
    assert all(f'"{{{{ {name} }}}}' in json.dumps(template["job_configuration"]) for name in placeholders)


def test_a_run_whose_store_would_be_lost_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from btm_core.errors import ConfigError
    from flows.flow_run import worker_settings

    for name in [name for name in os.environ if name.startswith("BTM_")]:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="needs a store that outlives it: set BTM_STORE"):
        worker_settings()
    monkeypatch.setenv("BTM_HOME", str(tmp_path))
    assert worker_settings().store_url == str(tmp_path / "store")


@pytest.mark.slow
def test_one_place_is_enough_and_unchanged_data_are_nothing_to_do(btm: Btm, server: Server, tmp_path: Path) -> None:
    """Steps have a pool of one place, and a worker of one; runs that wait for them take none of it."""
    deployed(btm, server, tmp_path, "digits-lt", "--name=nightly", "--pool=single", "--limit=1", *QUICK)
    home = {"BTM_HOME": str(tmp_path / "btm"), "BTM_DEVICE": "cpu"}
    with worker(server, "single", tmp_path, limit=1, **home), worker(server, "single-flows", tmp_path, **home):
        for _ in range(2):  # the second waits for the first: the deployment's limit is 1
            assert server.prefect("deployment", "run", "btm/nightly", cwd=tmp_path).returncode == 0
        first, second = until(lambda: _ended(server, "nightly", 2), 400)
        logs = server.all("logs", logs={"flow_run_id": {"any_": [first["id"]]}}, limit=200)
    assert (first["state_name"], second["state_name"]) == ("Completed", "Completed")
    assert first["state"]["message"].startswith("Trained pretrain, finetune, post_train: H-mean ")
    assert second["state"]["message"].startswith("Nothing to do: all 13 artifacts were found in the store")
    assert second["start_time"] > first["end_time"]
    said = [line["message"] for line in logs]
    for stage in ("pre-train (stage 1)", "fine-tune on subsets", "merge into the soup"):
        assert any(line.startswith(f"{stage}: ") and line.endswith(" started") for line in said), stage
        assert any(line.startswith(f"{stage}: ") and line.endswith(" done") for line in said), stage
    [run_folder] = [path for path in (tmp_path / "btm/store/runs").iterdir() if path.name == first["name"]]
    assert (run_folder / "report.html").is_file()


@pytest.mark.slow
def test_a_run_is_followed_by_the_gate_and_a_refusal_by_an_alert(btm: Btm, server: Server, tmp_path: Path) -> None:
    """A floor that nothing reaches; the alert calls a web server, as it would call a chat's webhook."""
    alerts: queue.Queue[Any] = queue.Queue()

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alerts.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    chat = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=chat.serve_forever, daemon=True).start()
    make = f"from prefect.blocks.webhook import Webhook as W; W(url='http://127.0.0.1:{chat.server_port}/').save('ops')"
    environment = {**clean_environment(), **server.environment}
    subprocess.run([sys.executable, "-c", make], check=True, env=environment, cwd=tmp_path)
    done = btm("deploy", "digits-lt", "--promote", "--alert=webhook/none", cwd=tmp_path, **server.environment)
    assert done.returncode == 2 and "no block 'none'" in done.stderr
    options = ["--promote", "--alert=webhook/ops", "--set=promotion.lowest_recall=1.0", *QUICK]
    options += ["--job-variable", "env.BTM_ENGINE=local"]
    document = deployed(btm, server, tmp_path, "digits-lt", "--name=gated", "--pool=gated", *options)
    assert "btm-promote/gated: alert when refused" in document["automations"]
    home = {"BTM_HOME": str(tmp_path / "btm"), "BTM_DEVICE": "cpu"}
    with worker(server, "gated-flows", tmp_path, **home):
        assert server.prefect("deployment", "run", "btm/gated", cwd=tmp_path).returncode == 0
        alert = alerts.get(timeout=400)
        run, gate = until(lambda: _ended(server, "gated", 2), 60)[:2]
        # An automation may act twice on one event (the server takes it again after an error): then no version is added.
        again = [f"--param={name}={value}" for name, value in gate["parameters"].items()]
        assert server.prefect("deployment", "run", "btm-promote/gated", *again, cwd=tmp_path).returncode == 0
        _, *gates = until(lambda: _ended(server, "gated", 3), 120)
        artifacts = server.all("artifacts", artifacts={"key": {"any_": ["btm-promotion", "btm-report-digits-lt"]}})
    chat.shutdown()
    chat.server_close()
    assert gate["parameters"] == {"run_id": run["name"], "model": "digits-lt"}
    assert {one["state"]["message"] for one in gates} == {"digits-lt version 1: refused"}
    assert alert["text"] == "digits-lt version 1 was refused" and alert["run"] == run["name"]
    assert "the floor is 100.0 %" in alert["reasons"][0]
    assert Path(alert["report"].removeprefix("file://")).is_file()
    shown = {one["key"]: one["data"] for one in artifacts if one["flow_run_id"] in (run["id"], gate["id"])}
    assert "**failed**" in shown["btm-promotion"] and "| final |" in shown["btm-report-digits-lt"]
    assert (
        "| Lowest classes |" in shown["btm-promotion"]
        and f"with every class: {alert['report']}" in shown["btm-promotion"]
    )


def _ended(server: Server, deployment: str, at_least: int) -> Any:
    """Return a deployment's runs once all have ended, and there are so many; until then nothing."""
    runs = server.runs(deployment)
    ended = all(run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") for run in runs)
    return runs if ended and len(runs) >= at_least else None


@pytest.mark.slow
def test_a_run_that_died_with_its_worker_is_crashed(btm: Btm, server: Server, tmp_path: Path) -> None:
    import psutil

    long = ["--set=pretrain.epochs=100000", "--job-variable", "env.BTM_ENGINE=local"]
    deployed(btm, server, tmp_path, "digits-lt", "--name=doomed", "--pool=doomed", *long)
    with worker(server, "doomed-flows", tmp_path, BTM_HOME=str(tmp_path / "btm"), BTM_DEVICE="cpu") as process:
        assert server.prefect("deployment", "run", "btm/doomed", cwd=tmp_path).returncode == 0
        until(lambda: [run for run in server.runs("doomed") if run["state_type"] == "RUNNING"], 120)
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            one.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        [run] = until(lambda: _ended(server, "doomed", 1), 240)
    print(f"CRASHED {time.monotonic() - killed:.0f} s after the kill")
    assert run["state_type"] == "CRASHED"
    assert "heartbeat" in run["state"]["message"]

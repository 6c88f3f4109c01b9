"""A real Prefect server and a real process worker for tests, on 127.0.0.1, stopped by their own pids."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from conftest import clean_environment
from seaweed import free_ports

__all__ = ["PREFECT", "PrefectServer", "until", "worker"]

PREFECT = Path(sys.executable).with_name("prefect")


class PrefectServer:
    """A server that can be stopped and started again on the same port and database."""

    def __init__(self, folder: Path):
        [self.port] = free_ports(1)
        self.folder = folder
        self.environment = {
            "PREFECT_HOME": str(folder),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{self.port}/api",  # what its pages ask
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [str(PREFECT), "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            environment = {**clean_environment(), **self.environment}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.environment['PREFECT_API_URL']}/health", timeout=5):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.2)

    def all(self, what: str, **filters: Any) -> Any:
        answer = httpx.post(f"{self.environment['PREFECT_API_URL']}/{what}/filter", json=filters, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def runs(self, deployment: str) -> Any:
        """Return the flow runs of a deployment that no schedule created, the first one first."""
        runs = self.all("flow_runs", deployments={"name": {"any_": [deployment]}}, sort="START_TIME_ASC")
        return [run for run in runs if not run["auto_scheduled"]]

    def prefect(self, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(PREFECT), *arguments],
            cwd=cwd,
            env={**clean_environment(), **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def stop(self) -> None:
        """Kill it with what it started."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._process.wait()
            self._process = None


def until(condition: Callable[[], Any], seconds: float) -> Any:
    """Return what a condition gives as soon as it gives something. A server is asked: there is no event to wait for."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError):  # a busy one may leave a question unanswered
            if found := condition():
                return found
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)


@contextmanager
def worker(
    server: PrefectServer, pool: str, folder: Path, limit: int | None = None, **environment: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process worker of a pool; it and what it started are killed at the end."""
    command = [str(PREFECT), "worker", "start", "--pool", pool, "--type", "process"]
    command += [] if limit is None else ["--limit", str(limit)]
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**clean_environment(), **server.environment, **environment},
            cwd=folder,
        )
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants."""
    import psutil

    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()

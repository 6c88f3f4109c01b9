"""How a run is executed. None of this changes a result's address; `btm_core.config` holds what does."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from btm_core.errors import ConfigError

__all__ = ["RuntimeSettings"]


class RuntimeSettings(BaseSettings):
    """Settings from the environment (prefix BTM_) and command line flags."""

    model_config = SettingsConfigDict(env_prefix="BTM_", frozen=True, extra="ignore")

    home: Path = Field(Path(".btm"), description="folder of everything local: default store, tracking, caches")
    store: str | None = Field(None, description="artifact store, a path or fsspec URL; default: <home>/store")
    engine: Literal["local"] = Field("local", description="where fine-tunes run")
    workers: int | None = Field(None, ge=1, description="fine-tunes at a time; default: GPUs, or cores")
    gpus: int | None = Field(None, ge=0, description="GPUs to use; default: all")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the networks run")
    threads: int = Field(
        2, ge=1, description="CPU threads of a stage that runs alone; changes the last bits of results"
    )
    finetune_threads: int = Field(
        1, ge=1, description="CPU threads of each fine-tune; changes the last bits of results"
    )
    checkpoint_seconds: float = Field(30.0, ge=0, description="least time between two checkpoints inside a stage")
    deadline_hours: float = Field(48.0, gt=0, description="a stage that takes longer is stopped")
    tracking_uri: str | None = Field(None, description="MLflow; default: MLFLOW_TRACKING_URI, or sqlite below <home>")
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
        if self.gpus is not None:
            return self.gpus
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return len([part for part in visible.split(",") if part.strip()])
        if shutil.which("nvidia-smi") is None:
            return 0
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
        return sum(line.startswith("GPU ") for line in listing.splitlines())

    def slots(self) -> list[str | None]:
        """Return one entry a concurrent worker: the GPU it may use, None for the CPU."""
        gpus = self.gpu_count()
        if gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = [part for part in visible.split(",") if part.strip()] if visible else [str(i) for i in range(gpus)]
            if gpus > len(names):
                raise ConfigError(f"BTM_GPUS asks for {gpus} GPUs, CUDA_VISIBLE_DEVICES shows {len(names)}: {visible}")
            return [names[i % gpus] for i in range(self.workers or gpus)]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return [None] * (self.workers or max(1, cores // self.finetune_threads))

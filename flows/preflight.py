"""What can be checked of an experiment before anything is started."""

from pathlib import Path

from btm_core.config import ExperimentConfig
from btm_core.config.methods import check_processes
from btm_core.data.catalog import Catalog
from btm_core.errors import ConfigError
from btm_core.storage import Store
from tasks.data import scan_ahead
from tasks.sample import check_lists, short_classes
from tasks.settings import RuntimeSettings, visible_gpus

__all__ = ["preflight"]

ANSWER_SECONDS = 30.0
"""A store that does not answer for so long at the start was probably never there."""


def preflight(config: ExperimentConfig, settings: RuntimeSettings, *, writing: bool = True) -> Catalog:
    """Find what is wrong with data, checkpoint, device and store before a server is started or a network trained.

    Returns what was found of the data. Without `writing`, no folder is made, and the store is only looked at.
    """
    if settings.store_url.startswith("memory:"):
        raise ConfigError("a memory:// store is seen by one process, and stages run in others: choose another store")
    store = Store(settings.store_url).within(ANSWER_SECONDS)
    if writing:
        _make_home(settings)
        store.check_writable()
    else:
        if settings.home.exists() and not settings.home.is_dir():
            raise ConfigError(
                f"BTM_HOME {settings.home} cannot be used as a folder: it is a file; choose another, or unset it"
            )
        store.check_there()
    here = settings.engine == "local"  # elsewhere, GPUs are the cluster's to have
    if here and settings.gpus and settings.gpus > visible_gpus():
        raise ConfigError(f"BTM_GPUS asks for {settings.gpus} GPUs, {visible_gpus()} can be seen here; lower it")
    if here and (not settings.slots() or (settings.device == "cuda" and settings.gpu_count() == 0)):
        raise ConfigError("device cuda was asked for, but no NVIDIA GPU is visible; use --device auto or cpu")
    if config.pretrain.checkpoint is None:
        check_processes(config.pretrain.method, settings.pretrain_gpus)
    if config.pretrain.needs_trained_backbone:
        why = "fresh_last_block" if config.pretrain.fresh_last_block else f"train={config.pretrain.train}"
        raise ConfigError(
            f"pretrain.{why} trains a part of the network and leaves the rest as it is, which is random without a "
            "file to start from: set pretrain.initial to a trained backbone's safetensors file (`btm import-checkpoint "
            "FILE -o backbone.safetensors --backbone-only` makes one), or pretrain.checkpoint to a stage 1"
        )
    catalog = scan_ahead(config.data)
    sampling = config.sampling
    check_lists(sampling.lists, has_paths=catalog.train.paths is not None)
    short_classes(catalog.train_counts.tolist(), catalog.class_names, sampling.shots, sampling.when_short)
    _check_start(config, catalog)
    return catalog


def _make_home(settings: RuntimeSettings) -> None:
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"BTM_HOME {settings.home} cannot be used as a folder: {error.strerror}; choose another, or unset it"
        ) from None


def _check_start(config: ExperimentConfig, catalog: Catalog) -> None:
    """Load the file that stage 1 is, or starts from, if it is on this machine. Raises CheckpointError."""
    checkpoint, initial = config.pretrain.checkpoint, config.pretrain.initial
    start = checkpoint or initial
    if start is None or "://" in start:
        return
    from btm_core.checkpoints import check_classes, load_backbone, load_into
    from btm_core.models import build_model

    path = Path(start).expanduser()
    model = build_model(config.model.backbone, catalog.num_classes, config.data.input.channels)
    if checkpoint is None:
        load_backbone(model, path, config.pretrain.fresh_last_block)
    else:
        load_into(model, path)
        check_classes(path, catalog.class_names)

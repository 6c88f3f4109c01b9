"""What every command that runs a flow does first: settings, checks of the input, Prefect, MLflow's address."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from btm_core.config import ExperimentConfig
from tasks.settings import RuntimeSettings

__all__ = ["run_flow"]


def run_flow(
    name: str,
    experiment: str,
    overrides: Sequence[str],
    flags: dict[str, Any],
    verbose: bool,
    call: Callable[[ExperimentConfig, RuntimeSettings, str], dict[str, Any]],
) -> dict[str, Any]:
    """Check all that can be checked before anything is started, and call a flow with a new run id.

    `call` imports the flow: Prefect reads its settings when it is imported. `name` goes into the run id after that of
    the experiment.
    """
    from btm_core.config import load_experiment
    from flows.environment import prepare_prefect, stop_at_once_on_signals
    from flows.progress import show_progress

    _log_to_stderr()
    config = load_experiment(experiment, overrides)
    settings = _settings({name: value for name, value in flags.items() if value is not None})
    _preflight(config, settings)
    if settings.tracking_uri is not None:
        # Handed on by MLflow's own variable: it may hold a secret, and Prefect shows the parameters of a flow.
        os.environ["MLFLOW_TRACKING_URI"] = settings.tracking_uri
        settings = settings.model_copy(update={"tracking_uri": None})
    prepare_prefect(settings.home, verbose)
    with show_progress():
        stop_at_once_on_signals()
        return call(config, settings, _new_run_id("-".join(filter(None, [config.name, name]))))


def _log_to_stderr() -> None:
    """Show what the library and the steps have to say."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("btm: %(message)s"))
    for name in ("btm_core", "tasks"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _settings(flags: dict[str, Any]) -> RuntimeSettings:
    from pydantic import ValidationError

    from btm_core.errors import ConfigError

    try:
        return RuntimeSettings(**flags)
    except ValidationError as error:
        problems = "; ".join(
            f"{problem['loc'][0]}: {problem['msg']}, found {problem['input']!r}" for problem in error.errors()
        )
        raise ConfigError(f"runtime settings (flags, or environment variables BTM_*): {problems}") from None


def _preflight(config: ExperimentConfig, settings: RuntimeSettings) -> None:
    """Find what is wrong with data, checkpoint, device and store before a server is started or a network trained."""
    from btm_core.data import scan
    from btm_core.errors import ConfigError
    from btm_core.storage import Store
    from tasks.sample import short_classes

    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"BTM_HOME {settings.home} cannot be used as a folder: {error}") from None
    Store(settings.store_url).check_writable()
    if not settings.slots() or (settings.device == "cuda" and settings.gpu_count() == 0):
        raise ConfigError("device cuda was asked for, but no NVIDIA GPU is visible; use --device auto or cpu")
    start = config.pretrain
    if start.fresh_last_block and start.initial is None and start.checkpoint is None:
        raise ConfigError(
            "pretrain.fresh_last_block needs a trained backbone: set pretrain.initial to the backbone's "
            "safetensors file, or pretrain.checkpoint to a stage 1"
        )
    catalog = scan(config.data)
    sampling = config.sampling
    short_classes(catalog.train_counts.tolist(), catalog.class_names, sampling.shots, sampling.when_short)
    checkpoint = config.pretrain.checkpoint
    if checkpoint is not None and "://" not in checkpoint:
        from btm_core.checkpoints import check_classes, load_into
        from btm_core.models import build_model

        path = Path(checkpoint).expanduser()
        load_into(build_model(config.model.backbone, catalog.num_classes, config.data.input.channels), path)
        check_classes(path, catalog.class_names)


def _new_run_id(name: str) -> str:
    """Return an id that sorts by time and cannot collide."""
    import datetime
    import secrets

    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{name}-{secrets.token_hex(3)}"

"""What every command that runs a flow does first: settings, checks of the input, Prefect, MLflow's address."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from btm_core.config import ExperimentConfig
from btm_core.errors import ConfigError
from flows.terminal import Formatter
from tasks.imports import importing
from tasks.settings import RuntimeSettings, runtime_settings

__all__ = ["log_to_stderr", "named_by_data", "prefect_ready", "results_alone_on_stdout", "run_flow", "settings_of"]


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
    from btm_core.config import load_experiment, with_absolute_paths
    from flows.preflight import preflight

    log_to_stderr(verbose)
    config = load_experiment(experiment, overrides)
    settings = settings_of(flags)
    catalog = preflight(config, settings)
    if settings.engine != "local":
        config = with_absolute_paths(config)

    def meanwhile() -> None:
        import flows.ablations  # noqa: F401
        from flows.warm import warm_worker
        from tasks.tracking import connect

        warm_worker(config, settings, catalog)
        connect(settings)
        import matplotlib.figure  # noqa: F401  # of the report

    with prefect_ready(settings, verbose, meanwhile):
        from flows.flow_run import new_run_id  # imports Prefect

        return call(config, settings, new_run_id("-".join(filter(None, [config.name, name]))))


def named_by_data(data: str | None, overrides: Sequence[str]) -> ExperimentConfig | None:
    """Return the experiment that --data names, with --set on top; None if none is named. Raises ConfigError."""
    from btm_core.config import load_experiment

    if data is not None:
        return load_experiment(data, overrides)
    if overrides:
        raise ConfigError("--set changes the experiment of --data, and none is named: add --data PRESET|FILE")
    return None


def settings_of(flags: dict[str, Any]) -> RuntimeSettings:
    """Return the settings of the environment with the flags that were given on top. Raises ConfigError."""
    settings = runtime_settings({name: value for name, value in flags.items() if value is not None})
    if settings.tracking_uri is None:
        return settings
    # Handed on by MLflow's own variable: it may hold a secret, and Prefect shows the parameters of a flow.
    os.environ["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    return settings.model_copy(update={"tracking_uri": None})


@contextmanager
def prefect_ready(settings: RuntimeSettings, verbose: bool, meanwhile: Callable[[], object]) -> Iterator[None]:
    """Have Prefect configured, its server there, progress shown, and signals heard, while the block runs.

    `meanwhile` is called while the server starts: it imports the flow, and does what else takes long.
    """
    from flows.environment import prepare_prefect, server_ready
    from flows.progress import show_progress
    from flows.stopping import handle_signals

    prepare_prefect(settings.home, verbose)
    with show_progress(), results_alone_on_stdout():
        handle_signals()
        with importing():
            server = server_ready(settings)
            meanwhile()
        if server is not None:
            server.wait()
        yield


@contextmanager
def results_alone_on_stdout() -> Iterator[None]:
    """Send what libraries print on standard output (Ray's warnings, MLflow's links) to standard error meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def log_to_stderr(verbose: bool) -> None:
    """Show what the library and the steps have to say; what workers print is for the verbose, and for Prefect's UI."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("btm: %(message)s"))
    handler.addFilter(lambda record: verbose or record.name != "tasks.engines.output")
    for name in ("btm_core", "tasks"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

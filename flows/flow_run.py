"""What a flow run needs that a deployment started: settings of its worker, an id, an end.

`btm run` gives a flow all of it; a schedule, an event or a click give it nothing but the experiment.
"""

import datetime
import logging
import secrets
from typing import Any

from prefect import runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from btm_core.errors import ConfigError
from tasks.settings import RuntimeSettings, runtime_settings

__all__ = [
    "ended",
    "new_run_id",
    "own_run_id",
    "run_name",
    "worker_settings",
]

log = logging.getLogger("tasks.flow_run")


def new_run_id(name: str) -> str:
    """Return an id that sorts by time and cannot collide."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{name}-{secrets.token_hex(3)}"


def run_name() -> str:
    """Name a flow run: the run id that it was given, or else a new one, which becomes its run id."""
    parameters = runtime.flow_run.get_parameters()
    experiment = parameters["experiment"]
    name = experiment["name"] if isinstance(experiment, dict) else experiment.name
    return parameters.get("run_id") or new_run_id(name)


def own_run_id() -> str:
    """Return the run id that this flow run is named after (see `run_name`)."""
    return str(runtime.flow_run.get_name())


def worker_settings() -> RuntimeSettings:
    """Return the settings of this process's environment.

    Raises ConfigError if what is made would be lost: workers start runs in a temporary folder.
    """
    settings = runtime_settings({})
    if settings.store is None and not settings.home.is_absolute():
        raise ConfigError(
            "a run started by a deployment needs a store that outlives it: set BTM_STORE (a URL or an absolute path), "
            "or BTM_HOME (an absolute path), where the worker starts, or deploy with --store"
        )
    if settings.tracking_uri is None and settings.mlflow_uri.startswith("sqlite:") and not settings.home.is_absolute():
        log.warning("MLflow logs to a temporary folder; set MLFLOW_TRACKING_URI, or BTM_HOME, where the worker starts")
    return settings


def ended(result: dict[str, Any], artifacts: int) -> State[dict[str, Any]]:
    """Return the final state of a run, which says what it did. Whoever calls the flow gets `result`.

    Its name stays Completed: filters, automations and our own watch over heartbeats know it by that.
    """
    final = result["models"][-1]
    figures = f"H-mean {100 * final['h_mean']:.1f} %, lowest recall {100 * final['lowest_recall']:.1f} %"
    if result["trained_stages"]:
        message = f"Trained {', '.join(result['trained_stages'])}: {figures}"
    elif result["made_stages"]:
        message = f"Trained nothing, made {', '.join(result['made_stages'])}: {figures}"
    else:
        message = f"Nothing to do: all {artifacts} artifacts were found in the store ({figures})"
    return Completed(message=message, data=result)

"""What a flow run needs that a deployment started: settings of its worker, an id, progress in Prefect's log, an end.

`btm run` gives a flow all of it; a schedule, an event or a click give it nothing but the experiment.
"""

import datetime
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.utilities.urls import url_for

from btm_core.errors import ConfigError
from flows.environment import server_stays
from flows.progress import telling_progress
from tasks.settings import RuntimeSettings, runtime_settings
from tasks.tracking import run_note

__all__ = [
    "ended",
    "in_prefect_log",
    "new_run_id",
    "own_run_id",
    "prefect_link",
    "run_name",
    "show_in_prefect",
    "worker_settings",
]

LINE_SECONDS = 30.0

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


@contextmanager
def in_prefect_log() -> Iterator[None]:
    """Tell the progress of this block's steps to the flow run's log: Prefect's UI shows it."""
    logger = get_run_logger()
    with telling_progress(lambda stage, text: logger.info("%s: %s", stage, text), LINE_SECONDS, starts=True):
        yield


def prefect_link() -> dict[str, str]:
    """Return where Prefect shows this flow run: its page, or its id where Prefect has no pages that stay."""
    run_id = runtime.flow_run.get_id()
    page = url_for("flow-run", obj_id=run_id) if server_stays() else None
    return {"Prefect run": page or str(run_id)}


def show_in_prefect(result: dict[str, Any]) -> None:
    """Leave the models, and where else to look, as an artifact of the flow run. A server that is away loses it."""
    tracking = result["tracking"]
    links = {"Report": result["report"], "MLflow": tracking["page"] or f"{tracking['uri']}, run {tracking['run_id']}"}
    links["Final model"] = result["final_model"]
    try:
        create_markdown_artifact(run_note(result["models"], links), key="btm-models", description="Models of the run")
    except Exception as error:  # the run is done, and its report written
        log.warning("Prefect did not take the table of models: %s", error)


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

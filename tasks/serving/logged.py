"""A packaged model into MLflow, as a logged model of a run that may have ended long ago."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btm_core.errors import TrackingError
from btm_core.urls import without_credentials
from tasks.tracking import mlflow_client

__all__ = ["LoggedPackage", "log_package"]


@dataclass(frozen=True)
class LoggedPackage:
    """A model in MLflow, for `client.create_model_version(name, source, run_id=..., model_id=model_id)`.

    `source` is where its files lie: of `models:/<model_id>`, MLflow's registry in a database would ask the tracking
    server that the process is set to, not its own (3.17).
    """

    model_id: str
    source: str


def log_package(uri: str, mlflow_run_id: str, name: str, folder: Path) -> LoggedPackage:
    """Send the folder of `save_package` to a tracking server, as a logged model of one of its runs.

    All goes through a client of that server: neither MLflow's active run nor its global address is touched. In the
    folder, MLmodel takes note of the run and of the model's id. Raises TrackingError.
    """
    client = mlflow_client(uri)
    try:
        return _log(client, mlflow_run_id, name, folder)
    except Exception as error:  # each kind of tracking store raises its own
        raise TrackingError(
            f"MLflow at {without_credentials(uri)} did not take the model {name}: {without_credentials(str(error))}"
        ) from None


def _log(client: Any, run_id: str, name: str, folder: Path) -> LoggedPackage:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    description = Model.load(str(folder))
    tags = {key: str(value) for key, value in (description.metadata or {}).items() if isinstance(value, str)}
    experiment = client.get_run(run_id).info.experiment_id
    # Its own name is for people; MLflow takes fewer characters there than in that of a registered model.
    plain = re.sub(r"[/:.%\"'`]+", "-", name)
    logged = client.create_logged_model(experiment, name=plain, source_run_id=run_id, tags=tags, model_type="btm")
    try:
        description.model_id, description.run_id = logged.model_id, run_id
        description.artifact_path = logged.artifact_location
        description.save(str(folder / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except BaseException:
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return LoggedPackage(logged.model_id, logged.artifact_location)

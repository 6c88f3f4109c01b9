"""MLflow: one parent run a flow run, one child run a stage that trains, with a record an epoch.

Runs are addressed by id through the client, never through MLflow's active-run stack, which is a thread's own.
"""

import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from btm_core.config import ExperimentConfig, Section
from btm_core.errors import TrackingError
from tasks.events import Event
from tasks.settings import RuntimeSettings

__all__ = ["Tracker", "without_password"]

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0


class Tracker:
    """Logs a run to MLflow. Use as a context manager, and subscribe `listen` to the events of steps."""

    def __init__(self, settings: RuntimeSettings, experiment: ExperimentConfig, run_id: str):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # the default keeps one waiting for minutes
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # MLflow's database migrations tell every step at INFO.
        for noisy in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self.uri = settings.mlflow_uri
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client = MlflowClient(self.uri)
            self._experiment_id = self._find_experiment(settings)
        except Exception as error:  # each kind of tracking store raises its own
            raise TrackingError(
                f"MLflow at {without_password(self.uri)} cannot be used: {error}; check MLFLOW_TRACKING_URI or "
                "BTM_TRACKING_URI, or unset it to track in a local database"
            ) from None
        tags = {"mlflow.runName": run_id, "btm.run_id": run_id}
        self.run_id: str = self._client.create_run(self._experiment_id, tags=tags).info.run_id
        self._children: dict[str, str] = {}
        self._ended: dict[str, str] = {}
        self._buffers: dict[str, list[Any]] = {}
        self._flushed: dict[str, float] = {}
        self._log_parameters(self.run_id, experiment)
        self._client.log_dict(self.run_id, experiment.model_dump(mode="json"), "experiment.json")

    def _find_experiment(self, settings: RuntimeSettings) -> str:
        from mlflow.exceptions import MlflowException

        name = settings.mlflow_experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite")
        location = (settings.home.absolute() / "mlartifacts").as_uri() if local else None
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another run made it in the meantime
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        status = "FINISHED" if kind is None else "FAILED"
        for address in list(self._children):
            self._end_child(address, "FAILED")
        self._client.set_terminated(self.run_id, status)

    def listen(self, event: Event) -> None:
        """Log an event of a step: epochs become metrics of a child run. A failure is told, and stops no training."""
        try:
            self._log_event(event)
        except Exception as error:
            log.warning("MLflow did not take what happened in %s: %s", event.get("step"), error)

    def _log_event(self, event: Event) -> None:
        address = event.get("step", "")
        if event["event"] == "epoch":
            child = self._child(address, event["stage"])
            self._buffer(child, {"train/loss": event["loss"], "train/lr": event["lr"]}, event["epoch"])
            self._buffer(child, {"train/images_per_second": event["images"] / event["seconds"]}, event["epoch"])
            if time.monotonic() - self._flushed.get(child, 0.0) > FLUSH_SECONDS:
                self._flush(child)
        elif event["event"] == "done" and address in self._children:
            self._end_child(address, "FINISHED")

    def log_dataset(self, name: str, digest: str, profile: dict[str, Any], source: str) -> None:
        """Log the training split as the run's data set, with the digest of its content and its long-tail profile."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        dataset = Dataset(
            name=name,
            digest=digest[:36],  # as long as MLflow allows
            source_type="btm",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"digest": digest, **profile}),
        )
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])])

    def log_result(self, metrics: dict[str, float], tags: dict[str, str], files: list[Path]) -> None:
        """Log the final figures, tags and files to the parent run."""
        self._buffer(self.run_id, metrics, 0)
        self._flush(self.run_id)
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)
        for path in files:
            self._client.log_artifact(self.run_id, str(path))

    def log_model_result(self, address: str, metrics: dict[str, float]) -> None:
        """Log test figures of a model to the child run that trained it, if this run did."""
        child = self._ended.get(address)
        if child is not None:
            self._buffer(child, metrics, 0)
            self._flush(child)

    def _child(self, address: str, stage: str) -> str:
        if address not in self._children:
            name = address.rsplit("-", 1)[0]
            tags = {
                "mlflow.runName": name,
                "mlflow.parentRunId": self.run_id,
                "btm.stage": stage,
                "btm.address": address,
            }
            self._children[address] = self._client.create_run(self._experiment_id, tags=tags).info.run_id
        return self._children[address]

    def _end_child(self, address: str, status: str) -> None:
        child = self._children.pop(address)
        self._ended[address] = child
        self._flush(child)
        self._client.set_terminated(child, status)

    def _buffer(self, run_id: str, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffers.setdefault(run_id, []).extend(Metric(key, value, now, step) for key, value in metrics.items())

    def _flush(self, run_id: str) -> None:
        metrics = self._buffers.pop(run_id, [])
        self._flushed[run_id] = time.monotonic()
        for start in range(0, len(metrics), 1000):  # the server's limit a request
            self._client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def _log_parameters(self, run_id: str, experiment: ExperimentConfig) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:500]) for key, value in sorted(_flat(experiment).items())]
        self._client.log_batch(run_id, params=params[:100])
        self._client.log_batch(run_id, params=params[100:])


def without_password(uri: str) -> str:
    """Return a URI with the password taken out."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)


def _flat(section: Section, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, Section) else {f"{prefix}{name}": value}
    return values

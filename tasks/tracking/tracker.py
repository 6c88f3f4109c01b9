"""One parent run a flow run, one child run a model that is made, with a record an epoch.

Runs are addressed by id through the client, never through MLflow's active-run stack, which is a thread's own. But for
the parent, which is made at once so that a wrong address is an error at once, all goes through the outbox.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from btm_core.config import ExperimentConfig, Section
from btm_core.urls import split_credentials, without_credentials
from tasks.events import Event
from tasks.settings import RuntimeSettings
from tasks.tracking.client import connect, pattern_of, run_page, server_trouble, unusable
from tasks.tracking.outbox import Outbox, log

__all__ = ["DatasetFacts", "Tracker"]

CHILDREN = ("pretrain", "fc", "finetune", "merge", "post_train")
"""Stages that make a model."""
FLUSH_SECONDS = 5.0
BATCH = 1000
"""Metrics a request: the server's limit."""
STOP_SECONDS = 5.0

Records = Callable[[str], Iterable[dict[str, Any]]]
DatasetFacts = tuple[str, str, dict[str, Any], str]
"""Context (training, validation, evaluation), digest, profile, source."""


class Tracker:
    """Logs a run to MLflow. Use as a context manager, and subscribe `listen` to the events of steps.

    Arguments:
    - tags: of the parent run, besides those that name it.
    - records: reads the epochs of an artifact by its address; of a stage that went on from a saved state, or was found
      in the store, this process has not seen them all.
    - over: whether the run of an id, of the same store, has ended. What was killed could not tell MLflow.
    """

    def __init__(
        self,
        settings: RuntimeSettings,
        experiment: ExperimentConfig,
        run_id: str,
        tags: Mapping[str, str] | None = None,
        records: Records = lambda address: (),
        over: Callable[[str], bool] = lambda run_id: False,
    ):
        self.uri, _, _ = split_credentials(settings.mlflow_uri)
        tags = {"mlflow.runName": run_id, "btm.run_id": run_id, **(tags or {})}
        self._client, self._experiment_id = connect(settings)
        try:
            self.run_id: str = self._client.create_run(self._experiment_id, tags=tags).info.run_id
        except Exception as error:
            raise unusable(settings, error) from None
        self.page = run_page(self.uri, self._experiment_id, self.run_id)
        self._records, self._over = records, over
        self._store = tags.get("btm.store")
        self._patience = 60 * settings.tracking_minutes
        self._outbox = Outbox(without_credentials(self.uri), lambda: self._client.search_experiments(max_results=1))
        self._spool = tempfile.TemporaryDirectory(prefix="btm-mlflow-", ignore_cleanup_errors=True)
        self._children: dict[str, str | None] = {}
        """Run of each address; None where an earlier run has it already. Only the outbox's thread looks at it."""
        self._begun: dict[str, bool] = {}
        """Addresses that have a run here, or are to have one, and whether their artifact was found."""
        self._open: set[str] = set()
        self._told: dict[str, set[int]] = {}
        self._buffers: dict[str, list[Any]] = {}
        self._flushed: dict[str, float] = {}
        parameters = _flat(experiment)
        self._put("the parameters", lambda: self._log_parameters(parameters))
        self._put("the end of runs that died", self._end_the_dead)
        document = experiment.model_dump(mode="json")
        self._put("the configuration", lambda: self._client.log_dict(self.run_id, document, "experiment.json"))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._end("FINISHED" if kind is None else "FAILED", "FAILED", self._patience)

    def kill(self) -> None:
        """Mark the run and its open children as killed."""
        self._end("KILLED", "KILLED", STOP_SECONDS)

    def _end(self, status: str, status_of_children: str, patience: float) -> None:
        for address in sorted(self._open):
            self._end_child(address, status_of_children)
        self._put("the end of the run", lambda: self._client.set_terminated(self.run_id, status))
        left = self._outbox.close(patience)
        if left:
            log.warning(
                "MLflow did not come back: %d entries of run %s are not logged; its report and models are in the store "
                "as ever, and the same command, which finds them there, logs them when MLflow is back",
                left,
                self.run_id,
            )
        self._spool.cleanup()

    def listen(self, event: Event) -> None:
        """Log an event of a step: epochs become metrics of a child run."""
        kind, address = event["event"], event.get("step", "")
        stage = address.partition("/")[0]
        if stage not in CHILDREN:
            return
        if kind in ("started", "epoch"):
            self._begin_child(address, found=False)
        if kind == "epoch":
            self._log_epoch(address, event)
            if time.monotonic() - self._flushed.get(address, 0.0) > FLUSH_SECONDS:
                self._flush(address)
        elif kind in ("done", "cached"):
            self._complete(address, found=kind == "cached" and address not in self._open)

    def log_datasets(self, name: str, datasets: Iterable[DatasetFacts]) -> None:
        """Log the splits as the run's data sets, each with the digest of its content."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        inputs = []
        for context, digest, profile, source in datasets:
            dataset = Dataset(
                name=f"{name} {context}",
                digest=digest[:36],  # as long as MLflow allows
                source_type="btm",
                source=json.dumps({"uri": source}),
                profile=json.dumps({"digest": digest, **profile}),
            )
            inputs.append(DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)]))
        self._put("the data sets", lambda: self._client.log_inputs(self.run_id, inputs))

    def log_table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Log a table of equally long columns, which MLflow's pages show as one."""
        # Not `log_table`, which appends when it is called twice.
        document = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        self._put(name, lambda: self._client.log_dict(self.run_id, document, name))
        listing = json.dumps([{"path": name, "type": "table"}])
        self._put(name, lambda: self._client.set_tag(self.run_id, "mlflow.loggedArtifacts", listing))

    def log_result(self, metrics: dict[str, float], tags: dict[str, str], files: list[Path], note: str) -> None:
        """Log the final figures, tags, files and description to the parent run."""
        self._buffer("", metrics, 0)
        self._flush("")
        for key, value in {**tags, "mlflow.note.content": note}.items():
            self._put(f"tag {key}", partial(self._client.set_tag, self.run_id, key, value))
        for path in files:  # they are gone before all is sent
            kept = Path(self._spool.name, path.name)
            kept.write_bytes(path.read_bytes())
            folder = "figures" if kept.suffix == ".png" else None
            self._put(kept.name, partial(self._client.log_artifact, self.run_id, str(kept), folder))

    def log_model_result(self, address: str, metrics: dict[str, float]) -> None:
        """Log figures of a model to the child run of its address, if it is this run's."""
        self._buffer(address, metrics, 0)
        self._flush(address)

    def _put(self, what: str, send: Callable[[], object]) -> None:
        self._outbox.put(what, send)

    def _log_epoch(self, address: str, record: Mapping[str, Any]) -> None:
        """Log an epoch, unless it was: a stage that went on from a saved state does some again."""
        told = self._told.setdefault(address, set())
        if record["epoch"] in told:
            return
        told.add(record["epoch"])
        metrics = {"train/loss": record["loss"], "train/lr": record["lr"]}
        metrics["train/images_per_second"] = record["images"] / record["seconds"]
        if "waited" in record:
            metrics["train/waited_share"] = record["waited"] / record["seconds"]
        metrics |= {f"system/{name}": value for name, value in record.get("system", {}).items()}
        self._buffer(address, metrics, record["epoch"])

    def _complete(self, address: str, found: bool) -> None:
        """Log the epochs that were not told, and end the child run."""

        def fill() -> None:
            if self._child(address) is None:
                return
            for record in self._records(address):
                self._log_epoch(address, record)
            self._send(address)

        self._begin_child(address, found)
        self._flush(address)
        self._put(f"the epochs of {address}", fill)
        self._end_child(address, "FINISHED")

    def _begin_child(self, address: str, found: bool) -> None:
        if address not in self._open:
            self._open.add(address)
            self._begun.setdefault(address, found)
            self._put(f"run {address}", lambda: self._child(address))

    def _child(self, address: str) -> str | None:
        """Return the run of an address, made now if it was begun and is not there; None if it has none here."""
        if address and address not in self._children and address in self._begun:
            self._make_child(address, self._begun[address])
        return self._children.get(address) if address else self.run_id

    def _make_child(self, address: str, found: bool) -> None:
        """Make the run of an address, unless there is one: ours, or of a stage that was found, an earlier one."""
        wanted = f"tags.`btm.address` = '{address}'"
        earlier = self._client.search_runs([self._experiment_id], wanted, max_results=100)
        own = [run for run in earlier if run.data.tags.get("mlflow.parentRunId") == self.run_id]
        if own:  # the reply to an earlier try was lost
            self._children[address] = own[0].info.run_id
        elif found and any(run.info.status == "FINISHED" for run in earlier):
            self._children[address] = None
        else:
            stage, _, name = address.partition("/")
            tags = {
                "mlflow.runName": f"{stage}/{name.rsplit('-', 1)[0]}",
                "mlflow.parentRunId": self.run_id,
                "btm.stage": stage,
                "btm.address": address,
            }
            self._children[address] = self._client.create_run(self._experiment_id, tags=tags).info.run_id

    def _end_child(self, address: str, status: str) -> None:
        self._open.discard(address)
        self._flush(address)
        self._put(f"the end of {address}", lambda: self._terminate(address, status))

    def _terminate(self, address: str, status: str) -> None:
        child = self._child(address)
        if child is not None:
            self._client.set_terminated(child, status)

    def _end_the_dead(self) -> None:
        """Mark runs as killed that MLflow holds for running, though they have ended."""
        if self._store is None:
            return
        wanted = f"attributes.status = 'RUNNING' and tags.`btm.store` LIKE {pattern_of(self._store)}"
        for run in self._client.search_runs([self._experiment_id], wanted, max_results=100):
            if run.data.tags["btm.store"] != self._store or run.info.run_id == self.run_id:
                continue
            if not self._over(run.data.tags["btm.run_id"]):
                continue
            children = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run.info.run_id}'"
            for child in self._client.search_runs([self._experiment_id], children, max_results=1000):
                self._client.set_terminated(child.info.run_id, "KILLED")
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _buffer(self, address: str, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffers.setdefault(address, []).extend(Metric(key, value, now, step) for key, value in metrics.items())

    def _flush(self, address: str) -> None:
        self._flushed[address] = time.monotonic()
        self._put(f"metrics of {address or 'the run'}", lambda: self._send(address))

    def _send(self, address: str) -> None:
        """Send what is buffered. To MLflow the same metric at the same time twice is one: a lost reply does no harm."""
        run_id = self._child(address)
        waiting = self._buffers.get(address, [])
        while waiting:
            batch = waiting[:BATCH]
            try:
                if run_id is not None:
                    self._client.log_batch(run_id, metrics=batch)
            except Exception as error:
                if server_trouble(error):
                    raise  # and it stays for the next try
                del waiting[: len(batch)]
                raise
            del waiting[: len(batch)]

    def _log_parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:500]) for key, value in sorted(values.items())]
        for start in range(0, len(params), 100):  # the server's limit a request
            self._client.log_batch(self.run_id, params=params[start : start + 100])


def _flat(section: Section, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, Section) else {f"{prefix}{name}": value}
    return values

"""Runs that are done: what they wrote down in the store, found again by their id."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from btm_core.config import ExperimentConfig
from btm_core.errors import ArtifactError, StoreError
from btm_core.storage import Artifact, Store
from tasks.evaluate import evidence_of
from tasks.naming import unambiguous

if TYPE_CHECKING:
    from btm_core.evidence import Evidence

__all__ = ["LATEST", "FinishedRun"]

LATEST = "latest"


@dataclass(frozen=True)
class FinishedRun:
    """A run of BTM that has ended well."""

    store: Store
    run_id: str
    summary: dict[str, Any]
    """What `btm run --json` printed."""
    report: dict[str, Any]

    @classmethod
    def find(cls, store: Store, name: str, experiment: str | None = None) -> "FinishedRun":
        """Return the run of an id, of its beginning, or of its URL; `latest` is the newest one of an experiment.

        Raises StoreError that names others if there is none, or that says what it is if it is no run that is done.
        """
        paths = [(fact.path.split("/"), fact.modified) for fact in store.walk("runs")]
        if name == LATEST:
            return cls._latest(store, {path[1]: at for path, at in paths if path[2:] == ["run.json"]}, experiment)
        token = name.removeprefix(store.url).strip("/").removeprefix("runs/")
        known = dict.fromkeys(path[1] for path, _ in paths if len(path) > 2)
        return cls.read(store, unambiguous(name, token, known, "run", f"store {store.url}"))

    @classmethod
    def _latest(cls, store: Store, done: dict[str, Any], experiment: str | None) -> "FinishedRun":
        for run_id in sorted(done, key=lambda one: done[one], reverse=True):
            run = cls.read(store, run_id)
            if experiment is None or run.summary["name"] == experiment:
                return run
        what = f" of experiment {experiment!r}" if experiment else ""
        raise StoreError(f"store {store.url} has no run{what} that is done; `btm store ls` lists what there is")

    @classmethod
    def read(cls, store: Store, run_id: str) -> "FinishedRun":
        """Return the run of exactly this id. Raises StoreError."""
        summary, report = (store.read("runs", run_id, name) for name in ("run.json", "report.json"))
        if summary is not None and report is not None:
            return cls(store, run_id, json.loads(summary), json.loads(report))
        comparison = store.read("runs", run_id, "comparison.json")
        if comparison is None:
            raise StoreError(f"run {run_id} has no report in {store.url}: it has not ended; run it again to its end")
        runs = ", ".join(run["run_id"] for run in json.loads(comparison).get("runs", []))
        raise StoreError(f"{run_id} is a table over several runs" + (f"; take one of its runs: {runs}" if runs else ""))

    @cached_property
    def experiment(self) -> ExperimentConfig:
        """The configuration it ran with."""
        return ExperimentConfig.model_validate(self.report["experiment"])

    @property
    def final(self) -> dict[str, Any]:
        """Names, addresses and figures of its final model."""
        row: dict[str, Any] = self.report["models"][-1]
        return row

    @cached_property
    def evaluation(self) -> Artifact:
        """The evaluation of its final model on the test split."""
        return self.artifact(self.final["evaluation"])

    @cached_property
    def model(self) -> Artifact:
        """Its final model."""
        return self.artifact(self.final["artifact"])

    @cached_property
    def data(self) -> Artifact:
        """The data it was evaluated on."""
        manifest = self.store.manifest(self.evaluation.address)
        assert manifest is not None
        return self.artifact(manifest.parents["data"])

    @cached_property
    def evidence(self) -> "Evidence":
        """What its final model predicted on the test split."""
        return evidence_of(self.store, self.evaluation)

    def artifact(self, address: str) -> Artifact:
        """Return an artifact of the run. Raises ArtifactError if it is no longer whole."""
        found = self.store.find(address)
        if found is None:
            raise ArtifactError(
                f"{address} of run {self.run_id} is no longer whole in {self.store.url}; the same run again makes it"
            )
        return found

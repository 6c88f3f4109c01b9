"""A registered model of MLflow: its versions, what they predicted, and which of them is in use."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btm_core.errors import BTMError, ConfigError, TrackingError
from btm_core.urls import without_credentials
from tasks.registry.ledger import Ledger, Standing, insisting
from tasks.serving.package import EVIDENCE
from tasks.settings import RuntimeSettings
from tasks.tracking import find_experiment, mlflow_client, split_metrics

if TYPE_CHECKING:
    from btm_core.evidence import Evidence
    from tasks.finished import FinishedRun
    from tasks.serving.logged import LoggedPackage

__all__ = ["Registry", "Version"]


@dataclass(frozen=True)
class Version:
    """A version of a registered model, as BTM registered it: the run and the artifact it is from."""

    model: str
    number: str
    run_id: str | None
    address: str | None
    store: str | None
    mlflow_run: str | None

    def to_json(self) -> dict[str, Any]:
        """Return what names it, JSON-ready."""
        return {"version": self.number, "run_id": self.run_id, "artifact": self.address}


class Registry:
    """The registered model `name` on the tracking server of `settings`.

    Raises ConfigError if no model can have that name; TrackingError, from every method, if the server cannot be used.
    """

    def __init__(self, settings: RuntimeSettings, name: str):
        if not name.strip() or set(name) & set("/:'\"`"):
            raise ConfigError(f"{name!r} is no name of a registered model: it must not be empty, nor have / : ' \" `")
        self.name, self.uri, self._settings = name, settings.mlflow_uri, settings
        self._shown = without_credentials(self.uri)
        with self._asking():
            self.client = mlflow_client(self.uri)
        self._ledger = Ledger(self.client, name)

    def exists(self) -> bool:
        """Return whether anything was ever registered under this name."""
        with self._asking():
            found = self.client.search_registered_models(f"name = '{self.name}'", max_results=1)
            return bool(found)

    def create(self) -> None:
        """Make the registered model, if there is none of this name."""
        from mlflow.exceptions import MlflowException

        with self._asking():
            try:
                self.client.create_registered_model(self.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

    def version(self, number: str) -> Version:
        """Return a version by its number. Raises ConfigError if there is none."""
        from mlflow.exceptions import MlflowException

        with self._asking():
            try:
                return _version(self.client.get_model_version(self.name, number))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        raise ConfigError(f"registered model {self.name!r} has no version {number}")

    def add(self, logged: "LoggedPackage", run: "FinishedRun", mlflow_run: str, card: str) -> Version:
        """Make a version of a logged model that is the final model of a run, described by its card."""
        tags = {"btm.run_id": run.run_id, "btm.store": run.store.url, "btm.address": run.model.address}
        tags |= {"btm.data": run.report["data"]["content"], "btm.split_hash": run.final["split_hash"]}
        tags |= {name: f"{value:.4f}" for name, value in split_metrics("test", run.final).items()}
        with self._asking():
            made = self.client.create_model_version(
                self.name,
                logged.source,
                run_id=mlflow_run,
                model_id=logged.model_id,
                tags=tags,
                description=card,
            )
        return _version(made)

    def of_artifact(self, address: str, store: str) -> Version | None:
        """Return the newest version that is this artifact of this store, if it was registered."""
        with self._asking():
            wanted = f"name = '{self.name}' and tag.`btm.address` = '{address}'"
            found = [_version(one) for one in self.client.search_model_versions(wanted, max_results=100)]
        own = [version for version in found if version.store == store]
        return max(own, key=lambda version: int(version.number), default=None)

    def evidence(self, version: Version) -> "Evidence | None":
        """Return what a version predicted, as it was registered; None if somebody else registered it, without."""
        from mlflow.artifacts import download_artifacts, list_artifacts

        from btm_core.evidence import Evidence

        with self._asking(), tempfile.TemporaryDirectory(prefix="btm-") as folder:
            source = self.client.get_model_version_download_uri(self.name, version.number)
            held = {file.path for file in list_artifacts(f"{source}/artifacts", tracking_uri=self.client.tracking_uri)}
            if not any(Path(path).name == EVIDENCE for path in held):
                return None
            path = download_artifacts(
                f"{source}/artifacts/{EVIDENCE}", dst_path=folder, tracking_uri=self.client.tracking_uri
            )
            return Evidence.load(Path(path))

    def run_of(self, run: "FinishedRun") -> str:
        """Return the MLflow run of a run; a new one if it was tracked elsewhere, or is deleted."""
        from mlflow.exceptions import MlflowException

        with self._asking():
            try:
                found = self.client.get_run(run.summary["tracking"]["run_id"])
                if found.info.lifecycle_stage == "active":
                    return str(found.info.run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            experiment = find_experiment(self.client, self._settings)
            tags = {"mlflow.runName": run.run_id, "btm.run_id": run.run_id, "btm.store": run.store.url}
            made = self.client.create_run(experiment, tags=tags).info.run_id
            self.client.set_terminated(made, "FINISHED")
            return str(made)

    def log_texts(self, mlflow_run: str, texts: Mapping[str, str], folder: str) -> None:
        """Log texts, by file name, as artifacts of a run."""
        with self._asking():
            for name, text in texts.items():
                self.client.log_text(mlflow_run, text, f"{folder}/{name}")

    def summary(self) -> dict[str, Any]:
        """Return which versions are in use, and how the last decision on each version went, JSON-ready."""
        standing = self.standing() if self.exists() else None
        if standing is None:
            raise ConfigError(
                f"there is no registered model {self.name!r} at {self._shown}; btm promote RUN_ID makes one"
            )
        with self._asking():
            named = sorted(self.client.get_registered_model(self.name).aliases.items())
            versions = self.client.search_model_versions(f"name = '{self.name}'", max_results=1000)
        rows = [
            {
                "version": str(one.version),
                "alias": ", ".join(name for name, version in named if str(version) == str(one.version)) or None,
                "run_id": one.tags.get("btm.run_id"),
                "decision": one.tags.get("btm.decision"),
                "at": one.tags.get("btm.decision.at"),
                "reasons": one.tags.get("btm.decision.reasons", "").splitlines(),
            }
            for one in sorted(versions, key=lambda one: int(one.version))
        ]
        return {"model": self.name, "champion": standing.champion, "previous": standing.previous, "versions": rows}

    def standing(self) -> Standing:
        """Return which versions are champion and previous."""
        with self._asking():
            return self._ledger.standing()

    def move(self, seen: Standing, champion: str, previous: str | None, by: str) -> bool:
        """Make a version the champion if things still are as they were `seen`; return whether they were."""
        with self._asking():
            return self._ledger.move(seen, champion, previous, by)

    def alias(self, name: str, version: Version) -> None:
        """Let an alias name a version."""
        with self._asking():
            insisting(lambda: self.client.set_registered_model_alias(self.name, name, version.number))

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._asking():
            for key, value in tags.items():
                self.client.set_model_version_tag(self.name, version.number, key, value[:5000])

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except BTMError:
            raise
        except Exception as error:  # each kind of tracking store raises its own
            raise TrackingError(
                f"MLflow's registry at {self._shown} cannot be used: {without_credentials(str(error))}; check "
                "MLFLOW_TRACKING_URI, and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where it wants them"
            ) from None


def _version(found: Any) -> Version:
    tags = found.tags
    return Version(
        found.name,
        str(found.version),
        tags.get("btm.run_id"),
        tags.get("btm.address"),
        tags.get("btm.store"),
        found.run_id,
    )

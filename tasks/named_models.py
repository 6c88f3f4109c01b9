"""Models as a user names them: a run, a registered version, a checkpoint file; and what they predicted.

A run's evaluation is in the store, a version carries its evidence; a checkpoint is evaluated here and now, and so are
all of them if data are given. What was evaluated once is found in the store.
"""

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from btm_core.config import ExperimentConfig, InputConfig
from btm_core.errors import CheckpointError, ConfigError, DataError, StoreError, TrackingError
from btm_core.storage import Artifact, Store, fetch_file, file_digest
from btm_core.urls import refuse_credentials, without_credentials
from tasks.data import describe, prepare_data
from tasks.evaluate import evaluation_step, evidence_of
from tasks.execution import execute
from tasks.finished import FinishedRun
from tasks.naming import near_misses
from tasks.pretrain import ImportStage1
from tasks.serving.package import EVIDENCE
from tasks.settings import RuntimeSettings
from tasks.stages import WEIGHTS
from tasks.tracking import mlflow_client, pattern_of

if TYPE_CHECKING:
    from btm_core.checkpoints import CheckpointMetadata
    from btm_core.evidence import Evidence
    from btm_core.side_by_side import Evaluated

__all__ = ["NamedModel", "evaluated", "named_model"]

VERSION = re.compile(r"(?:models:/)?(?P<name>[^/:@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/:@]+))")
OTHER_CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".pkl", ".npz")


@dataclass(frozen=True)
class NamedModel(ABC):
    """A model that a user named by `spec`."""

    kind: ClassVar[str]
    spec: str
    settings: RuntimeSettings

    @property
    @abstractmethod
    def name(self) -> str:
        """What to call it."""

    @abstractmethod
    def evidence(self) -> "Evidence | None":
        """Return what it predicted when it was evaluated; None if it was not."""

    @abstractmethod
    def weights(self, scratch: Path) -> Path:
        """Return a local copy of its checkpoint."""

    @property
    def artifact(self) -> Artifact | None:
        """Its weights in the store, if it is known to be there."""
        return None

    @property
    def experiment(self) -> ExperimentConfig | None:
        """The experiment that it came from, if that is known."""
        return None


class RunModel(NamedModel):
    """A model of a run of the store: the final one, or the one that is named behind a colon."""

    kind: ClassVar[str] = "run"

    @cached_property
    def store(self) -> Store:
        """Where the run is."""
        return Store(self.settings.store_url)

    @cached_property
    def run(self) -> FinishedRun:
        """The run that made it."""
        return FinishedRun.find(self.store, self._parts[0])

    @property
    def _parts(self) -> tuple[str, str]:
        """Name of the run, and name of the model or nothing. A URL has a colon, too."""
        where = self.store.url if self.spec.startswith(self.store.url) else ""
        run, _, model = self.spec.removeprefix(where).partition(":")
        return where + run, model.strip()

    @cached_property
    def _row(self) -> dict[str, Any]:
        rows: dict[str, dict[str, Any]] = {row["name"]: row for row in self.run.report["models"]}
        name = self._parts[1] or next(reversed(rows))
        if name not in rows:
            raise StoreError(f"run {self.run.run_id} has no model {name!r}; it has {', '.join(rows)}")
        return rows[name]

    @property
    def name(self) -> str:
        """Run and model."""
        return f"{self.run.run_id}, {self._row['name']}"

    def evidence(self) -> "Evidence":
        """Read the run's evaluation."""
        return evidence_of(self.store, self.run.artifact(self._row["evaluation"]))

    @property
    def artifact(self) -> Artifact:
        """Its weights."""
        return self.run.artifact(self._row["artifact"])

    def weights(self, scratch: Path) -> Path:
        """Fetch its weights."""
        return self.store.fetch(self.artifact, WEIGHTS, scratch)

    @cached_property
    def experiment(self) -> ExperimentConfig | None:
        """The run's configuration; None if this version does not understand it."""
        try:
            return self.run.experiment
        except ValidationError:
            return None


class Version(NamedModel):
    """A version of a registered model: models:/NAME/3, NAME/3, models:/NAME@champion, NAME@champion."""

    kind: ClassVar[str] = "version"

    @cached_property
    def _client(self) -> Any:
        uri = self.settings.mlflow_uri
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
            raise TrackingError(
                f"there is no MLflow at {uri}; set MLFLOW_TRACKING_URI to the one that has {self.spec!r}"
            )
        return self._asked(lambda: mlflow_client(uri))

    def _asked(self, call: Any) -> Any:
        """Return what MLflow answers. Raises TrackingError if it cannot be asked."""
        from mlflow.exceptions import MlflowException

        try:
            return call()
        except Exception as error:  # each kind of tracking store raises its own
            code = error.error_code if isinstance(error, MlflowException) else ""
            if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise LookupError from error
            shown = without_credentials(self.settings.mlflow_uri)
            raise TrackingError(
                f"MLflow at {shown} cannot be asked for {self.spec!r}: {without_credentials(str(error))}"
            ) from None

    @cached_property
    def version(self) -> Any:
        """MLflow's model version."""
        found = VERSION.fullmatch(self.spec)
        assert found is not None
        name, number, alias = found["name"], found["version"], found["alias"]
        client = self._client
        try:
            if alias:
                return self._asked(lambda: client.get_model_version_by_alias(name, alias))
            return self._asked(lambda: client.get_model_version(name, number))
        except LookupError:
            raise TrackingError(self._unknown(name, alias)) from None

    def _unknown(self, name: str, alias: str | None) -> str:
        place = f"the registry of MLflow at {without_credentials(self.settings.mlflow_uri)}"
        try:
            model = self._asked(lambda: self._client.get_registered_model(name))
        except LookupError:
            models = self._asked(lambda: self._client.search_registered_models(max_results=1000))
            names = [model.name for model in models]
            some = near_misses(name, names) or (f"; it has {', '.join(names[:5])}" if names else "; it has none")
            return f"{place} has no model {name!r}{some}"
        if alias:
            return f"{place}: {name} has no version called {alias!r}; it has {', '.join(model.aliases) or 'no alias'}"
        wanted = f"name LIKE {pattern_of(name)}"
        versions = self._asked(lambda: self._client.search_model_versions(wanted, max_results=1000))
        numbers = sorted(int(version.version) for version in versions if version.name == name)
        return f"{place}: {name} has no version {self.spec.rpartition('/')[2]}; it has {', '.join(map(str, numbers))}"

    @property
    def name(self) -> str:
        """Model and number."""
        return f"{self.version.name}, version {self.version.version}"

    def _file(self, name: str, scratch: Path, needed: str) -> Path:
        """Download one file of the version's package."""
        from mlflow.artifacts import download_artifacts

        def download() -> str:
            # Not models:/..., which would be asked of MLflow's global tracking URI.
            folder = self._client.get_model_version_download_uri(self.version.name, self.version.version)
            where = scratch / f"{self.version.name}-{self.version.version}"
            return str(
                download_artifacts(
                    f"{folder}/artifacts/{name}", dst_path=str(where), tracking_uri=self._client.tracking_uri
                )
            )

        try:
            return Path(self._asked(download))
        except (LookupError, TrackingError) as error:
            why = f"{self.name} has no artifacts/{name} that can be fetched; {needed}"
            raise TrackingError(f"{why}\n{error}".strip()) from None

    def evidence(self) -> "Evidence":
        """Download what it predicted when it was registered."""
        from btm_core.evidence import Evidence

        with tempfile.TemporaryDirectory(prefix="btm-") as scratch:
            needed = "a version that BTM did not register can be compared by its checkpoint file and --data"
            return Evidence.load(self._file(EVIDENCE, Path(scratch), needed))

    def weights(self, scratch: Path) -> Path:
        """Download its checkpoint."""
        return self._file(WEIGHTS, scratch, "name its checkpoint file in its place")


class CheckpointFile(NamedModel):
    """A safetensors file, at a path or URL."""

    kind: ClassVar[str] = "checkpoint"

    @property
    def name(self) -> str:
        """As it was named."""
        return self.spec

    def evidence(self) -> None:
        """Return None: nobody evaluated it."""
        return

    def weights(self, scratch: Path) -> Path:
        """Fetch the file, if it is not here."""
        local = Path(self.spec).expanduser()
        if "://" not in self.spec and local.is_file():
            return local
        target = scratch / Path(urlsplit(self.spec).path).name
        try:
            fetch_file(self.spec, target)
        except OSError as error:
            why = "it does not exist" if isinstance(error, FileNotFoundError) else error
            raise CheckpointError(f"checkpoint {self.spec} cannot be read: {why}") from None
        return target


def named_model(spec: str, settings: RuntimeSettings) -> NamedModel:
    """Tell from its form what kind of model a user named. Raises ConfigError if it can be none."""
    try:
        refuse_credentials(spec)
    except ValueError as error:
        raise ConfigError(f"{without_credentials(spec)}: {error}") from None
    if spec.endswith(".safetensors"):
        return CheckpointFile(spec, settings)
    if spec.endswith(OTHER_CHECKPOINTS):
        raise ConfigError(f"{spec} is no safetensors file: make one of it with btm import-checkpoint {spec} -o FILE")
    if VERSION.fullmatch(spec):
        return Version(spec, settings)
    if spec.startswith("models:"):
        raise ConfigError(f"{spec!r} names no version of a registered model: say models:/NAME/3 or models:/NAME@ALIAS")
    return RunModel(spec, settings)


def evaluated(
    specs: Sequence[str], settings: RuntimeSettings, experiment: ExperimentConfig | None
) -> "list[Evaluated]":
    """Return what models predicted that a user named.

    With an `experiment`, all are evaluated on its test split; without one only those that never were, on the data of
    the first run among the others.
    """
    from btm_core.side_by_side import Evaluated

    models = [named_model(spec, settings) for spec in specs]
    names = [model.name for model in models]  # all there are: what is misspelt is told before anything is evaluated
    stored = [model.evidence() if experiment is None else None for model in models]
    data = experiment or next((model.experiment for model in models if model.experiment is not None), None)
    for position, model in enumerate(models):
        if stored[position] is None:
            if data is None:
                raise DataError(f"{model.spec} has to be evaluated, and nothing says on what: give --data PRESET|FILE")
            stored[position] = _evaluate(model, data, settings)
    return [
        Evaluated(name, evidence, model.kind, model.spec)
        for model, name, evidence in zip(models, names, stored, strict=True)
        if evidence is not None
    ]


def _evaluate(model: NamedModel, experiment: ExperimentConfig, settings: RuntimeSettings) -> "Evidence":
    """Evaluate a model on the test split of an experiment's data, seen as the model was trained to see them."""
    from btm_core.checkpoints import check_classes, load_into, read_metadata
    from btm_core.models import build_model

    store = Store(settings.store_url)
    with tempfile.TemporaryDirectory(prefix="btm-") as scratch:
        path = model.weights(Path(scratch))
        metadata = read_metadata(path)
        source = experiment.data.model_copy(update={"input": _view(experiment.data.input, metadata)})
        [data] = execute([prepare_data(experiment.name, source, settings.cache)], settings)
        class_names = describe(store, data)["class_names"]
        check_classes(path, class_names)
        artifact = model.artifact
        if artifact is None:
            backbone = experiment.model.backbone if metadata is None else metadata.backbone
            step = ImportStage1(
                data=data,
                view=source.input,
                model=experiment.model.model_copy(update={"backbone": backbone}),
                seed=experiment.seed,
                root=source.root,
                content=file_digest(path)[0],
                source=str(path),
            )
            # The step would say so, too, but of its own copy of the file.
            load_into(build_model(backbone, len(class_names), source.input.channels), path)
            [artifact] = execute([step], settings)
        return evidence_of(store, execute([evaluation_step(experiment, data, artifact)], settings)[0])


def _view(view: InputConfig, metadata: "CheckpointMetadata | None") -> InputConfig:
    """Return how a checkpoint wants to see images, as far as it says so."""
    if metadata is None:
        return view
    own = {name: getattr(metadata, name) for name in ("size", "channels", "mean", "std")}
    resize = {} if metadata.size == view.size else {"resize": None}
    return InputConfig.model_validate({**view.model_dump(), **own, **resize})

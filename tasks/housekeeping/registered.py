"""What MLflow's registered models need of a store: asked before anything is deleted."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from btm_core.errors import TrackingError
from btm_core.urls import without_credentials
from tasks.housekeeping.garbage import Registered
from tasks.housekeeping.records import addresses_in
from tasks.settings import RuntimeSettings
from tasks.tracking import mlflow_client

__all__ = ["registered_models"]

PAGE = 1000


def registered_models(settings: RuntimeSettings, store_url: str, runs: Mapping[str, Any]) -> Registered:
    """Ask the tracking server which runs and addresses its registered model versions need; `runs` are the store's.

    A version names them by its tags and its source, or by those of the MLflow run it came from. Raises TrackingError
    if the server cannot be asked, or if a version needs a run that nobody can tell anything of.
    """
    uri = settings.mlflow_uri
    shown = without_credentials(uri)
    refusal = "so it is not known what registered models need, and nothing may be deleted"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise TrackingError(
            f"there is no MLflow at {shown}, {refusal}; set MLFLOW_TRACKING_URI to the one that runs of this store are "
            "tracked with, or, if no model was ever registered, say --ignore-registry"
        )
    needed_runs: dict[str, str] = {}
    needed_addresses: dict[str, str] = {}
    try:
        client = mlflow_client(uri)
        for version in _pages(client.search_model_versions):
            model = f"{version.name}, version {version.version}"
            tags, texts = _tags(client, version)
            needed_addresses |= dict.fromkeys(addresses_in("\n".join(texts)), model)
            run_id = tags.get("btm.run_id")
            if run_id is None:
                continue
            needed_runs[run_id] = model
            if run_id not in runs and tags.get("btm.store", store_url) == store_url:
                needed_addresses |= dict.fromkeys(_of_lost_run(client, version, model, run_id), model)
    except TrackingError:
        raise
    except Exception as error:  # each kind of tracking store raises its own
        raise TrackingError(
            f"MLflow at {shown} cannot be asked ({error}), {refusal}; check MLFLOW_TRACKING_URI, or, if no model was "
            "ever registered, say --ignore-registry"
        ) from None
    return Registered(shown, needed_runs, needed_addresses)


def _pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**arguments, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _tags(client: Any, version: Any) -> tuple[dict[str, str], list[str]]:
    """Return the tags of a version and of the runs it came from, and all words in which an address may be."""
    tags: dict[str, str] = {}
    texts = [version.source or "", *map(str, version.tags.values())]
    run_id = version.run_id
    while run_id:
        run = _run(client, run_id)
        if run is None:
            break
        tags = {**run.data.tags, **tags}
        texts += run.data.tags.values()
        children = client.search_runs(
            [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=PAGE
        )
        texts += [tag for child in children for tag in child.data.tags.values()]
        run_id = run.data.tags.get("mlflow.parentRunId")
    return {**tags, **version.tags}, texts


def _run(client: Any, run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # deleted for good: the version's own tags are left
            return None
        raise


def _of_lost_run(client: Any, version: Any, model: str, run_id: str) -> set[str]:
    """Return what a run needs whose folder is not in the store, by the report that MLflow keeps."""
    try:
        report = Path(client.download_artifacts(version.run_id, "report.json")).read_text()
    except Exception as error:
        raise TrackingError(
            f"registered model {model} needs run {run_id}, which is no longer in the store, and MLflow does not have "
            f"its report either ({error}): what it needs is not known, and nothing may be deleted; say "
            "--ignore-registry if that model is no longer used"
        ) from None
    return addresses_in(report)

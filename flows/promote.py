"""Promotion as a flow: for schedules, automations and `btm promote`."""

import getpass
import os
from collections.abc import Sequence
from typing import Any

from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed

from btm_core.config import with_overrides
from btm_core.decision import decision_markdown
from btm_core.errors import ConfigError, StoreError, StoreUnavailableError
from btm_core.storage import Store
from btm_core.urls import without_credentials
from flows.btm import FLOW_OPTIONS
from flows.flow_run import log, worker_settings
from flows.prefect_pages import in_prefect
from flows.work import do
from tasks.evaluate import evaluation_step, evidence_of
from tasks.finished import FinishedRun
from tasks.registry.promotion import Again, decide, roll_back
from tasks.registry.recording import record
from tasks.registry.registering import register
from tasks.registry.registry import Registry
from tasks.settings import RuntimeSettings

__all__ = ["promote", "take_back"]

OPTIONS = FLOW_OPTIONS | {"flow_run_name": None}


@flow(name="btm-promote", **OPTIONS)
def promote(
    run_id: str,
    model: str | None = None,
    overrides: Sequence[str] = (),
    force: str | None = None,
    settings: RuntimeSettings | None = None,
) -> dict[str, Any]:
    """Register the final model of a run, judge it against the champion, and promote it if it passes.

    Returns what `btm promote --json` prints.

    Arguments:
    - run_id: of a run that is done; the beginning is enough, and `latest` is the newest of the experiment `model`.
    - model: registered model; default: the name of the run's experiment.
    - overrides: `promotion.key=value` strings on top of the run's own rules.
    - force: the reason to promote it in any case.
    """
    settings = settings or worker_settings()
    with in_prefect():
        store = Store(settings.store_url)
        run, by = FinishedRun.find(store, run_id, model), whoever()
        rules = with_overrides(run.experiment, overrides).promotion
        registry = Registry(settings, run.experiment.name if model is None else model)

        candidate = register(registry, run)
        decision = decide(
            registry, candidate, run.evidence, rules, by=by, again=_on_images_of(run, settings), force=force
        )
        return _told(record(registry, store, decision))  # type: ignore[return-value]  # Prefect hands the state's data on


@flow(name="btm-rollback", **OPTIONS)
def take_back(model: str, reason: str | None = None, settings: RuntimeSettings | None = None) -> dict[str, Any]:
    """Make the previous champion of a registered model the champion again."""
    settings = settings or worker_settings()
    with in_prefect():
        registry = Registry(settings, model)
        if not registry.exists():
            raise ConfigError(
                f"there is no registered model {model!r} at {without_credentials(registry.uri)}; btm promote RUN_ID "
                "makes one"
            )
        document = record(registry, Store(settings.store_url), roll_back(registry, whoever(), reason))
        return _told(document)  # type: ignore[return-value]


def whoever() -> str:
    """Return who decides: the user of MLflow, or of this machine, and the deployment if there is one."""
    try:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"user {os.getuid()}"
    deployment = runtime.deployment.get_name()
    return f"{user}, deployment {deployment}" if deployment else user


def _on_images_of(run: FinishedRun, settings: RuntimeSettings) -> Again:
    """Return what evaluates a champion on the images of `run`, as the champion sees images, if it can be had."""

    def again(champion: Any, evidence: Any) -> Any:
        store, theirs = run.store, run.experiment.data.input
        if champion.store != store.url or champion.run_id is None or champion.address is None:
            return None
        try:
            before = FinishedRun.find(store, champion.run_id)
        except StoreUnavailableError:
            raise
        except StoreError:  # its run was removed
            return None
        model, view = store.find(champion.address), before.experiment.data.input
        if model is None or (view.size, view.channels, view.decode_once) != (
            theirs.size, theirs.channels, theirs.decode_once,
        ):  # fmt: skip
            return None
        step = evaluation_step(run.experiment, run.data, model).model_copy(update={"view": view})
        return evidence_of(store, do(step, settings))

    return again


def _told(document: dict[str, Any]) -> State[dict[str, Any]]:
    """Leave the decision as an artifact of the flow run, emit it as an event, and return it as the run's end."""
    text = f"{document['model']} version {document['version']}: {document['decision']}"
    if not document["changed"]:
        return Completed(message=f"{text}: {document['reasons'][0]}", data=document)
    try:
        create_markdown_artifact(decision_markdown(document), key="btm-promotion", description=text)
        emit_event(
            f"btm.promotion.{document['decision']}",
            resource={
                "prefect.resource.id": f"btm.model.{document['model']}",
                "prefect.resource.name": document["model"],
            },
            payload={key: document[key] for key in ("version", "run_id", "reasons", "by", "report")},
        )
    except Exception as error:  # it is decided, and written down in MLflow and the store
        log.warning("Prefect did not take the decision: %s", error)
    return Completed(message=text, data=document)

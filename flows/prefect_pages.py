"""What Prefect's UI shows of a run: its log, the progress of long stages, its models, its report, where else to look.

A run does not depend on any of it: a server that is away loses pages, not results.
"""

import contextvars
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import get_run_logger, runtime
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.utilities.urls import url_for

from btm_core.pages import inline, percent
from btm_core.storage import Store
from flows.environment import server_stays
from flows.progress import Stages, telling_progress
from tasks.events import Event, listening
from tasks.settings import RuntimeSettings
from tasks.tracking import model_page, run_note

__all__ = ["in_prefect", "prefect_link", "show_in_prefect"]

LINE_SECONDS = 30.0
PROGRESS_SECONDS = 10.0
"""Between two looks at how far the stages are; one that ends before the first has no progress to show."""
FIGURES = {"balanced_training": "Stage 1 against the soup", "final": "The final model against the one before"}
COLUMNS = {
    "h_mean": "H-mean",
    "g_mean": "G-mean",
    "lowest_recall": "lowest recall",
    "accuracy": "accuracy",
    "many": "many",
    "medium": "medium",
    "few": "few",
}

log = logging.getLogger("tasks.prefect_pages")


@contextmanager
def in_prefect() -> Iterator[None]:
    """Tell the progress of this block's steps to Prefect: in the flow run's log, and as progress artifacts."""
    logger = get_run_logger()
    with telling_progress(lambda stage, text: logger.info("%s: %s", stage, text), LINE_SECONDS, starts=True):
        if not server_stays():  # nobody can look
            yield
            return
        with _progress_artifacts():
            yield


@contextmanager
def _progress_artifacts() -> Iterator[None]:
    """Keep an artifact for each stage that takes longer than a moment; a thread of its own waits for the server."""
    stages, shown = Stages(), dict[str, tuple[UUID, str]]()
    over = threading.Event()

    def hear(event: Event) -> None:
        stages.take(event)

    def keep() -> None:
        while not over.wait(PROGRESS_SECONDS):
            _update(stages, shown)
        _update(stages, shown, new=False)

    # The artifacts belong to the flow run, which Prefect finds in the context.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(keep,), daemon=True)
    thread.start()
    try:
        with listening(hear):
            yield
    finally:
        over.set()
        thread.join(PROGRESS_SECONDS)


def _update(stages: Stages, shown: dict[str, tuple[UUID, str]], *, new: bool = True) -> None:
    for name, stage in list(stages.items()):
        text = f"{stage.label}: {stage.text()}"
        percent = round(100 * stage.share, 1)
        try:
            if name in shown:
                artifact, before = shown[name]
                if text != before:
                    update_progress_artifact(artifact, progress=percent, description=text)
            elif new and not stage.complete:
                artifact = create_progress_artifact(percent, f"btm-{name.replace('_', '-')}", text)  # type: ignore[assignment]
            else:
                continue
            shown[name] = (artifact, text)
        except Exception as error:
            log.debug("Prefect did not take the progress of %s: %s", name, error)


def prefect_link() -> dict[str, str]:
    """Return where Prefect shows this flow run: its page, or its id where Prefect has no pages that stay."""
    run_id = runtime.flow_run.get_id()
    page = url_for("flow-run", obj_id=run_id) if server_stays() else None
    return {"Prefect run": page or str(run_id)}


def show_in_prefect(result: dict[str, Any], settings: RuntimeSettings) -> None:
    """Leave a table of the models, and the report with its figures, as artifacts of the flow run."""
    try:
        *before, final = result["models"]
        create_table_artifact(
            [_row(row) for row in (final, *before)],  # a page may show ten
            key="btm-models",
            description=f"Percent, of the test split. Report, figures and links: {_key(result['name'])}",
        )
        create_markdown_artifact(_report(result, settings), key=_key(result["name"]), description="Report of a BTM run")
    except Exception as error:  # the run is done, and its report written
        log.warning("Prefect did not take the table of models and the report: %s", error)


def _key(name: str) -> str:
    """Return the artifact that holds an experiment's reports: keys are of small letters, digits and dashes."""
    return "btm-report-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _row(row: dict[str, Any]) -> dict[str, Any]:
    figures = {heading: percent(row[key]) for key, heading in COLUMNS.items()}
    return {"model": row["name"], **figures, "zero-recall classes": row["zero_recall_classes"]}


def _report(result: dict[str, Any], settings: RuntimeSettings) -> str:
    tracking = result["tracking"]
    links = {"Report": result["report"], "MLflow": tracking["page"] or f"{tracking['uri']}, run {tracking['run_id']}"}
    links["Final model"] = result["final_model"]
    links["Store"] = Store(settings.store_url).locate("runs", result["run_id"])
    links["Champion"] = model_page(tracking["uri"], result["name"]) or f"models:/{result['name']}@champion"
    models = [row for row in result["models"] if row["stage"] != "finetune"]  # the table has the ingredients, too
    parts = [f"# {result['name']}, seed {result['seed']}", run_note(models, links)]
    store = Store(settings.store_url)
    for name, caption in FIGURES.items():
        figure = store.read("runs", result["run_id"], f"{name}.png")
        if figure is not None:
            parts.append(f"## {caption}\n\n![{caption}: recall of every class]({inline(figure)})")
    return "\n\n".join(parts)

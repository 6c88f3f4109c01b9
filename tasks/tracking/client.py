"""MLflow's client, made to be quiet and to give up soon, and what its errors mean."""

import logging
import os
import re
import sqlite3
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from btm_core.errors import TrackingError
from btm_core.urls import split_credentials, without_credentials
from tasks.settings import RuntimeSettings
from tasks.stopping import on_stop

__all__ = [
    "connect",
    "find_experiment",
    "mlflow_client",
    "model_page",
    "pattern_of",
    "run_page",
    "server_trouble",
    "unusable",
]

STALE_SECONDS = 3600.0
"""A database that was being made so long ago is of a process that was killed."""
WORTH_WAITING = (401, 403, 429)
"""Besides 5xx. A password that is wrong now was right when the run began: somebody is changing it."""


def mlflow_client(uri: str) -> Any:
    """Return MLflow's client of a tracking server and its registry, made to be quiet and to give up soon."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # the default keeps one waiting for minutes
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would mix with --json
    # They tell every step at INFO.
    for noisy in ("alembic", "mlflow.pyfunc", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")  # true by default; a pickle is a program
    # MLflow's errors show the whole URI, so it gets user and password by its own variables.
    address, user, password = split_credentials(uri)
    given = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    os.environ.update({name: value for name, value in given.items() if value is not None})
    if (database := _local_database(address)) is not None:
        _make_once(database)
    from mlflow import MlflowClient

    return MlflowClient(address)


def _local_database(address: str) -> Path | None:
    """Return the file of a tracking URI, if it is one."""
    return Path(address.removeprefix("sqlite:///").partition("?")[0]) if address.startswith("sqlite:///") else None


def _make_once(database: Path) -> None:
    """Make a database, whole or not at all; open one that is there.

    MLflow makes its tables in many steps, for seconds, and can go on with nothing that was stopped between two of them.
    Raises OSError or sqlite3.Error at once: MLflow would try for minutes.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    if not database.exists() or not database.stat().st_size:
        partial = database.with_name(f"{database.name}.{uuid.uuid4().hex}.part")

        def clear() -> None:
            for left in database.parent.glob(f"{database.name}.*.part*"):  # of one that was killed, and journals, too
                if left.name.startswith(partial.name) or time.time() - left.stat().st_mtime > STALE_SECONDS:
                    left.unlink(missing_ok=True)

        try:
            with closing(sqlite3.connect(partial)) as opened:
                opened.execute("PRAGMA schema_version")
            with on_stop(clear):
                _make_tables(partial)
            if database.exists() and not database.stat().st_size:
                database.unlink()
            with suppress(FileExistsError):  # another run made it meanwhile
                _rename(partial, database)
        finally:
            clear()
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("PRAGMA schema_version")


def _rename(partial: Path, database: Path) -> None:
    """Give a file its name unless that is taken, which is a FileExistsError."""
    try:
        os.link(partial, database)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if database.exists():
            raise FileExistsError(database) from None
        partial.replace(database)


def _make_tables(database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{database}", database.parent.as_uri())
    store.engine.dispose()  # its connections are to a name that goes


def connect(settings: RuntimeSettings) -> tuple[Any, str]:
    """Return MLflow's client and the id of the experiment to log to. Raises TrackingError if it cannot be used."""
    try:
        client = mlflow_client(settings.mlflow_uri)
        return client, find_experiment(client, settings)
    except Exception as error:  # each kind of tracking store raises its own
        raise unusable(settings, error) from None


def unusable(settings: RuntimeSettings, error: Exception) -> TrackingError:
    """Return the error to raise for one of MLflow's, as long as nothing has been done."""
    address = split_credentials(settings.mlflow_uri)[0]
    database = _local_database(address)
    cure = (
        "check MLFLOW_TRACKING_URI or BTM_TRACKING_URI, or unset it to track in a local database; a server with "
        "passwords wants MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        if database is None
        else f"if {database} is damaged or of another MLflow, move it aside, and a new one is made"
    )
    reason = without_credentials(str(error)).strip()
    return TrackingError(f"MLflow at {without_credentials(address)} cannot be used: {reason}; {cure}")


def find_experiment(client: Any, settings: RuntimeSettings) -> str:
    """Return the id of the experiment that runs are logged to, made if there is none of its name."""
    from mlflow.exceptions import MlflowException

    name = settings.mlflow_experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = client.tracking_uri.startswith("sqlite")
    location = (settings.home.absolute() / "mlartifacts").as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # another run made it in the meantime
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def pattern_of(text: str) -> str:
    """Return a text as the pattern of a LIKE in a filter of MLflow's, quoted. What is found may be a little else.

    In its filters nothing says that a quote is part of a text. In a pattern `_` is any letter, so that, too.
    """
    return "'" + re.sub(r"['\\]", "_", text) + "'"  # a backslash is one for some databases alone


def server_trouble(error: Exception) -> bool:
    """Return whether an error may be gone when the same is tried later: an outage, not something wrong in itself."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):  # connections that fail count as 500
        status = error.get_http_status_code()
        return status >= 500 or status in WORTH_WAITING
    return isinstance(error, OSError)


def model_page(uri: str, name: str) -> str | None:
    """Return the address of a registered model's page, where its champion is named; None as for `run_page`."""
    return f"{uri.rstrip('/')}/#/models/{name}" if uri.startswith(("http://", "https://")) else None


def run_page(uri: str, experiment_id: str, run_id: str) -> str | None:
    """Return the address of a run's page; None for a local database, which has no pages of its own."""
    if not uri.startswith(("http://", "https://")):
        return None
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"

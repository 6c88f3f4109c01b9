"""Prefect on one machine: defaults of its own variables (what the user has set is left as it is), and its server.

Prefect reads its settings when it is imported, so `prepare_prefect` must run before.
"""

import logging
import os
from pathlib import Path

from btm_core.errors import ConfigError
from flows.own_server import OwnServer
from tasks.settings import RuntimeSettings

__all__ = ["prepare_prefect", "server_ready", "server_stays"]

_own: OwnServer | None = None


def prepare_prefect(home: Path, verbose: bool = False) -> None:
    """Set up a server below `home` (unless PREFECT_API_URL names a real one), without telemetry."""
    home.mkdir(parents=True, exist_ok=True)  # Prefect makes its own folder, but not the one that holds it
    defaults = {
        "PREFECT_HOME": str(home.absolute() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "btm_core,tasks",  # so that its UI shows what they log
        # Failures are told once, by the command line; Prefect's tracebacks stay in its own log.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO" if verbose else "CRITICAL",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if not verbose:
        logging.getLogger("prefect").setLevel(logging.CRITICAL)


def server_ready(settings: RuntimeSettings) -> OwnServer | None:
    """Find out that the Prefect server that is named is well; or start one, if none is, and return it.

    Raises ConfigError.
    """
    global _own
    needed = not os.environ.get("PREFECT_API_URL") and settings.engine != "workpool"
    own = OwnServer() if needed else None  # beside the import of Prefect

    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if own is not None and url:  # of a profile
        own.stop()
    if own is None or url:
        check_server(settings, url)
        return None
    _own = own
    os.environ["PREFECT_API_URL"] = own.url
    refresh_global_settings_context()
    return own


def server_stays() -> bool:
    """Return whether Prefect's server outlives this process: it has pages then, and somebody may cancel runs there."""
    from prefect.settings import get_current_settings

    return _own is None and bool(get_current_settings().api.url)


def check_server(settings: RuntimeSettings, url: str | None) -> None:
    """Find out that the Prefect server is not there, or does not know the work pool, before anything is started."""
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    pool = settings.work_pool
    if not url:
        raise ConfigError(
            "engine workpool needs a Prefect server with workers: set PREFECT_API_URL, or start one here with "
            "btm up --workers 2"
        )
    with get_client(sync_client=True) as client:
        if (problem := client.api_healthcheck()) is not None:
            raise ConfigError(
                f"the Prefect server at {url} (PREFECT_API_URL) cannot be reached: {problem}; is it up, and is "
                "its URL of the form http://HOST:4200/api? Unset PREFECT_API_URL to have one of btm's own"
            )
        if settings.engine == "workpool":
            try:
                client.read_deployment_by_name(f"btm-step/{pool}")
            except ObjectNotFound:
                raise ConfigError(
                    f"the Prefect server at {url} knows no work pool {pool} of BTM's; register it with: "
                    f"btm deploy --pool {pool}"
                ) from None

"""Prefect on one machine: defaults of its own variables (what the user has set is left as it is), and its ephemeral
server, which must not outlive us.

Prefect reads its settings when it is imported, so `prepare_prefect` must run before.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from btm_core.errors import ConfigError
from tasks.settings import RuntimeSettings

__all__ = ["check_server", "guard_server", "prepare_prefect"]

# Waits for its parent to die, then ends the process named on its command line, if that is still the same one.
GUARD = """
import contextlib, sys, psutil
with contextlib.suppress(psutil.NoSuchProcess):
    server = psutil.Process(int(sys.argv[1]))
    sys.stdin.read()
    if server.is_running():
        server.terminate()
"""


def prepare_prefect(home: Path, verbose: bool = False) -> None:
    """Set up the ephemeral server below `home` (unless PREFECT_API_URL names a real one), without telemetry."""
    home.mkdir(parents=True, exist_ok=True)  # Prefect makes its own folder, but not the one that holds it
    defaults = {
        "PREFECT_HOME": str(home.absolute() / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # Two of three cold starts on two cores missed the default of 20 s.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
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
        # The ephemeral server reports its start by printing through this logger.
        logging.getLogger("prefect").setLevel(logging.CRITICAL)


def check_server(settings: RuntimeSettings) -> None:
    """Find out that the Prefect server is not there, or does not know the work pool, before anything is started."""
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    pool = settings.work_pool
    if not url:
        if settings.engine == "workpool":
            raise ConfigError(
                "engine workpool needs a Prefect server with workers: set PREFECT_API_URL, or start one here with "
                "btm up --workers 2"
            )
        return
    with get_client(sync_client=True) as client:
        if (problem := client.api_healthcheck()) is not None:
            raise ConfigError(f"the Prefect server at {url} (PREFECT_API_URL) cannot be reached: {problem!r}")
        if settings.engine == "workpool":
            try:
                client.read_deployment_by_name(f"btm-step/{pool}")
            except ObjectNotFound:
                raise ConfigError(
                    f"the Prefect server at {url} knows no work pool {pool} of BTM's; register it with: "
                    f"btm deploy --pool {pool}"
                ) from None


def guard_server(flow: Any, flow_run: Any, state: Any) -> None:
    """End Prefect's ephemeral server even if this process is killed: it would hold its database, and a port, for ever.

    A hook of a flow's start: the server runs by then.
    """
    import psutil

    for child in psutil.Process().children():
        if "prefect.server.api.server:create_app" in child.cmdline():
            command = [sys.executable, "-c", GUARD, str(child.pid)]
            # The guard's standard input closes when this process ends, in whatever way.
            guard = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _guards.append(guard)


_guards: list["subprocess.Popen[bytes]"] = []

"""Prefect on one machine: defaults of its own variables (what the user has set is left as it is), and its ephemeral
server, which must not outlive us.

Prefect reads its settings when it is imported, so `prepare_prefect` must run before.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["guard_server", "keep_stopping_at_once", "prepare_prefect", "stop_at_once_on_signals"]

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
        # Failures are told once, by the command line; Prefect's tracebacks stay in its own log.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO" if verbose else "CRITICAL",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if not verbose:
        # The ephemeral server reports its start by printing through this logger.
        logging.getLogger("prefect").setLevel(logging.CRITICAL)


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


def stop_at_once_on_signals() -> None:
    """On Ctrl-C and SIGTERM, end at once: Prefect would wait for its tasks.

    Workers and Prefect's server end when their parent does. Artifacts are whole or absent, always.
    """
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def keep_stopping_at_once(flow: Any, flow_run: Any, state: Any) -> None:
    """Do so within a flow too: Prefect puts its own handler of SIGTERM in place when a flow starts.

    A hook of a flow's start. A flow that the command line did not start keeps Prefect's handler.
    """
    if signal.getsignal(signal.SIGINT) is _stop and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    print("\nbtm: stopped; the same command goes on where it stopped", file=sys.stderr, flush=True)
    os._exit(128 + number)

"""Defaults of Prefect's own variables for runs on one machine; what the user has set is left as it is.

Prefect reads its settings when it is imported, so this must run before.
"""

import logging
import os
from pathlib import Path

__all__ = ["prepare_prefect"]


def prepare_prefect(home: Path, verbose: bool = False) -> None:
    """Set up the ephemeral server below `home` (unless PREFECT_API_URL names a real one), without telemetry."""
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

"""Errors that a user can cause. Each message names the thing, what was expected, what was found, and the next step.

The command line prints these without a traceback and exits with 2.
"""

from collections.abc import Sequence

__all__ = [
    "ArtifactError",
    "BTMError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NonFiniteLossError",
    "StoreError",
    "StoreUnavailableError",
    "TrackingError",
    "some_of",
]


class BTMError(Exception):
    """Base of every error that has its cause in the input, the configuration or the surroundings."""


class ConfigError(BTMError, ValueError):
    """The experiment's configuration is wrong."""


class DataError(BTMError, ValueError):
    """The data set is wrong or incomplete."""


class CheckpointError(BTMError, ValueError):
    """A checkpoint does not fit the model, or cannot be read."""


class StoreError(BTMError, OSError):
    """The artifact store cannot be used, or holds something other than what its manifest says."""


class StoreUnavailableError(StoreError):
    """The store did not answer within its deadline; it may later."""


class ArtifactError(StoreError):
    """An artifact vanished, was replaced, or does not hold what its manifest says: running again makes it again."""


class NonFiniteLossError(BTMError, ArithmeticError):
    """The training loss became NaN or infinite."""


class TrackingError(BTMError, OSError):
    """The tracking server cannot be used."""


def some_of(items: Sequence[object], limit: int = 10) -> str:
    """Return the first `limit` items, one a line, and how many more there are."""
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)

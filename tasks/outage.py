"""A store that one stage could not use is not tried by those that wait for their turn: one error says it for all."""

import time

from btm_core.errors import ArtifactError, StoreError

__all__ = ["raise_if_unusable", "remember"]

VALID_SECONDS = 60.0
"""Those who wait get their turn at once; a run that is started later looks for itself."""
_unusable: dict[str, tuple[float, StoreError]] = {}


def remember(store_url: str, error: StoreError) -> None:
    """Note that a store could not be used; damage of one artifact says nothing about the others."""
    if not isinstance(error, ArtifactError):
        _unusable[store_url] = (time.monotonic(), error)


def raise_if_unusable(store_url: str) -> None:
    """Raise what somebody ran into a moment ago."""
    noted = _unusable.get(store_url)
    if noted is not None and time.monotonic() - noted[0] < VALID_SECONDS:
        raise noted[1]

"""News of steps under way, for whoever listens: the progress display, the tracker.

An event is a dict with `event` (queued, started, resumed, epoch, transfer, fetch, done, cached), `step` (its address)
and the event's own facts.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Event", "listening", "publish"]

Event = dict[str, Any]
_listeners: list[Callable[[Event], None]] = []
_lock = threading.Lock()


@contextmanager
def listening(listener: Callable[[Event], None]) -> Iterator[None]:
    """Call `listener` with every event published in this process while the block runs."""
    with _lock:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)


def publish(event: Event) -> None:
    """Tell all listeners, one event at a time: they need no locks of their own."""
    with _lock:
        for listener in _listeners:
            listener(event)

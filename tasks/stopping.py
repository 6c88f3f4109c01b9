"""What is to be done when this process is stopped: whoever starts something that outlives it says how to end it."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["clean_up", "on_stop", "stopping"]

log = logging.getLogger(__name__)

stopping = threading.Event()
"""Set when this process is being stopped: nothing is to be started any more."""
_callbacks: list[Callable[[], None]] = []


@contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Have `callback` called, in a thread of its own, if this process is stopped while the block runs.

    At once, if it is being stopped already.
    """
    _callbacks.append(callback)
    try:
        if stopping.is_set():
            callback()
        yield
    finally:
        _callbacks.remove(callback)


def clean_up(seconds: float) -> None:
    """Call all callbacks beside each other, and wait for them for at most `seconds`: a dead server ends no stop."""
    stopping.set()
    threads = [threading.Thread(target=_call, args=(callback,), daemon=True) for callback in list(_callbacks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception as error:  # the others are still to be called
        log.warning("while stopping: %s", error)

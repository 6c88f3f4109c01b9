"""What is to be logged, sent in order by a thread of its own: a tracking server that is slow or away stops nothing."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from btm_core.urls import without_credentials
from tasks.tracking.client import server_trouble

__all__ = ["Outbox"]

log = logging.getLogger(__name__)

LONGEST_PAUSE = 15.0
"""Seconds between two tries."""
REFUSALS = 3
"""Tries after which something is given up that a server which is otherwise well does not take."""


class Outbox:
    """Sends what is put in, one after the other; what fails because the server is away is tried until it is back.

    What is put in must be such that doing it twice is doing it once: a reply may get lost.

    Arguments:
    - where: the server, as messages call it.
    - alive: a request that succeeds if the server is well.
    """

    def __init__(self, where: str, alive: Callable[[], object]):
        self._where, self._alive = where, alive
        self._waiting: deque[tuple[str, Callable[[], object]]] = deque()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._away_since: float | None = None
        threading.Thread(target=self._deliver, name="mlflow", daemon=True).start()

    def put(self, what: str, send: Callable[[], object]) -> None:
        """Have something sent after all that was put in before; `what` it is, for messages."""
        with self._changed:
            self._waiting.append((what, send))
            self._changed.notify_all()

    def close(self, patience: float) -> int:
        """Wait until all is sent, at most `patience` seconds; return how much is not, and send no more."""
        with self._changed:
            if self._waiting and self._away_since is not None:
                log.warning(
                    "waiting for MLflow at %s, at most %s, to take the rest of what is logged",
                    self._where,
                    f"{patience / 60:.0f} minutes" if patience >= 120 else f"{patience:.0f} seconds",
                )
            self._changed.wait_for(lambda: not self._waiting, timeout=patience)
            left = len(self._waiting)
            self._closed.set()
            self._waiting.clear()
            self._changed.notify_all()
        return left

    def _deliver(self) -> None:
        while not self._closed.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed.is_set())
                if self._closed.is_set():
                    return
                what, send = self._waiting[0]
            self._send(what, send)
            with self._changed:
                if self._waiting and not self._closed.is_set():
                    self._waiting.popleft()
                self._changed.notify_all()

    def _send(self, what: str, send: Callable[[], object]) -> None:
        """Try until it is sent, refused for good, or the outbox is closed."""
        refusals, pause = 0, 0.5
        while not self._closed.is_set():
            try:
                send()
            except Exception as error:  # the thread must live: whatever else is wrong, the rest is to be sent
                if server_trouble(error) and not self._is_well():
                    self._tell_away(error)
                elif server_trouble(error) and refusals < REFUSALS:
                    refusals += 1
                else:
                    log.warning("MLflow did not take %s: %s", what, without_credentials(str(error)))
                    return
                self._closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._tell_back()
                return

    def _is_well(self) -> bool:
        try:
            self._alive()
        except Exception:
            return False
        return True

    def _tell_away(self, error: Exception) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning(
                "MLflow at %s does not answer (%s); the run goes on, and what is logged waits until it is back",
                self._where,
                without_credentials(str(error)),
            )

    def _tell_back(self) -> None:
        if self._away_since is not None:
            log.info("MLflow is back after %.0f s; what waited is being sent", time.monotonic() - self._away_since)
            self._away_since = None

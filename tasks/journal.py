"""A run's journal: which artifacts it takes and makes, written down as it goes, so that housekeeping leaves them alone.

`<store>/runs/<run_id>/journal.json`. An address is written down before it is looked for: `btm store gc`, which deletes
the manifest first and then looks at the journals again, has either seen it, or is seen. While the run lasts the journal
is written again every minute, so that its age tells whether the run still lives.
"""

import datetime
import logging
import threading
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from btm_core.errors import StoreError
from btm_core.storage import Store

__all__ = ["BEAT_SECONDS", "JOURNAL", "Entries", "Journal", "is_over", "taken", "wanted"]

log = logging.getLogger(__name__)

JOURNAL = "journal.json"
BEAT_SECONDS = 60.0
SILENCE = datetime.timedelta(seconds=5 * BEAT_SECONDS)
"""A journal that was not written for so long is that of a run that died."""
BRIEF_SECONDS = 10.0
"""Longest wait for a store that is away, where the next news will do."""

_open: list["Journal"] = []


class Entries(BaseModel):
    """What a journal holds."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    name: str
    seed: int
    started: str
    """ISO 8601, by the clock of the machine of the flow."""
    state: Literal["running", "done", "failed", "stopped"] = "running"
    artifacts: list[str] = []
    """Addresses that were found or made."""
    wanted: list[str] = []
    """Addresses that were asked for, and are not there so far."""


def wanted(addresses: Iterable[str]) -> None:
    """Write down, in every run of this process, that it is about to look for these. Raises StoreError."""
    for journal in list(_open):
        journal.want(addresses)


def taken(addresses: Iterable[str]) -> None:
    """Remember that these were found or made."""
    for journal in list(_open):
        journal.take(addresses)


def is_over(store: Store, run_id: str) -> bool:
    """Return whether a run has ended, or died, by its journal; of a run without one nothing is known, so False."""
    data = store.read("runs", run_id, JOURNAL)
    if data is None:
        return False
    if Entries.model_validate_json(data).state != "running":
        return True
    written = [fact.modified for fact in store.walk("runs", run_id) if fact.path.endswith(JOURNAL)]
    return bool(written) and datetime.datetime.now(datetime.UTC) - written[0] > SILENCE


class Journal:
    """Use as a context manager around the run; raises StoreError if it cannot be begun."""

    def __init__(self, store: Store, run_id: str, name: str, seed: int):
        self._store = store
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._entries = Entries(run_id=run_id, name=name, seed=seed, started=started)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wanted: set[str] = set()
        self._taken: set[str] = set()
        self._written: set[str] = set()
        self._ended = threading.Event()

    def __enter__(self) -> "Journal":
        with self._writing:
            self._write()
        threading.Thread(target=self._beat, daemon=True).start()
        _open.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        _open.remove(self)
        self._end("done" if kind is None else "failed" if issubclass(kind, Exception) else "stopped")

    def want(self, addresses: Iterable[str]) -> None:
        """Write down what the run is about to look for, before it does. Raises StoreError."""
        addresses = set(addresses)
        with self._lock:
            self._wanted |= addresses
        with self._writing:  # what others wanted while we waited is written along
            if not addresses <= self._written:
                self._write()

    def take(self, addresses: Iterable[str]) -> None:
        """Remember what was found or made; it is written with what comes next."""
        with self._lock:
            self._taken |= set(addresses)

    def stop(self) -> None:
        """End the journal of a run that is being stopped."""
        self._end("stopped")

    def _end(self, state: Literal["done", "failed", "stopped"]) -> None:
        self._ended.set()
        with self._writing:
            self._entries = self._entries.model_copy(update={"state": state})
            try:
                self._write(self._store.within(BRIEF_SECONDS))
            except StoreError as error:  # what the run made is there, and its report, if there is one, says so too
                log.warning("the end of the run could not be written down: %s", error)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with self._writing:
                if self._ended.is_set():
                    return
                try:
                    self._write(self._store.within(BRIEF_SECONDS))
                except StoreError as error:  # if the store stays away, the work itself will say so
                    log.warning("the run's journal could not be refreshed: %s", error)

    def _write(self, store: Store | None = None) -> None:
        with self._lock:
            wanted, taken = set(self._wanted), set(self._taken)
        entries = self._entries.model_copy(update={"artifacts": sorted(taken), "wanted": sorted(wanted - taken)})
        (store or self._store).write(entries.model_dump_json(indent=1).encode(), "runs", entries.run_id, JOURNAL)
        self._written = wanted

"""Stopping: everybody is called, nobody is waited for too long, and who comes too late is called at once."""

import threading
import time
from collections.abc import Iterator

import pytest

from tasks.stopping import clean_up, on_stop, stopping


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    yield
    stopping.clear()


def test_everybody_is_called_and_a_failure_stops_nobody() -> None:
    called: list[str] = []

    def fail() -> None:
        raise RuntimeError("no server")

    with on_stop(fail), on_stop(lambda: called.append("second")):
        clean_up(5)
    assert called == ["second"]
    assert stopping.is_set()


def test_nobody_is_waited_for_too_long() -> None:
    never = threading.Event()
    with on_stop(lambda: bool(never.wait(60))):  # type: ignore[arg-type,return-value]
        began = time.monotonic()
        clean_up(0.2)
        assert time.monotonic() - began < 30
    never.set()


def test_who_has_left_is_not_called_and_who_comes_too_late_is_called_at_once() -> None:
    called: list[str] = []
    with on_stop(lambda: called.append("left")):
        pass
    clean_up(1)
    with on_stop(lambda: called.append("late")):
        assert called == ["late"]

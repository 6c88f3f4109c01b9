"""Moves of the champion alias: by one at a time, never half, never lost."""

import contextlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tasks.registry.ledger import CHALLENGER, Ledger, Standing
from tasks.tracking import mlflow_client


@pytest.fixture
def client(tmp_path: Path, databases: Path) -> Any:
    shutil.copy(databases / "mlflow.db", tmp_path)
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    client.create_registered_model("trees")
    for _ in range(4):
        client.create_model_version("trees", f"file://{tmp_path}/nothing")
    return client


def aliases(client: Any) -> dict[str, str]:
    return {name: str(version) for name, version in client.get_registered_model("trees").aliases.items()}


def test_the_champion_moves_and_the_old_one_becomes_previous(client: Any) -> None:
    ledger = Ledger(client, "trees")
    assert (seen := ledger.standing()) == Standing(0, None, None)
    client.set_registered_model_alias("trees", CHALLENGER, "1")
    assert ledger.move(seen, "1", None, "ann")
    assert aliases(client) == {"champion": "1"}
    assert ledger.move(ledger.standing(), "2", "1", "ann")
    assert ledger.standing() == Standing(2, "2", "1")
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert ledger.move(ledger.standing(), "1", None, "ann")
    assert aliases(client) == {"champion": "1"}
    assert [one.name for one in client.search_experiments()] == ["Default"]  # pages show no trace of it


def test_of_many_at_once_one_wins(client: Any) -> None:
    ledger = Ledger(client, "trees")
    seen = ledger.standing()
    start = threading.Barrier(4)

    def attempt(version: str) -> bool:
        start.wait()
        return Ledger(client, "trees").move(seen, version, None, version)

    with ThreadPoolExecutor(4) as threads:
        won = list(threads.map(attempt, "1234"))
    assert won.count(True) == 1
    assert ledger.standing() == Standing(1, "1234"[won.index(True)], None)


class Dying:
    """A client that dies at the n-th request that changes something."""

    def __init__(self, client: Any, at: int):
        self._client, self._left = client, at

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("create", "set", "delete")):
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
        return getattr(self._client, name)


def test_a_move_whose_maker_died_anywhere_is_carried_out_or_never_was(client: Any) -> None:
    Ledger(client, "trees").move(Standing(0, None, None), "1", None, "ann")
    for version, at in (("2", 0), ("2", 1), ("3", 2), ("4", 3), ("1", 4), ("2", 5)):
        before = Ledger(client, "trees").standing()
        with contextlib.suppress(KeyboardInterrupt):
            Ledger(Dying(client, at), "trees").move(before, version, before.champion, "bob")
        after = Ledger(client, "trees").standing()
        if at == 0:
            assert after == before
        else:
            assert after == Standing(before.generation + 1, version, before.champion)
            assert aliases(client) == {"champion": version, "previous": before.champion}


def test_a_slow_maker_does_not_undo_what_came_after(client: Any) -> None:
    """Its claim is carried out by another, who moves on, before it comes to do so itself."""
    slow, others = Ledger(client, "trees"), Ledger(client, "trees")
    carry_out = slow._carry_out
    paused = [True]

    def late(number: int, claim: dict[str, str], again: bool = False) -> None:
        if paused.pop() if paused else False:
            assert others.move(others.standing(), "2", "1", "bob")
            again = True  # as if it had looked before they did
        carry_out(number, claim, again)

    slow._carry_out = late  # type: ignore[method-assign]
    assert slow.move(slow.standing(), "1", None, "ann")
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert slow.standing() == Standing(2, "2", "1")


def test_a_model_made_anew_under_an_old_name_has_no_past(client: Any, tmp_path: Path) -> None:
    ledger = Ledger(client, "trees")
    assert ledger.move(ledger.standing(), "1", None, "ann")
    client.delete_registered_model("trees")
    client.create_registered_model("trees")
    client.create_model_version("trees", f"file://{tmp_path}/nothing")
    assert Ledger(client, "trees").standing() == Standing(0, None, None)
    assert ledger.move(ledger.standing(), "1", None, "ann")


def test_a_claim_whose_reply_was_lost_is_still_ones_own(client: Any) -> None:
    class Asking:
        """Asks again, as HTTP clients do, though the first request was done."""

        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def create_experiment(self, *arguments: Any, **more: Any) -> Any:
            client.create_experiment(*arguments, **more)
            return client.create_experiment(*arguments, **more)

    ledger = Ledger(Asking(), "trees")
    assert ledger.move(ledger.standing(), "2", None, "ann")
    assert ledger.standing() == Standing(1, "2", None)
    assert [one.name for one in client.search_experiments()] == ["Default"]


def test_a_champion_that_was_deleted_is_let_go(client: Any) -> None:
    ledger = Ledger(client, "trees")
    with pytest.raises(KeyboardInterrupt):
        Ledger(Dying(client, 2), "trees").move(ledger.standing(), "3", None, "ann")
    client.delete_model_version("trees", "3")
    assert ledger.standing() == Standing(1, None, None)
    assert ledger.move(ledger.standing(), "1", None, "ann")

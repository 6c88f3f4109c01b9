"""Two that make one artifact at once: whatever the order of what they do, and whoever dies, it is whole or absent."""

import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btm_core.storage import Artifact, Store

ADDRESS = "finetune/subset-00-0123456789abcdef"
VERBS = ("read", "write_if", "put", "walk", "get")


class Killed(BaseException):
    """A writer is no more."""


class Turns:
    """Lets one of several threads at a time do one step, in an order given from outside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed: str | None = None
        self._waiting: set[str] = set()
        self._ended: set[str] = set()

    def step(self, name: str) -> None:
        """Wait for one's turn."""
        with self._changed:
            self._waiting.add(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._allowed == name)
            self._allowed = None
            self._waiting.remove(name)

    def end(self, name: str) -> None:
        with self._changed:
            self._ended.add(name)
            self._changed.notify_all()

    def give(self, names: list[str], choices: Iterator[int]) -> None:
        """Hand out turns until all have ended; who has ended is passed over."""
        with self._changed:
            while True:
                # All stand still: each waits for its turn, or has ended.
                assert self._changed.wait_for(
                    lambda: self._allowed is None and self._waiting | self._ended == set(names), timeout=60
                )
                left = [name for name in names if name not in self._ended]
                if not left:
                    return
                self._allowed = left[next(choices, 0) % len(left)]
                self._changed.notify_all()


def writer(url: str, name: str, content: bytes, turns: Turns, dies_at: int | None, ended: dict[str, Any]) -> None:
    """Publish an artifact, each step at its turn; die before a step."""
    store = Store(url)
    count, under_way = 0, False

    def gated(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            nonlocal count, under_way
            if under_way:  # a part of a step: it may hold a lock
                return call(*arguments, **named)
            turns.step(name)
            if count == dies_at:
                raise Killed
            count += 1
            under_way = True
            try:
                return call(*arguments, **named)
            finally:
                under_way = False

        return step

    for verb in VERBS:
        setattr(store._files, verb, gated(getattr(store._files, verb)))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.bin").write_bytes(content)
        Path(folder, "records.jsonl").write_text(f"as {name} saw it")
        try:
            ended[name] = publish(store, Path(folder))
        except Killed:
            pass
        except BaseException as error:
            ended[name] = error
        finally:
            turns.end(name)


def publish(store: Store, folder: Path) -> Artifact:
    return store.publish(
        ADDRESS, folder, config={}, parents={}, versions={}, host={}, logs=("records.jsonl",)
    )  # fmt: skip


@contextmanager
def a_store(kind: str) -> Iterator[str]:
    if kind == "memory":  # has no conditional writes
        yield f"memory://{uuid.uuid4().hex}"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@pytest.mark.parametrize("kind", ["file", "memory"])
@given(
    same=st.booleans(),
    choices=st.lists(st.integers(0, 1), max_size=60),
    dies_at=st.tuples(st.none() | st.integers(0, 12), st.none() | st.integers(0, 12)),
    damaged_before=st.sampled_from([None, "half", "flipped", "gone", "no manifest"]),
)
@settings(max_examples=150, deadline=None)
def test_no_interleaving_yields_an_artifact_that_does_not_verify(
    kind: str, same: bool, choices: list[int], dies_at: tuple[int | None, int | None], damaged_before: str | None
) -> None:
    with a_store(kind) as url:
        if damaged_before is not None:
            leave_damaged(url, damaged_before)
        turns, ended = Turns(), {}  # type: ignore[var-annotated]
        contents = (b"weights", b"weights" if same else b"WEIGHTS")
        threads = [
            threading.Thread(target=writer, args=(url, name, content, turns, death, ended))
            for name, content, death in zip("ab", contents, dies_at, strict=True)
        ]
        for thread in threads:
            thread.start()
        turns.give(["a", "b"], iter(choices))
        for thread in threads:
            thread.join()
        for result in ended.values():
            if isinstance(result, BaseException):
                raise result
        check(url, kind, list(ended.values()))


def leave_damaged(url: str, how: str) -> None:
    """Leave what was once whole in a state in which both writers find it, and know it."""
    store = Store(url)
    with tempfile.TemporaryDirectory() as name:
        Path(name, "model.bin").write_bytes(b"weights")
        Path(name, "records.jsonl").write_text("before")
        artifact = publish(store, Path(name))
        path = store.file_url(artifact, "model.bin").removeprefix(f"{store.url}/").split("/")
        if how == "no manifest":
            store.remove("artifacts", ADDRESS, "manifest.json")
        elif how == "gone":
            store.remove(*path)
        else:
            store.write(b"w" if how == "half" else b"wEights", *path)
            assert store.check(ADDRESS, mark=True)


def check(url: str, kind: str, made: list[Artifact]) -> None:
    store = Store(url)
    found = store.find(ADDRESS)
    if made:
        assert found is not None
        if kind == "file":
            assert made == [found] * len(made)  # they agree
    if found is not None:
        assert store.check(ADDRESS) == []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "output")
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"a third's")
        (folder / "records.jsonl").write_text("later")
        again = publish(store, folder)
        assert found is None or again == found
        assert store.check(ADDRESS) == []
        bytes_ = store.fetch(again, "model.bin", Path(name, "scratch")).read_bytes()
        assert bytes_ in (b"weights", b"WEIGHTS", b"a third's")
        shutil.rmtree(folder)

"""Progress as people see it: bars on a terminal, lines elsewhere, made of the events of steps."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tasks.events import Event, listening

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Stage", "Stages", "show_progress", "telling_progress"]

WORTH_SAYING = 0.2
"""Share of an epoch spent waiting for images from which on progress tells it."""

LABELS = {
    "data": "data",
    "pretrain": "pre-train (stage 1)",
    "fc": "re-train head (FC)",
    "sample": "sample balanced subsets",
    "finetune": "fine-tune on subsets",
    "merge": "merge into the soup",
    "post_train": "post-train the head",
    "evaluate": "evaluate every model",
}
LINE_SECONDS = 10.0
WIDE = 100
"""Columns of a terminal from which on bars are long."""


class Stage:
    """What is known of one stage: its steps, and how far each is, in epochs."""

    def __init__(self, name: str):
        self.label = LABELS[name]
        self.steps: dict[str, str] = {}
        """State of each step by address: queued, running, found or done."""
        self.epochs: dict[str, tuple[int, int]] = {}
        self.images, self.waited = 0, 0.0
        self.began: float | None = None
        self.loss: float | None = None
        self.transfer = ""

    def take(self, event: Event) -> None:
        """Learn what an event tells."""
        kind, step = event["event"], event["step"]
        self.transfer = ""
        if kind == "queued":
            if self.complete:  # another run of several begins
                self.images, self.began = 0, None
            self.steps[step] = "queued"
            self.epochs.pop(step, None)
        elif kind in ("started", "cached"):
            self.steps[step] = "running" if kind == "started" else "found"  # found, yet started: it was damaged
            self.began = self.began or time.monotonic()
        elif kind == "done":
            total = self.epochs.get(step, (1, 1))[1]
            self.epochs[step] = (total, total)
            self.steps[step] = "done"
        elif kind in ("epoch", "resumed"):
            self.epochs[step] = (event["epoch"], event["epochs"])
            if kind == "epoch":
                self.loss = event["loss"]
                self.images += event["images"]
                self.waited = event.get("waited", 0.0) / max(event["seconds"], 1e-9)
        elif kind == "transfer":
            self.transfer = transfer_text(event)
        elif kind == "fetch":
            self.transfer = fetch_text(event)

    @property
    def ended(self) -> int:
        """How many steps are found or done."""
        return sum(state in ("found", "done") for state in self.steps.values())

    @property
    def complete(self) -> bool:
        """Whether all steps that are known are found or done."""
        return self.ended == len(self.steps) > 0

    @property
    def share(self) -> float:
        """Share done, in [0, 1]."""
        parts = [1.0 if state in ("found", "done") else self._part(step) for step, state in self.steps.items()]
        return sum(parts) / max(len(parts), 1)

    def _part(self, step: str) -> float:
        done, total = self.epochs.get(step, (0, 1))
        return min(done / total, 0.99)

    def text(self) -> str:
        """Say how far it is."""
        if self.transfer:
            return self.transfer
        if self.complete:
            return self._end()
        parts = [f"{self.ended} of {len(self.steps)} done"] if len(self.steps) > 1 else []
        running = [self.epochs[step] for step in self.epochs if self.steps.get(step) == "running"]
        if running:
            parts.append(f"epoch {min(epoch for epoch, _ in running)}/{running[0][1]}")
        if running and self.loss is not None:
            rate = self.images / max(time.monotonic() - (self.began or 0.0), 1e-9)  # of all steps together
            parts.append(f"loss {self.loss:.3f}, {rate:,.0f} images/s")
            if self.waited >= WORTH_SAYING:
                parts.append(f"{self.waited:.0%} of the time waiting for images")
        return ", ".join(parts)

    def _end(self) -> str:
        states = Counter(self.steps.values())
        several = f"{len(self.steps)} " if len(self.steps) > 1 else ""
        if not states["done"]:
            return f"{several}found in the store"
        return f"{several}done" + (f", {states['found']} of them found in the store" if states["found"] else "")


class Stages(dict[str, Stage]):
    """The stages that were heard of, by name."""

    def take(self, event: Event) -> Stage:
        """Learn what an event tells; return the stage it is of."""
        name = event["step"].partition("/")[0]
        if name not in self:
            self[name] = Stage(name)
        self[name].take(event)
        return self[name]


def transfer_text(event: Event) -> str:
    """Say how a long transfer goes."""
    done, whole = event["bytes_done"] / 1e6, event["bytes_all"] / 1e6
    rate = done / max(event["seconds"], 1e-9)
    return f"{event['verb']} {event['name']}: {done:,.0f} of {whole:,.0f} MB, {rate:,.0f} MB/s"


def fetch_text(event: Event) -> str:
    """Say how fetching images goes."""
    rate = event["megabytes"] / max(event["seconds"], 1e-9)
    return f"fetching images: {event['images']:,} of {event['of']:,}, {rate:,.{0 if rate >= 10 else 1}f} MB/s"


@contextmanager
def show_progress(first: str = "start Prefect and MLflow") -> Iterator[None]:
    """Show the progress of the steps that run in this block; `first` is what happens before the first of them."""
    shown = _bars(first) if sys.stderr.isatty() else _lines(first)
    with shown:
        yield


@contextmanager
def _bars(first: str, console: "Console | None" = None) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    stages = Stages()
    rows: dict[str, TaskID] = {}
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}", table_column=Column(width=24, no_wrap=True)),
        BarColumn(bar_width=24 if console.width >= WIDE else 8),
        TimeElapsedColumn(table_column=Column(width=7)),
        TimeRemainingColumn(elapsed_when_finished=False, table_column=Column(width=7)),
        # Last, so that a narrow terminal cuts this short and nothing else.
        TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        waiting: TaskID | None = progress.add_task(first, total=None, text="")

        def show(event: Event) -> None:
            nonlocal waiting
            if waiting is not None:
                progress.remove_task(waiting)
                waiting = None
            stage = stages.take(event)
            if stage.label not in rows:
                rows[stage.label] = progress.add_task(stage.label, total=1.0, text="")
            progress.update(rows[stage.label], completed=stage.share, text=stage.text())

        with listening(show):
            yield


@contextmanager
def _lines(first: str) -> Iterator[None]:
    began = time.monotonic()
    print(f"[{0:6.1f} s] {first}", file=sys.stderr, flush=True)

    def say(stage: str, text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {stage}: {text}", file=sys.stderr, flush=True)

    with telling_progress(say, LINE_SECONDS):
        yield


@contextmanager
def telling_progress(say: Callable[[str, str], None], seconds: float, *, starts: bool = False) -> Iterator[None]:
    """Call `say` with a stage and a line of text: at its end, when a step resumes, and once in so many seconds between.

    With `starts`, at its start, too.
    """
    stages = Stages()
    told: dict[str, float] = {}
    began = time.monotonic()

    def tell(stage: Stage, text: str) -> None:
        told[stage.label] = time.monotonic()
        say(stage.label, text)

    def show(event: Event) -> None:
        kind, readable = event["event"], event["step"].partition("/")[2].rpartition("-")[0]
        known = len(stages)
        stage = stages.take(event)
        due = time.monotonic() - told.get(stage.label, stage.began or began) >= seconds
        if kind == "resumed":
            tell(stage, f"{readable} goes on after epoch {event['epoch']}")
        elif kind in ("cached", "done") and stage.complete:
            tell(stage, f"{readable} {stage.text()}" if len(stage.steps) == 1 else stage.text())
        elif starts and len(stages) > known:
            say(stage.label, "started")
        elif kind in ("transfer", "fetch"):
            # A first transfer is told at once: only long ones are heard of.
            if due or (stage.label not in told if kind == "transfer" else event["images"] == event["of"]):
                tell(stage, f"{readable} {stage.text()}")
        elif kind in ("epoch", "done") and due:
            tell(stage, stage.text())

    with listening(show):
        yield

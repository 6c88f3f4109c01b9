"""Progress of a run on standard error: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.events import Event, listening

__all__ = ["show_progress"]

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


class _Stage:
    """What is known of one stage: how many steps, and how far each is, in epochs."""

    def __init__(self) -> None:
        self.steps: dict[str, bool] = {}
        self.epochs: dict[str, tuple[int, int]] = {}
        self.rate = 0.0
        self.loss: float | None = None

    def take(self, event: Event) -> None:
        if event["event"] in ("started", "cached"):
            self.steps.setdefault(event["step"], event["event"] == "cached")
        elif event["event"] in ("epoch", "resumed"):
            self.epochs[event["step"]] = (event["epoch"], event["epochs"])
            if event["event"] == "epoch":
                self.loss = event["loss"]
                self.rate = event["images"] / max(event["seconds"], 1e-9)
        elif event["event"] == "done":
            total = self.epochs.get(event["step"], (1, 1))[1]
            self.epochs[event["step"]] = (total, total)
            self.steps[event["step"]] = True

    @property
    def share(self) -> float:
        """Share done, in [0, 1]."""
        parts = [1.0 if done else self._part(step) for step, done in self.steps.items()]
        return sum(parts) / max(len(parts), 1)

    def _part(self, step: str) -> float:
        done, total = self.epochs.get(step, (0, 1))
        return min(done / total, 0.99)

    def text(self) -> str:
        done = sum(self.steps.values())
        parts = [f"{done}/{len(self.steps)}"] if len(self.steps) > 1 else []
        running = [self.epochs[step] for step, ended in self.steps.items() if not ended and step in self.epochs]
        if running:
            parts.append(f"epoch {min(epoch for epoch, _ in running)}/{running[0][1]}")
        if running and self.loss is not None:
            parts.append(f"loss {self.loss:.3f}, {self.rate:,.0f} images/s")
        return ", ".join(parts)


@contextmanager
def show_progress() -> Iterator[None]:
    """Show the progress of the steps that run in this block."""
    shown = _bars() if sys.stderr.isatty() else _lines()
    with shown:
        yield


@contextmanager
def _bars() -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    stages: dict[str, _Stage] = {}
    rows: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        waiting: TaskID | None = progress.add_task("start Prefect and MLflow", total=None, text="")

        def show(event: Event) -> None:
            nonlocal waiting
            if waiting is not None:
                progress.remove_task(waiting)
                waiting = None
            name = event["step"].partition("/")[0]
            stage = stages.setdefault(name, _Stage())
            stage.take(event)
            if name not in rows:
                rows[name] = progress.add_task(LABELS[name], total=1.0, text="")
            all_found = event["event"] == "cached" and stage.share == 1 and not stage.epochs
            text = f"{stage.text()} found in the store".strip() if all_found else stage.text()
            progress.update(rows[name], completed=stage.share, text=text)

        with listening(show):
            yield


@contextmanager
def _lines() -> Iterator[None]:
    stages: dict[str, _Stage] = {}
    told: dict[str, float] = {}
    began = time.monotonic()

    def say(name: str, text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {LABELS[name]}: {text}", file=sys.stderr, flush=True)

    def show(event: Event) -> None:
        name = event["step"].partition("/")[0]
        stage = stages.setdefault(name, _Stage())
        stage.take(event)
        readable = event["step"].partition("/")[2]
        kind: Any = event["event"]
        if kind in ("cached", "resumed"):
            note = "found in the store" if kind == "cached" else f"goes on after epoch {event['epoch']}"
            say(name, f"{readable} {note}")
        elif kind == "done":
            say(name, f"{readable} done")
        elif kind == "epoch" and time.monotonic() - told.get(name, began) >= LINE_SECONDS:
            told[name] = time.monotonic()
            say(name, stage.text())

    with listening(show):
        yield

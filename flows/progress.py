"""Progress of a run on standard error: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tasks.events import Event, listening

__all__ = ["show_progress", "telling_progress"]

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


class _Stage:
    """What is known of one stage: how many steps, and how far each is, in epochs."""

    def __init__(self) -> None:
        self.steps: dict[str, bool] = {}
        self.epochs: dict[str, tuple[int, int]] = {}
        self.rate = self.waited = 0.0
        self.loss: float | None = None

    def take(self, event: Event) -> None:
        if event["event"] in ("started", "cached"):
            self.steps[event["step"]] = event["event"] == "cached"  # found, yet started: it was damaged
        elif event["event"] in ("epoch", "resumed"):
            self.epochs[event["step"]] = (event["epoch"], event["epochs"])
            if event["event"] == "epoch":
                self.loss = event["loss"]
                self.rate = event["images"] / max(event["seconds"], 1e-9)
                self.waited = event.get("waited", 0.0) / max(event["seconds"], 1e-9)
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
            if self.waited >= WORTH_SAYING:
                parts.append(f"{self.waited:.0%} of the time waiting for images")
        return ", ".join(parts)


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
    shown = _bars(first) if sys.stderr.isatty() else _lines()
    with shown:
        yield


@contextmanager
def _bars(first: str) -> Iterator[None]:
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
        waiting: TaskID | None = progress.add_task(first, total=None, text="")

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
            text = transfer_text(event) if event["event"] == "transfer" else text
            text = fetch_text(event) if event["event"] == "fetch" else text
            progress.update(rows[name], completed=stage.share, text=text)

        with listening(show):
            yield


@contextmanager
def _lines() -> Iterator[None]:
    began = time.monotonic()

    def say(stage: str, text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {stage}: {text}", file=sys.stderr, flush=True)

    with telling_progress(say, LINE_SECONDS):
        yield


@contextmanager
def telling_progress(say: Callable[[str, str], None], seconds: float, *, starts: bool = False) -> Iterator[None]:
    """Call `say` with a stage and a line of text for each step found, resumed or done (with `starts`: started, too).

    Of the epochs of a stage it tells once in so many seconds.
    """
    stages: dict[str, _Stage] = {}
    told: dict[str, float] = {}
    began = time.monotonic()

    def show(event: Event) -> None:
        name, _, readable = event["step"].partition("/")
        stage = stages.setdefault(name, _Stage())
        stage.take(event)
        kind: Any = event["event"]
        due = time.monotonic() - told.get(name, began) >= seconds
        if kind in ("cached", "resumed"):
            note = "found in the store" if kind == "cached" else f"goes on after epoch {event['epoch']}"
            say(LABELS[name], f"{readable} {note}")
        elif kind == "done" or (kind == "started" and starts):
            say(LABELS[name], f"{readable} {kind}")
        elif kind == "transfer" and (due or name not in told):
            told[name] = time.monotonic()
            say(LABELS[name], f"{readable} {transfer_text(event)}")
        elif kind == "fetch" and (due or event["images"] == event["of"]):
            told[name] = time.monotonic()
            say(LABELS[name], f"{readable} {fetch_text(event)}")
        elif kind == "epoch" and due:
            told[name] = time.monotonic()
            say(LABELS[name], stage.text())

    with listening(show):
        yield

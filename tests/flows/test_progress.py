import io
import re
from typing import Any

import pytest
from rich.console import Console

from flows.progress import Stages, _bars, telling_progress
from tasks.events import publish

NEWS = {"event": "fetch", "step": "finetune/subset-03-00ff", "stage": "finetune", "of": 10_000, "seconds": 2.0}


@pytest.mark.parametrize(("seconds", "told"), [(0.0, [1234, 5000, 10_000]), (3600.0, [10_000])])
def test_fetching_is_told_now_and_then_and_at_its_end(seconds: float, told: list[int]) -> None:
    lines: list[tuple[str, str]] = []
    with telling_progress(lambda stage, text: lines.append((stage, text)), seconds):
        for images in (1234, 5000, 10_000):
            publish({**NEWS, "images": images, "megabytes": images / 10})
    assert lines == [
        (
            "fine-tune on subsets",
            f"subset-03 fetching images: {images:,} of 10,000, {images / 20:,.0f} MB/s",
        )
        for images in told
    ]


@pytest.mark.parametrize(("waited", "told"), [(0.1, False), (0.5, True)])
def test_much_waiting_for_images_is_told(waited: float, told: bool) -> None:
    lines: list[str] = []
    step = {"step": "finetune/subset-03-00ff", "stage": "finetune"}
    epoch = {"epoch": 1, "epochs": 3, "loss": 0.5, "images": 100, "seconds": 2.0, "waited": 2.0 * waited}
    with telling_progress(lambda stage, text: lines.append(text), 0.0):
        publish({**step, "event": "started"})
        publish({**step, "event": "epoch", **epoch})
    assert ("50% of the time waiting for images" in lines[-1]) == told, lines


def told(events: list[dict[str, Any]], seconds: float = 3600.0, **options: bool) -> list[str]:
    lines: list[str] = []
    with telling_progress(lambda stage, text: lines.append(f"{stage}: {text}"), seconds, **options):
        for event in events:
            publish(event)
    return lines


@pytest.mark.parametrize("width", [80, 160])
def test_bars_show_stage_share_and_time_at_any_width(width: int) -> None:
    """Without colours what is left of a bar is blank, so its marks can be counted."""
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, color_system=None, width=width)
    epoch = {"epochs": 60, "loss": 0.531, "images": 1000, "seconds": 0.1, "waited": 0.05}
    with _bars("start Prefect and MLflow", terminal):
        for event in [of(0, "queued"), of(1, "queued"), of(0, "started"), of(0, "epoch", epoch=30, **epoch)]:
            publish(event)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    last = [line for line in drawn.splitlines() if line.startswith("fine-tune on subsets ")][-1]
    assert len(last) <= width
    bar = 24 if width == 160 else 8
    assert last.count("━") + last.count("╸") == bar // 4, last  # a half of one of two
    assert "0:00:00" in last and "0 of 2 done" in last
    assert ("50% of the time waiting for images" in last) == (width == 160)


def of(subset: int, event: str, **facts: Any) -> dict[str, Any]:
    return {"step": f"finetune/subset-{subset:02d}-00ff", "stage": "finetune", "event": event, **facts}


def test_a_stage_is_told_once_however_many_steps_it_has() -> None:
    queued = [of(subset, "queued") for subset in range(200)]
    ended = [of(subset, kind) for subset in range(200) for kind in ("started", "done")]
    assert told(queued + ended) == ["fine-tune on subsets: 200 done"]
    assert told(queued + ended, starts=True) == ["fine-tune on subsets: started", "fine-tune on subsets: 200 done"]


def test_what_was_found_is_told_apart_from_what_was_done() -> None:
    queued = [of(subset, "queued") for subset in range(3)]
    found = [of(subset, "cached") for subset in range(3)]
    assert told(queued + found) == ["fine-tune on subsets: 3 found in the store"]
    some = [found[0], of(1, "started"), of(1, "done"), of(2, "started"), of(2, "done")]
    assert told(queued + some) == ["fine-tune on subsets: 3 done, 1 of them found in the store"]
    assert told([of(7, "queued"), of(7, "cached")]) == ["fine-tune on subsets: subset-07 found in the store"]
    damaged = [of(7, "queued"), of(7, "cached"), of(7, "started"), of(7, "done")]
    assert told(damaged)[-1] == "fine-tune on subsets: subset-07 done"


def test_what_is_under_way_is_told_now_and_then_with_the_rate_of_all() -> None:
    epoch = {"epochs": 4, "loss": 0.5, "images": 100, "seconds": 0.1}
    events = [of(0, "queued"), of(1, "queued"), of(0, "started"), of(1, "resumed", epoch=2, epochs=4)]
    lines = told([*events, of(0, "epoch", epoch=1, **epoch)], 0.0)
    assert lines[0] == "fine-tune on subsets: subset-01 goes on after epoch 2"
    assert lines[1].startswith("fine-tune on subsets: 0 of 2 done, epoch 1/4, loss 0.500, ")
    stage = Stages()
    for event in [*events, *(of(subset, "epoch", epoch=3, **epoch) for subset in (0, 1))]:
        last = stage.take(event)
    assert last.images == 200 and last.share == pytest.approx(0.75)

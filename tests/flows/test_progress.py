import pytest

from flows.progress import telling_progress
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
            f"subset-03-00ff fetching images: {images:,} of 10,000, {images / 20:,.0f} MB/s",
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

"""How cost grows: with subsets (5, 10, 20) and with classes (100; 1,000; 8,142). `python -m benchmarks.growth`.

A straight line in a double logarithmic picture has the power of growth as its slope: 1 is linear. Each row is the
steeper of the slopes between neighbouring sizes, so that a fixed cost, which flattens the first of them, hides nothing.
Writes docs/figures/growth.svg.
"""

import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import our_stage
from benchmarks.rows import RESULTS, at_most, keep, print_table, this_machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "growth.svg"
CLASSES = (100, 1000, 8142)
"""CIFAR-100, ImageNet, iNaturalist 2018; all with the latter's images a class, 53.7 in training and 3 in testing."""
IMAGES = 437_513 / 8142
SUBSETS = (5, 10, 20)
LINEAR = 1.05
"""Slopes up to here count as linear: sorting, and caches that larger arrays no longer fit, are in it."""
WITHIN = 1.1
"""Double N_D may take 10 % more than double the time."""

Times = dict[int, list[float]]

__all__ = ["by_classes", "by_subsets", "draw", "measure", "slope"]


def measure(repetitions: int = 5) -> list[dict[str, Any]]:
    """Return rows for `benchmarks.run`, and draw the picture."""
    stages = by_subsets(SUBSETS, 3)
    rows = [subset_row(stages)]
    curves = by_classes(CLASSES, repetitions)
    rows += [class_row(name, times) for name, times in curves.items()]
    PICTURE.parent.mkdir(exist_ok=True)
    draw(stages, curves).savefig(PICTURE, metadata={"Date": None})
    return rows


def slope(times: Times) -> float:
    """Return the steepest power by which the median time grows between neighbouring sizes."""
    medians = {size: statistics.median(values) for size, values in sorted(times.items())}
    pairs = zip(list(medians.items()), list(medians.items())[1:], strict=False)
    return max(math.log(after / before) / math.log(large / small) for (small, before), (large, after) in pairs)


def class_row(name: str, times: Times) -> dict[str, Any]:
    """Return the row of one curve; the value is of the medians, its spread that of single repetitions."""
    rounds = zip(*times.values(), strict=True)
    alone = [slope({size: [value] for size, value in zip(times, values, strict=True)}) for values in rounds]
    what = f"{name}, {' to '.join(f'{size:,}' for size in sorted(times))} classes: power of growth"
    seconds = {str(size): round(statistics.median(values), 4) for size, values in times.items()}
    of_medians = round(slope(times), 2)
    row = at_most(what, alone, "(1 is linear)", LINEAR, seconds=seconds)
    return {**row, "value": of_medians, "holds": of_medians <= LINEAR}


def subset_row(times: Times) -> dict[str, Any]:
    """Return the row of the BTM stage: time a fine-tune at the most subsets over that at half as many."""
    half, whole = sorted(times)[-2:]
    ratios = [(after / whole) / (before / half) for before, after in zip(times[half], times[whole], strict=True)]
    seconds = {str(count): round(statistics.median(values), 2) for count, values in times.items()}
    what = f"BTM stage of digits-lt: time a fine-tune at N_D = {whole} over that at {half}"
    return at_most(what, ratios, "x", WITHIN, seconds=seconds)


def by_subsets(counts: Sequence[int], repetitions: int, epochs: int | None = None) -> Times:
    """Return seconds of the whole BTM stage of digits-lt: worker start, fine-tunes, merge. The sizes take turns."""
    times: Times = {count: [] for count in counts}
    for seed in range(repetitions):
        for count in counts:
            overrides = [f"sampling.num_subsets={count}", f"seed={seed}"]
            overrides += [] if epochs is None else [f"finetune.epochs={epochs}"]
            with tempfile.TemporaryDirectory() as name:
                our_stage.prepare("digits-lt", overrides, Path(name))
                seconds = our_stage.run(Path(name))["seconds"]
            times[count].append(seconds["fine-tunes"] + seconds["merge"])
            print(f"N_D = {count}: {times[count][-1]:.1f} s", flush=True)
    return times


def by_classes(sizes: Sequence[int], repetitions: int) -> dict[str, Times]:
    """Return seconds of what grows with the classes, by name and number of classes."""
    works = {
        "sampling of 10 subsets": _sampling,
        "class-aware order of an epoch": _class_aware,
        "merge of 4 heads of 2,048 features": _merge,
        "metrics of 130 models": _metrics,
        "report of 13 models, JSON and HTML": _report,
    }
    curves: dict[str, Times] = {}
    with tempfile.TemporaryDirectory() as name:
        for what, prepared in works.items():
            ready = {size: prepared(size, Path(name)) for size in sizes}
            for work in ready.values():
                work()  # imports, fonts, page cache
            times: Times = {size: [] for size in sizes}
            for _ in range(repetitions):
                for size, work in ready.items():
                    start = time.perf_counter()
                    work()
                    times[size].append(time.perf_counter() - start)
            curves[what] = times
            print(what, {size: f"{statistics.median(values):.3f} s" for size, values in times.items()}, flush=True)
    return curves


def _counts(classes: int) -> Any:
    """Return training images a class (C,), an imbalance factor of 500 as iNaturalist 2018 has."""
    weights = 500 ** (-np.arange(classes) / (classes - 1))
    return np.maximum((weights / weights.sum() * IMAGES * classes).astype(np.int64), 2)


def _labels(classes: int) -> Any:
    """Return the class of each training image (N,)."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(classes), _counts(classes)))


def _class_aware(classes: int, folder: Path) -> Callable[[], Any]:
    from btm_core.sampling import class_aware_order

    labels = _labels(classes)
    return lambda: class_aware_order(labels, len(labels), 4, 0)


def _sampling(classes: int, folder: Path) -> Callable[[], Any]:
    from btm_core.sampling import balanced_subset

    labels = _labels(classes)
    return lambda: [balanced_subset(labels, 10, 0, index) for index in range(10)]


def _merge(classes: int, folder: Path) -> Callable[[], Any]:
    import torch
    from safetensors.torch import save_file

    from btm_core.merging import merge

    paths = [folder / f"{classes}-{i}.safetensors" for i in range(4)]
    for path in paths:
        save_file({"head.weight": torch.randn(classes, 2048), "head.bias": torch.randn(classes)}, path)
    return functools.partial(merge, paths, folder / "soup.safetensors")


def _predictions(classes: int, models: int = 13) -> tuple[Any, list[Any]]:
    """Return targets and what models predict, about half of it right, of 3 test images a class."""
    random = np.random.default_rng(0)
    targets = np.repeat(np.arange(classes), 3)
    return targets, [
        np.where(random.random(len(targets)) < 0.5, targets, random.integers(classes, size=len(targets)))
        for _ in range(models)
    ]


def _metrics(classes: int, folder: Path) -> Callable[[], Any]:
    from btm_core.metrics import recall_report

    counts, (targets, predictions) = _counts(classes), _predictions(classes)
    return lambda: [recall_report(targets, predicted, counts) for predicted in predictions * 10]


def _report(classes: int, folder: Path) -> Callable[[], Any]:
    from btm_core.config import load_experiment
    from btm_core.data.long_tail import profile
    from btm_core.metrics import recall_report
    from btm_core.pages.report import render_html
    from btm_core.report import ModelResult, build_report, figures

    counts, (targets, predictions) = _counts(classes), _predictions(classes)
    stages = ["pretrain", *["finetune"] * 10, "merge", "post_train"]
    models = [
        ModelResult(f"model {i:02d}", stage, "", "", recall_report(targets, predicted, counts), predicted, "test", "")
        for i, (stage, predicted) in enumerate(zip(stages, predictions, strict=True))
    ]
    experiment = load_experiment("inat18", ["data.root=.", "data.train=a", "data.test=b"]).model_dump(mode="json")
    facts = {  # what `tasks.run` gives it, of which nothing grows with the classes
        "name": "growth",
        "run_id": "growth",
        "created": "",
        "data": {"profile": str(profile(counts)), "content": "", "splits": {"test": {"images": len(targets)}}},
        "short_classes": int((counts < 10).sum()),
        "subset_images": int(np.minimum(counts, 10).sum()),
        "published": None,
        "lineage": [],
        "versions": {},
        "host": {},
        "validation": [],
        "lost_ingredients": [],
    }

    def work() -> None:
        report = build_report(
            run=facts,
            experiment=experiment,
            class_names=[f"species {c}" for c in range(classes)],
            train_counts=counts,
            targets=targets,
            models=models,
        )
        json.dumps(report, indent=1)
        figures(report)
        render_html(report)

    return work


def draw(stages: Times, curves: dict[str, Times]) -> "Figure":
    """Draw the BTM stage against N_D, and what grows with the classes, both with a linear course to compare with."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curve(left, stages, "BTM stage of digits-lt", "#0072B2", "o")
    _linear(left, stages)
    left.set_xlim(0, max(stages) * 1.1)
    left.set_ylim(0)
    left.set_xticks(sorted(stages))
    left.set_xlabel("subsets, N_D")
    for (name, times), color, marker in zip(
        curves.items(), ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"), "osD^v", strict=True
    ):
        _curve(right, times, name, color, marker)
        _linear(right, times)
    right.set_xscale("log")
    right.set_yscale("log")
    sizes = sorted(next(iter(curves.values())))
    right.set_xticks(sizes, [f"{size:,}" for size in sizes])
    right.minorticks_off()
    right.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
    right.set_xlabel("classes, C")
    for axis in (left, right):
        axis.set_ylabel("seconds, median")
        axis.grid(color="#DDDDDD", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.plot([], [], "--", color="#999999", linewidth=0.9, label="linear, through the largest")
        axis.legend(frameon=False, fontsize=9)
    return figure


def _curve(axis: Any, times: Times, name: str, color: str, marker: str) -> None:
    sizes = sorted(times)
    medians = np.array([statistics.median(times[size]) for size in sizes])
    low, high = (np.array([end(times[size]) for size in sizes]) for end in (min, max))
    axis.errorbar(
        sizes,
        medians,
        [medians - low, high - medians],
        fmt=f"{marker}-",
        color=color,
        label=name,
        markersize=5,
        capsize=3,
    )


def _linear(axis: Any, times: Times) -> None:
    """Draw the line through nothing and the largest size."""
    sizes = sorted(times)
    last = statistics.median(times[sizes[-1]])
    axis.plot(sizes, [last * size / sizes[-1] for size in sizes], "--", color="#999999", linewidth=0.9, zorder=1)


def main() -> None:

    rows = measure()
    keep(rows, RESULTS, this_machine())
    print_table(rows)


if __name__ == "__main__":
    main()

"""The BTM stage against the reference style, on two cores: `python -m benchmarks.speed`.

Both are processes, take turns, start from one stage-1 checkpoint and one folder of PNG files, and fine-tune on the same
balanced subsets with the same recipe in the same arithmetic. The reference style (`benchmarks.reference_style`) gets
the number of DataLoader workers that is fastest here. Ours (`benchmarks.our_stage`) decodes the folder once, before the
stage; `decoding_seconds` says how long that took, and it is in no ratio.

By default few epochs and few test images, for minutes: each evaluation then weighs a tenth of what it does with the
10,000 images of the paper's 30 epochs, and the reference style, which does one after each epoch, looks so much better.
In true proportion: `--subsets 2 --epochs 30 --test-per-class 100`, which also compares the soups' accuracies.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import our_stage
from benchmarks.cifar_tree import cifar_root, write_tree
from benchmarks.rows import RESULTS, at_least, at_most, keep, print_table, this_machine

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "benchmarks" / "models" / "cifar100-lt-if100-resnet32-seed1.safetensors"
CORES = 2
WORKERS = (0, 1, 2)
"""Of the reference style's DataLoaders; the fastest is taken."""
PRECISIONS = ("float32", "bfloat16")
AT_LEAST = 2.0
NOISE = 1.0
"""Points of accuracy by which two soups of equal recipe may differ."""

__all__ = ["measure", "reference"]


@dataclass(frozen=True)
class Task:
    """What both do. `folder` is for whatever they write."""

    tree: Path
    folder: Path
    subsets: int = 10
    shots: int = 10
    epochs: int = 2
    test_images: int = 10_000
    checkpoint: Path = CHECKPOINT


def reference(task: Task, precision: str, seed: int, evaluate: str, workers: int, *more: str) -> dict[str, Any]:
    """Run the reference style; return what it printed, and its wall time."""
    options = {
        "data": task.tree,
        "checkpoint": task.checkpoint,
        "subsets": task.subsets,
        "shots": task.shots,
        "epochs": task.epochs,
        "seed": seed,
        "precision": precision,
        "evaluate": evaluate,
        "workers": workers,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reference_style", *arguments, *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return {**json.loads(done.stdout), "wall_seconds": time.perf_counter() - start}


def ours(task: Task, precision: str, seed: int) -> dict[str, Any]:
    """Run our stage; return what it printed, its wall time, and how long the decoding before it took."""
    overrides = [
        *our_stage.on_tree(task.tree, task.checkpoint),
        f"sampling.num_subsets={task.subsets}",
        f"sampling.shots={task.shots}",
        f"finetune.epochs={task.epochs}",
        f"model.precision={precision}",
        f"seed={seed}",
    ]
    with tempfile.TemporaryDirectory(dir=task.folder) as name:
        ready = our_stage.prepare("cifar100-lt", overrides, Path(name))
        return {**our_stage.run(Path(name)), **ready}


def fastest(task: Task, workers: Sequence[int] = WORKERS) -> int:
    """Return the number of DataLoader workers with which the reference style fine-tunes fastest on this machine."""
    probe = replace(task, subsets=1, epochs=1)
    speeds = {
        number: max(reference(probe, "float32", 0, "none", number)["images_per_second"] for _ in range(2))
        for number in workers
    }
    print("reference style, images/s by DataLoader workers:", {n: round(s) for n, s in speeds.items()}, flush=True)
    return max(speeds, key=lambda number: speeds[number])


def measure(
    task: Task,
    repetitions: int = 3,
    precisions: Sequence[str] = PRECISIONS,
    workers: Sequence[int] = WORKERS,
) -> list[dict[str, Any]]:
    """Return rows for `benchmarks.run`. A repetition has a seed, and so subsets, of its own."""
    best = fastest(task, workers)
    rows = []
    for precision in precisions:
        rounds = []
        for seed in range(repetitions):
            one = {"ours": ours(task, precision, seed)}
            one |= {how: reference(task, precision, seed, how, best) for how in ("each-epoch", "once")}
            print(precision, f"seed {seed}:", {k: f"{r['wall_seconds']:.1f} s" for k, r in one.items()}, flush=True)
            rounds.append(one)
        rows += rows_of(task, precision, best, rounds)
    return rows


def rows_of(task: Task, precision: str, workers: int, rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of one precision from the documents of every repetition."""
    what = f"BTM stage, {task.subsets} subsets x {task.epochs} epochs, {task.test_images:,} test images, {precision}"

    def median(how: str, value: Any) -> float:
        return round(statistics.median(value(one[how]) for one in rounds), 2)

    def ratio(name: str, how: str, value: Any) -> dict[str, Any]:
        speeds = {key: median(key, lambda run: run["images_per_second"]) for key in (how, "ours")}
        return at_least(
            f"{what}: seconds of the reference style over ours, {name}",
            [value(one[how]) / value(one["ours"]) for one in rounds],
            "x",
            AT_LEAST,
            seconds={"reference": median(how, value), "ours": median("ours", value)},
            images_per_second={"reference": speeds[how], "ours": speeds["ours"]},
            dataloader_workers=workers,
            decoding_seconds=median("ours", lambda run: run["data_seconds"]),
        )

    ratios = [
        ratio("evaluating each epoch there, each model once here", "each-epoch", lambda run: run["wall_seconds"]),
        ratio("evaluating each model once", "once", lambda run: run["wall_seconds"]),
        ratio("without evaluation", "once", lambda run: run["wall_seconds"] - run["seconds"]["evaluation"]),
    ]
    if task.epochs < 30:  # accuracies of half-trained soups say nothing
        return ratios
    soups = {
        how: [{key: round(100 * one[how]["soup"][key], 2) for key in ("accuracy", "h_mean")} for one in rounds]
        for how in ("ours", "once")
    }
    apart = [abs(mine["accuracy"] - theirs["accuracy"]) for mine, theirs in zip(*soups.values(), strict=True)]
    return [*ratios, at_most(f"{what}: accuracies of both soups apart", apart, "points", NOISE, soups=soups)]


def on_cifar(
    subsets: int = 10,
    epochs: int = 2,
    test_per_class: int = 10,
    repetitions: int = 3,
    precisions: Sequence[str] = PRECISIONS,
    root: Path | None = None,
) -> list[dict[str, Any]]:
    """Measure on CIFAR100-LT, on `CORES` of the cores there are."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tree(root or cifar_root(folder / "cifar"), folder / "tree", test_per_class=test_per_class)
        task = Task(folder / "tree", folder, subsets=subsets, epochs=epochs, test_images=100 * test_per_class)
        return measure(task, repetitions, precisions)


def main() -> None:

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test-per-class", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--root", type=Path, help="where CIFAR-100 is; default: a copy at hand, or .btm/data")
    rows = on_cifar(**vars(parser.parse_args()))
    keep(rows, RESULTS, this_machine())
    print_table(rows)


if __name__ == "__main__":
    main()

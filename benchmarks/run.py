"""Measure what BTM promises on a CPU: `make bench`. Writes benchmarks/results/cpu.json.

Each row: name, value (median), unit, target, holds, spread (minimum and maximum over the repetitions). Absolute times
depend on the machine, which is described beside them; nothing here is a test.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import RESULTS, keep, print_table, row, seconds, this_machine

PLACES = Path(__file__).parents[2] / "shared" / "data" / "lists" / "Places_LT_train.txt"


def sampling() -> dict[str, Any]:
    """Ten subsets of a data set of iNaturalist 2018's size: 437,513 labels, 8,142 classes, imbalance factor 500."""
    from btm_core.sampling import balanced_subset

    weights = 500 ** (-np.arange(8142) / 8141)
    counts = np.maximum((weights / weights.sum() * 437_513).astype(int), 2)
    counts[0] += 437_513 - counts.sum()
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(8142), counts))
    assert len(labels) == 437_513
    times = seconds(lambda: [balanced_subset(labels, 10, 0, index) for index in range(10)], 5)
    return row("sample 10 subsets from 437,513 labels in 8,142 classes", times, 0.3)


def reading() -> dict[str, Any] | None:
    """Places-LT's published training list."""
    from btm_core.data import read_list

    if not PLACES.is_file():
        print("Places-LT's list is not at hand: skipped")
        return None
    times = seconds(lambda: read_list(PLACES.read_text(), str(PLACES)), 5)
    return row("read Places-LT's list of 62,500 lines", times, 0.5)


def command(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return done


def help_page() -> dict[str, Any]:
    return row("btm --help", seconds(lambda: command("--help"), 7), 0.5)


def demo() -> list[dict[str, Any]]:
    """The demo from nothing, the same again with everything cached, their phases, and Prefect's own start."""
    from benchmarks.phases import measure

    first, again, prefect = [], [], []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            first.append(measure(folder))
            again += [measure(folder) for _ in range(3)]
            prefect += seconds(partial(_empty_flow, folder), 3)
    share = round(statistics.median(prefect) / statistics.median(run["all"] for run in again), 2)
    return [
        row("btm run digits-lt, from nothing", [run["all"] for run in first], 90, phases=_medians(first)),
        row(
            "btm run digits-lt, everything cached",
            [run["all"] for run in again],
            30,
            phases=_medians(again),
            prefect_alone=share,
        ),
        row("Prefect alone: import, its own server, an empty flow", prefect, 30),
    ]


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    medians = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    print("  " + ", ".join(f"{name} {value:.2f} s" for name, value in medians.items()))
    return medians


def fan_out() -> list[dict[str, Any]]:
    """What the local engine adds to a fine-tune, what 200 of them cost, and what is lost to a kill -9."""
    from benchmarks.fan_out import measure

    rows = []
    with tempfile.TemporaryDirectory() as name:
        runs = [measure(Path(name), f"seed={seed}") for seed in range(3)]
    beyond = [(run["seconds"] - run["training_seconds"]) / run["fine_tunes"] for run in runs]
    rows.append(row("local engine: seconds a fine-tune beyond its training, mean of ten", beyond, 1.5))
    with tempfile.TemporaryDirectory() as name:
        many = measure(Path(name), "sampling.num_subsets=200", "finetune.epochs=1", "pretrain.epochs=1", workers=2)
    facts = {
        "server_peak_megabytes": round(many["server_megabytes"]),
        "under_700_megabytes": many["server_megabytes"] < 700,
    }
    rows.append(row("200 trivial fine-tunes, from the first to the last", [many["seconds"]], 180, **facts))
    few = ("sampling.num_subsets=1", "finetune.epochs=40")
    lost = []
    for seed in range(3):
        with tempfile.TemporaryDirectory() as name:
            calm = measure(Path(name), *few, f"seed={seed}")
        with tempfile.TemporaryDirectory() as name:
            struck = measure(Path(name), *few, f"seed={seed}", "kill=1")
        lost.append(struck["seconds"] - calm["seconds"])
    rows.append(row("time lost to a kill -9 of a fine-tune's process", lost, 10))
    return rows


def store_verify() -> dict[str, Any]:
    """Verifying many small artifacts on a real S3 server."""
    from benchmarks.store import verify_many

    return verify_many()


def images() -> list[dict[str, Any]]:
    """Small image files from S3, and from the cache."""
    from benchmarks.images import measure

    return measure()


def _empty_flow(folder: Path) -> None:
    script = (
        "from pathlib import Path; from flows.environment import prepare_prefect; prepare_prefect(Path('.btm'));"
        "from prefect import flow; flow(lambda: 1, name='empty')()"
    )
    environment = {**os.environ, "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, check=True, capture_output=True)


def transfers() -> list[dict[str, Any]]:
    """A large checkpoint to and from S3, against plain s3fs."""
    from benchmarks.transfers import measure

    rows = measure()
    for one in rows:
        print(f"{one['name']:<80} {one['value']:6} {one['unit']}  ({'holds' if one['holds'] else 'DOES NOT HOLD'})")
    return rows


def speed() -> list[dict[str, Any]]:
    """The BTM stage against the reference style."""
    from benchmarks.speed import on_cifar

    return on_cifar()


def growth() -> list[dict[str, Any]]:
    """How cost grows with subsets and classes."""
    from benchmarks.growth import measure

    return measure()


def merging() -> list[dict[str, Any]]:
    """Ten checkpoints into one, against reading them and against other ways to average."""
    from benchmarks.merging import measure

    return measure()


GROUPS: dict[str, Callable[[], list[dict[str, Any] | None]]] = {
    "sampling": lambda: [sampling()],
    "reading": lambda: [reading()],
    "help": lambda: [help_page()],
    "demo": lambda: [*demo()],
    "fan-out": lambda: [*fan_out()],
    "transfers": lambda: [*transfers()],
    "store-verify": lambda: [store_verify()],
    "images": lambda: [*images()],
    "growth": lambda: [*growth()],
    "speed": lambda: [*speed()],
    "merging": lambda: [*merging()],
}


def main() -> None:
    """Measure all, or the groups that are named; the rows of the others stay."""
    measured = []
    for group in sys.argv[1:] or GROUPS:
        rows = [row for row in GROUPS[group]() if row is not None]
        keep(rows, RESULTS, this_machine())
        measured += rows
    print()
    print_table(measured)
    print(f"\nWritten to {RESULTS.relative_to(Path.cwd()) if RESULTS.is_relative_to(Path.cwd()) else RESULTS}")


if __name__ == "__main__":
    main()

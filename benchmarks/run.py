"""Measure what BTM promises on a CPU: `make bench`. Writes benchmarks/results/cpu.json.

Each row: name, value (median), unit, target, holds, spread (minimum and maximum over the repetitions). Absolute times
depend on the machine, which is described beside them; nothing here is a test.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "cpu.json"
PLACES = Path(__file__).parents[2] / "shared" / "data" / "lists" / "Places_LT_train.txt"


def seconds(work: Callable[[], Any], repetitions: int) -> list[float]:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def row(name: str, times: list[float], target: float, **more: Any) -> dict[str, Any]:
    value = statistics.median(times)
    result = {
        "name": name,
        "value": round(value, 3),
        "unit": "s",
        "target": target,
        "holds": value < target,
        "spread": [round(min(times), 3), round(max(times), 3)],
        "repetitions": len(times),
        **more,
    }
    print(f"{name:<64} {value:8.3f} s   (under {target:g} s: {'yes' if result['holds'] else 'NO'})", flush=True)
    return result


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
    """The demo from nothing, the same again with everything cached, and how much of that is Prefect's own start."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = seconds(lambda: command("run", "digits-lt", cwd=folder), 1)
        again = seconds(lambda: command("run", "digits-lt", cwd=folder), 5)
        prefect = seconds(lambda: _empty_flow(folder), 5)
    share = round(statistics.median(prefect) / statistics.median(again), 2)
    return [
        row("btm run digits-lt, from nothing", first, 90),
        row("btm run digits-lt, everything cached", again, 30, share_of_prefect_start=share),
        row("  of which Prefect's own start: import, server, an empty flow", prefect, 30),
    ]


def _empty_flow(folder: Path) -> None:
    script = (
        "from pathlib import Path; from flows.environment import prepare_prefect; prepare_prefect(Path('.btm'));"
        "from prefect import flow; flow(lambda: 1, name='empty')()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True)


def main() -> None:
    rows = [sampling(), reading(), help_page(), *demo()]
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }
    found = [{**row, "on": machine} for row in rows if row is not None]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nWritten to {RESULTS.relative_to(Path.cwd()) if RESULTS.is_relative_to(Path.cwd()) else RESULTS}")


if __name__ == "__main__":
    main()

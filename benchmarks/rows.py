"""Rows of measurements: how they are made, kept and shown. A row says what was measured, and whether that is enough."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "at_least", "at_most", "cores", "keep", "print_table", "row", "seconds", "this_machine"]

RESULTS = Path(__file__).parent / "results" / "cpu.json"
"""What is measured on a CPU, by any of the benchmarks."""


def at_most(name: str, values: Sequence[float], unit: str, target: float, **facts: Any) -> dict[str, Any]:
    """Return the row of repetitions whose median may be at most `target`; `facts` stand beside it."""
    return _row(name, values, unit, target, statistics.median(values) <= target, facts)


def at_least(name: str, values: Sequence[float], unit: str, target: float, **facts: Any) -> dict[str, Any]:
    """Return the row of repetitions whose median must be at least `target`."""
    return _row(name, values, unit, target, statistics.median(values) >= target, facts)


def _row(
    name: str, values: Sequence[float], unit: str, target: float, holds: bool, facts: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(statistics.median(values), 3),
        "unit": unit,
        "target": target,
        "holds": holds,
        "spread": [round(min(values), 3), round(max(values), 3)],
        "repetitions": len(values),
        **facts,
    }


def seconds(work: Callable[[], Any], repetitions: int) -> list[float]:
    """Return how long something takes, each time."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def row(name: str, times: Sequence[float], target: float, **facts: Any) -> dict[str, Any]:
    """Return the row of times whose median may be at most `target` seconds, and print it."""
    result = at_most(name, times, "s", target, **facts)
    print(
        f"{name:<64} {result['value']:8.3f} s   (at most {target:g} s: {'yes' if result['holds'] else 'NO'})",
        flush=True,
    )
    return result


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_machine() -> dict[str, Any]:
    """Return what a reader must know of machine and software to judge a row."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return {
        "machine": platform.machine(),
        "processor": next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None),
        "cores": cores(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "system": platform.system(),
    }


def keep(rows: Sequence[dict[str, Any]], path: Path, on: dict[str, Any]) -> None:
    """Write rows, measured `on` a machine, to a file of results, each in place of an older one of its name."""
    known = {row["name"]: row for row in json.loads(path.read_text())} if path.is_file() else {}
    known |= {row["name"]: {**row, "on": on} for row in rows}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table: what was measured, its spread, what was to be reached."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("measured")
    for heading in ("median", "spread", "n", "target", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        low, high = row["spread"]
        figures = [f"{row['value']:g} {row['unit']}", f"{low:g}..{high:g}", str(row["repetitions"])]
        table.add_row(row["name"], *figures, f"{row['target']:g}", "holds" if row["holds"] else "MISSED")
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)

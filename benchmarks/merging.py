"""Merging of ten checkpoints of a ResNet-152 (241 MB each), against reading them, and against other ways to average.

Each way runs in a process of its own, so that its peak memory is its own, on two threads, which a merge has by default
(BTM_THREADS); the ways take turns. The ways, all from files to a file:

- read: only reads the files, into one buffer;
- merge: `btm_core.merging.merge`;
- load all: loads all state dicts, averages them in float64, saves the average;
- swa_utils: `torch.optim.swa_utils.AveragedModel` with its buffers, updated from one loaded model after another;
- lazy: opens all files by `safetensors.safe_open`, and reads and averages one tensor after another, as mergekit does.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COUNTS = (5, 10, 20)
OTHERS = ("load all", "swa_utils", "lazy")
BEYOND = 300  # MB of memory beyond two models
SCRIPT = """
import re, sys, time
from pathlib import Path
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from btm_core.merging import merge

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def read():
    buffer = bytearray(2**20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

def load_all():
    models = [load_file(path) for path in paths]
    means = {}
    for name, first in models[0].items():
        mean = torch.stack([model[name].double() for model in models]).mean(0)
        means[name] = (mean if first.is_floating_point() else mean.round()).to(first.dtype)
    save_file(means, output)

def swa_utils():
    import torchvision
    model = torchvision.models.resnet152()
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for path in paths:
        model.load_state_dict(load_file(path))
        averaged.update_parameters(model)
    save_file(averaged.module.state_dict(), output)

def lazy():
    files = [safe_open(path, "pt") for path in paths]
    means = {}
    for name in files[0].keys():
        first = files[0].get_tensor(name)
        total = first.double()
        for file in files[1:]:
            total += file.get_tensor(name)
        total /= len(files)
        means[name] = (total if first.is_floating_point() else total.round()).to(first.dtype)
    save_file(means, output)

way, output, *paths = sys.argv[1:]
ways = {"read": read, "merge": lambda: merge(paths, output), "load all": load_all, "swa_utils": swa_utils, "lazy": lazy}
torch.set_num_threads(2)
start, used = time.perf_counter(), time.process_time()
ways[way]()
print(time.perf_counter() - start, peak(), time.process_time() - used)
"""


def measure(repetitions: int = 3) -> list[dict[str, Any]]:
    """Return rows for `benchmarks.run`: time in relation to reading and to the other ways, memory, and growth."""
    with tempfile.TemporaryDirectory() as name:
        every = write_checkpoints(Path(name), max(COUNTS))
        paths, model = every[:10], every[0].stat().st_size / 2**20
        warm = [{way: run(way, paths) for way in ("read", "merge", *OTHERS)} for _ in range(repetitions)]
        cold = [{way: run(way, paths, cold=True) for way in ("read", "merge")} for _ in range(repetitions)]
        growth = [{n: run("merge", every[:n]) for n in COUNTS} for _ in range(repetitions)]
    rows = [_against_reading(cold, "cold: read from the disk"), _against_reading(warm, "warm: in the page cache")]
    rows += [_against(other, warm) for other in OTHERS]
    peaks = [r["merge"][1] for r in (*warm, *cold)]
    rows.append(
        _row("merge of ten ResNet-152: peak memory of its process", peaks, 2 * model + BEYOND, "MB", below=True)
        | {"value": round(max(peaks)), "of_it_idle": round(min(r["read"][1] for r in warm))}
        | {way.replace(" ", "_"): round(max(r[way][1] for r in warm)) for way in OTHERS}
    )
    linear = [r[20][0] / (2 * r[10][0]) for r in growth]
    seconds = {str(n): round(statistics.median(r[n][0] for r in growth), 2) for n in COUNTS}
    memory = {str(n): round(max(r[n][1] for r in growth)) for n in COUNTS}
    rows.append(
        _row("merge of 20 ResNet-152: time in relation to twice that of 10", linear, 1.1)
        | {"seconds": seconds, "memory_megabytes": memory}
    )
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows


def write_checkpoints(folder: Path, count: int) -> list[Path]:
    """Write checkpoints of torchvision's ResNet-152, each with noise of its own."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    model = torchvision.models.resnet152().state_dict()
    paths = [folder / f"{seed}.safetensors" for seed in range(count)]
    for seed, path in enumerate(paths):
        generator = torch.Generator().manual_seed(seed)
        noise = {k: torch.randn(t.shape, generator=generator) for k, t in model.items() if t.is_floating_point()}
        save_file({k: t + 0.01 * noise[k] if k in noise else t + seed for k, t in model.items()}, path)
    return paths


def run(way: str, paths: Sequence[Path], *, cold: bool = False) -> tuple[float, float, float]:
    """Return seconds, peak of memory (MB) and seconds of CPU of a process that goes one way; `cold` drops the files."""
    output = paths[0].with_name("merged")
    output.unlink(missing_ok=True)
    os.sync()
    if cold:
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, "-c", SCRIPT, way, str(output), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    seconds, peak, used = map(float, done.stdout.split())
    return seconds, peak, used


def _against_reading(rounds: list[dict[str, tuple[float, float, float]]], state: str) -> dict[str, Any]:
    ratios = [r["merge"][0] / r["read"][0] for r in rounds]
    row = _row(f"merge of ten ResNet-152, {state}: time in relation to reading the files", ratios, 1.3)
    facts = {"seconds": 0, "cpu_seconds": 2}
    return row | {
        fact: {way: round(statistics.median(r[way][index] for r in rounds), 2) for way in ("read", "merge")}
        for fact, index in facts.items()
    }


def _against(other: str, rounds: list[dict[str, tuple[float, float, float]]]) -> dict[str, Any]:
    ratios = [r[other][0] / r["merge"][0] for r in rounds]
    row = _row(f"merge of ten ResNet-152, warm: speed in relation to {other}", ratios, 1, below=False)
    used = [r[other][2] / r["merge"][2] for r in rounds]
    seconds = round(statistics.median(r[other][0] for r in rounds), 2)
    return row | {"seconds": seconds, "cpu_in_relation": round(statistics.median(used), 2)}


def _row(name: str, values: list[float], target: float, unit: str = "ratio", *, below: bool = True) -> dict[str, Any]:
    value = statistics.median(max(values) if unit == "MB" else v for v in values)
    digits = 0 if unit == "MB" else 2
    return {
        "name": name,
        "value": round(value, digits),
        "unit": unit,
        "target": round(target, digits),
        "holds": value <= target if below else value >= target,
        "spread": [round(min(values), digits), round(max(values), digits)],
        "repetitions": len(values),
    }


if __name__ == "__main__":
    measure()

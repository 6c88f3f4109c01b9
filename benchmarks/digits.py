"""digits-lt over several seeds: `python -m benchmarks.digits report` and `... choose`.

`choose` compares settings of the fine-tune on seeds and splits 100..102; `report` runs the preset as it is on seeds and
splits 0..4 (a seed is both the run's and the data split's). Results go to benchmarks/results/digits-lt-*.json.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
METRICS = ("h_mean", "g_mean", "lowest_recall", "accuracy")
CANDIDATES: dict[str, list[str]] = {
    "lr 0.05, 30 epochs": ["finetune.lr=0.05", "finetune.epochs=30"],
    "lr 0.1, 60 epochs": ["finetune.lr=0.1", "finetune.epochs=60"],
    "lr 0.1, 60 epochs, no mixup": ["finetune.lr=0.1", "finetune.epochs=60", "finetune.mixup_alpha=0"],
    "lr 0.2, 60 epochs": ["finetune.lr=0.2", "finetune.epochs=60"],
}


def run(folder: Path, seed: int, overrides: list[str]) -> list[dict[str, Any]]:
    arguments = [f"--set={value}" for value in (f"seed={seed}", f"data.split_seed={seed}", *overrides)]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", "digits-lt", "--json", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    models: list[dict[str, Any]] = json.loads(done.stdout)["models"]
    return models


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) in percent, and the values they come from."""
    result: dict[str, Any] = {"n": len(rows)}
    for metric in METRICS:
        values = [100 * row[metric] for row in rows]
        result[metric] = {
            "mean": round(statistics.mean(values), 1),
            "std": round(statistics.stdev(values), 1),
            "values": [round(value, 1) for value in values],
        }
    return result


def measure(folder: Path, seeds: range, overrides: list[str]) -> dict[str, Any]:
    stages: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        models = run(folder, seed, overrides)
        for model in models:
            if model["stage"] in ("pretrain", "baseline", "merge", "post_train"):
                stages.setdefault(model["name"], []).append(model)
        print(f"seed {seed}: final H-mean {100 * models[-1]['h_mean']:.1f}", flush=True)
    return {stage: summary(rows) for stage, rows in stages.items()}


def show(title: str, found: dict[str, Any]) -> None:
    print(f"\n{title}")
    for stage, figures in found.items():
        cells = [f"{figures[metric]['mean']:5.1f} ± {figures[metric]['std']:4.1f}" for metric in METRICS]
        print(f"  {stage:<22} {'   '.join(cells)}")


def main() -> None:
    mode = sys.argv[1] if len(sys.argv) > 1 else "report"
    seeds = range(5) if mode == "report" else range(100, 103)
    settings = {"preset": []} if mode == "report" else CANDIDATES
    start = time.time()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in settings.items():
            found[name] = measure(Path(folder), seeds, overrides)
            show(f"{name} ({', '.join(METRICS)}; mean ± std of {len(seeds)} seeds, percent)", found[name])
    facts = {
        "seeds": list(seeds),
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "device": "cpu",
        "seconds": round(time.time() - start),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"digits-lt-{mode}.json").write_text(json.dumps({**facts, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

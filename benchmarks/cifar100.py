"""CIFAR100-LT (IF 100) from a stage-1 checkpoint: `python -m benchmarks.cifar100 choose CHECKPOINT` and `... report`.

`choose` compares settings of stage 2 on images that are in neither split: the long tail leaves 39,153 of CIFAR-100's
training images over, of which up to 100 a class are taken (class 0 keeps all of its own, so it is not judged). Nothing
is chosen on the test split. One line a setting goes to standard output.

`report RUN.json ...` gathers what `btm run ... --json` printed, one file a run, into
benchmarks/results/cifar100-lt.json and .md beside the published figures. Runs are named METHOD-SEED.json.
"""

import json
import platform
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
CANDIDATES: dict[str, dict[str, Any]] = {
    "mislas, no mixup": {},
    "mislas, mixup 1.0": {"mixup_alpha": 1.0},
    "mislas, mixup 0.2": {"mixup_alpha": 0.2},
    "mislas, no mixup, no BN shift": {"shift_batchnorm": False},
    "mislas, mixup 1.0, no BN shift": {"mixup_alpha": 1.0, "shift_batchnorm": False},
    "mislas, no mixup, head lr factor 1": {"head_lr_factor": 1.0},
    "mislas, no mixup, 40 epochs": {"epochs": 40},
    "gml, instance sampler": {"method": "gml"},
    "gml, class-aware sampler": {"method": "gml", "sampler": "class-aware"},
    "h2t": {"method": "h2t", "weight_decay": 5e-4},
}
PUBLISHED = {  # percent: H-mean, G-mean, lowest recall, accuracy (the BTM paper, Tables 2 and 9)
    "mislas": (30.9, 40.2, 5.0, 47.0),
    "mislas + BTM": (36.3, 42.9, 8.0, 47.1),
    "gml": (36.5, 40.9, 11.0, 46.5),
    "gml + BTM": (36.7, 41.3, 8.0, 46.9),
    "h2t": (31.5, 41.1, 4.0, 47.8),
    "h2t + BTM": (34.2, 43.5, 8.3, 47.3),
}
FIGURES = ("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium", "few", "zero_recall_classes")


def choose(checkpoint: Path, root: Path, seed: int = 100) -> None:
    import torch

    from btm_core.checkpoints import load_into
    from btm_core.config import load_experiment
    from btm_core.data import long_tail_indices
    from btm_core.data.cifar import read_cifar100
    from btm_core.data.dataset import LabelledImages, PackedPixels
    from btm_core.evaluation import predict
    from btm_core.models import build_model
    from btm_core.post_training import post_trainer

    config = load_experiment("cifar100-lt")
    split = read_cifar100(root, download=True).train
    assert split.pixels is not None
    kept = long_tail_indices(split.labels, 100)
    counts = np.bincount(split.labels[kept])
    rest = np.setdiff1d(np.arange(len(split)), kept)
    random = np.random.default_rng(7)
    held = np.concatenate([random.permutation(rest[split.labels[rest] == c])[:100] for c in range(1, 100)])

    def images(positions: Any) -> LabelledImages:
        pixels = torch.from_numpy(split.pixels[positions])  # type: ignore[index]
        return LabelledImages(PackedPixels(pixels), torch.from_numpy(split.labels[positions]), config.data.input)

    train, judged = images(kept), images(held)
    for name, values in CANDIDATES.items():
        start = time.perf_counter()
        model = build_model("resnet32", 100)
        load_into(model, checkpoint)
        post_train = config.post_train.model_copy(update=values)
        wrapped, trainer = post_trainer(model, train, counts, post_train, seed=("choose", seed), precision="bfloat16")
        list(trainer)
        predicted, _ = predict(wrapped.folded(), judged, batch_size=128)
        y = judged.labels.numpy()
        recall = (np.bincount(y[y == predicted], minlength=100) / np.maximum(np.bincount(y, minlength=100), 1))[1:]
        floored = np.where(recall == 0, 1e-3, recall)
        row = {
            "h_mean": 99 / (1 / floored).sum(),
            "g_mean": np.exp(np.log(floored).mean()),
            "lowest_recall": recall.min(),
            "accuracy": recall.mean(),
        }
        figures = " ".join(f"{key} {100 * row[key]:.1f}" for key in row)
        print(f"{name}: {figures} ({time.perf_counter() - start:.0f} s)", flush=True)


def report(files: list[Path]) -> None:
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(files):
        answer = json.loads(file.read_text())
        method = file.stem.rsplit("-", 1)[0]
        rows = {row["name"]: {key: row[key] for key in FIGURES} for row in answer["models"]}
        facts = {"seed": answer["seed"], "seconds": answer["seconds"], "trained": answer["trained_stages"]}
        runs["stage 1"].append({**facts, **rows["stage 1"]})
        runs[method].append({**facts, **rows["stage 1 + post-train"]})
        runs["soup"].append({**facts, **rows["soup"]})
        runs[f"{method} + BTM"].append({**facts, **rows["final"]})
    lines = [
        "| row | n | " + " | ".join(FIGURES) + " | published H / G / lowest / Acc |",
        "|---" * (len(FIGURES) + 3) + "|",
    ]
    summary = {}
    for name, rows_of in runs.items():
        if name in ("stage 1", "soup"):  # the same whatever follows
            rows_of = list({json.dumps({k: row[k] for k in FIGURES}): row for row in rows_of}.values())
        cells = []
        means = {}
        for key in FIGURES:
            scale = 1 if key == "zero_recall_classes" else 100
            values = [scale * row[key] for row in rows_of]
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            means[key] = {"mean": float(np.mean(values)), "std": std}
            cells.append(f"{np.mean(values):.1f}" + (f" ± {std:.1f}" if std is not None else ""))
        known = PUBLISHED.get(name)
        summary[name] = {"n": len(rows_of), "summary": means, "runs": rows_of, "published": known}
        lines.append(
            f"| {name} | {len(rows_of)} | " + " | ".join(cells) + f" | {' / '.join(map(str, known)) if known else ''} |"
        )
    facts = {
        "device": f"CPU, {platform.machine()}, bfloat16 autocast",
        "versions": {name: version(name) for name in ("btm", "torch", "numpy")},
    }
    RESULTS.joinpath("cifar100-lt.json").write_text(json.dumps({**facts, "rows": summary}, indent=1) + "\n")
    RESULTS.joinpath("cifar100-lt.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    if sys.argv[1] == "choose":
        choose(Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) > 3 else ".btm/data"))
    else:
        report([Path(name) for name in sys.argv[2:]])

"""CIFAR100-LT (IF 100) from a stage-1 checkpoint: `python -m benchmarks.cifar100 choose CHECKPOINT DATA`, `choose-btm
CHECKPOINT DATA [NAME ...]` and `report`.

`choose` compares settings of stage 2, `choose-btm` those of the fine-tune (4 subsets, merged, post-trained by MiSLAS),
on images that are in neither split: the long tail leaves 39,153 of CIFAR-100's training images over, of which up to 100
a class are taken (class 0 keeps all of its own, so it is not judged). Nothing is chosen on the test split. One line a
setting goes to standard output.

`report NAME RUN.json ...` gathers what `btm run ... --json` printed, one file a run, into benchmarks/results/NAME.json
and .md beside the published figures, with the stage 1, the test split and the settings that the runs' reports name.
Runs are named METHOD-SEED.json. What `comment` in NAME.json says of gaps is kept; `render NAME` writes the Markdown
again.
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

from btm_core.storage import file_digest

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
FINETUNES: dict[str, dict[str, Any]] = {
    "paper": {},
    "weight decay 2e-4": {"weight_decay": 2e-4},
    "lr 0.1": {"lr": 0.1},
    "lr 0.1, no mixup": {"lr": 0.1, "mixup_alpha": 0.0},
    "BN frozen": {"frozen_batchnorm": True},
    "90 epochs": {"epochs": 90},
}
"""The paper's section 4.1 names lr 5e-3 and 30 epochs; the authors' published configuration has lr 0.1."""
PUBLISHED = {  # percent: H-mean, G-mean, lowest recall, accuracy (the BTM paper, Tables 2 and 9)
    "mislas": (30.9, 40.2, 5.0, 47.0),
    "mislas + BTM": (36.3, 42.9, 8.0, 47.1),
    "gml": (36.5, 40.9, 11.0, 46.5),
    "gml + BTM": (36.7, 41.3, 8.0, 46.9),
    "h2t": (31.5, 41.1, 4.0, 47.8),
    "h2t + BTM": (34.2, 43.5, 8.3, 47.3),
}
FIGURES = ("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium", "few", "zero_recall_classes")


class Held:
    """The long-tailed cut, and images outside of both splits to judge on."""

    def __init__(self, root: Path):
        import torch

        from btm_core.config import load_experiment
        from btm_core.data import long_tail_indices
        from btm_core.data.cifar import read_cifar100
        from btm_core.data.dataset import LabelledImages
        from btm_core.data.images import PackedPixels

        self.config = load_experiment("cifar100-lt")
        split = read_cifar100(root, download=True).train
        assert split.pixels is not None
        kept = long_tail_indices(split.labels, 100)
        self.counts = np.bincount(split.labels[kept])
        rest = np.setdiff1d(np.arange(len(split)), kept)
        random = np.random.default_rng(7)
        held = np.concatenate([random.permutation(rest[split.labels[rest] == c])[:100] for c in range(1, 100)])

        def images(positions: Any) -> LabelledImages:
            pixels = torch.from_numpy(split.pixels[positions])  # type: ignore[index]
            return LabelledImages(
                PackedPixels(pixels), torch.from_numpy(split.labels[positions]), self.config.data.input
            )

        self.train, self.judged = images(kept), images(held)

    def figures(self, model: Any) -> str:
        """Score a model on the held images, class 0 left out."""
        from btm_core.evaluation import predict

        predicted, _ = predict(model, self.judged)
        y = self.judged.labels.numpy()
        recall = (np.bincount(y[y == predicted], minlength=100) / np.maximum(np.bincount(y, minlength=100), 1))[1:]
        floored = np.where(recall == 0, 1e-3, recall)
        row = {
            "h_mean": 99 / (1 / floored).sum(),
            "g_mean": np.exp(np.log(floored).mean()),
            "lowest_recall": recall.min(),
            "accuracy": recall.mean(),
        }
        return " ".join(f"{key} {100 * value:.1f}" for key, value in row.items())

    def post_trained(self, model: Any, values: dict[str, Any], seed: int) -> Any:
        """Post-train a model as the preset does, but for `values`."""
        from btm_core.post_training import post_trainer

        config = self.config.post_train.model_copy(update=values)
        wrapped, trainer = post_trainer(
            model, self.train, self.counts, config, seed=("choose", seed), precision="bfloat16"
        )
        list(trainer)
        return wrapped.folded()


def choose(checkpoint: Path, root: Path, seed: int = 100) -> None:
    from btm_core.checkpoints import load_into
    from btm_core.models import build_model

    held = Held(root)
    for name, values in CANDIDATES.items():
        start = time.perf_counter()
        model = build_model("resnet32", 100)
        load_into(model, checkpoint)
        figures = held.figures(held.post_trained(model, values, seed))
        print(f"{name}: {figures} ({time.perf_counter() - start:.0f} s)", flush=True)


def choose_btm(checkpoint: Path, root: Path, names: list[str], seed: int = 100, subsets: int = 4) -> None:
    import tempfile

    import torch

    from btm_core.checkpoints import load_into
    from btm_core.merging import merge
    from btm_core.models import build_model
    from btm_core.sampling import balanced_subset
    from btm_core.training import part_trainer

    held = Held(root)
    for name in names or list(FINETUNES):
        start = time.perf_counter()
        values = dict(FINETUNES[name])
        frozen = values.pop("frozen_batchnorm", False)
        config = held.config.finetune.model_copy(update=values)
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for index in range(subsets):
                model = build_model("resnet32", 100)
                load_into(model, checkpoint)
                positions = balanced_subset(held.train.labels.numpy(), 10, seed, index)
                subset = held.train.take(torch.from_numpy(positions))
                key = ("finetune", seed, index)
                trainer = part_trainer(model, "all", subset, config, seed=key, precision="bfloat16")
                if frozen:
                    trainer.objective.set_mode = trainer.objective.eval  # type: ignore[method-assign,assignment]
                list(trainer)
                paths.append(Path(folder, f"{index}.safetensors"))
                save(model, paths[-1])
            merge(paths, Path(folder, "soup.safetensors"))
            soup = build_model("resnet32", 100)
            load_into(soup, Path(folder, "soup.safetensors"))
        print(f"{name}, soup: {held.figures(soup)}", flush=True)
        final = held.figures(held.post_trained(soup, {}, seed))
        print(f"{name}, final: {final} ({time.perf_counter() - start:.0f} s)", flush=True)


def save(model: Any, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def report(name: str, files: list[Path]) -> None:
    """Gather runs into benchmarks/results/NAME.json and .md."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    experiments, splits = {}, set()
    for file in sorted(files):
        answer = json.loads(file.read_text())
        method = file.stem.rsplit("-", 1)[0]
        told = json.loads(Path(answer["report"].removeprefix("file://")).with_suffix(".json").read_text())
        experiments[method] = told["experiment"]
        splits.add(told["data"]["splits"]["test"]["hash"])
        rows = {row["name"]: {key: row[key] for key in FIGURES} for row in answer["models"]}
        facts = {"seed": answer["seed"], "seconds": answer["seconds"], "trained": answer["trained_stages"]}
        runs["stage 1"].append({**facts, **rows["stage 1"]})
        runs[method].append({**facts, **rows["stage 1 + post-train"]})
        runs["soup"].append({**facts, **rows["soup"]})
        runs[f"{method} + BTM"].append({**facts, **rows["final"]})
    summary = {}
    for row_name, rows_of in runs.items():
        if row_name in ("stage 1", "soup"):  # the same whatever follows
            rows_of = list({json.dumps({k: row[k] for k in FIGURES}): row for row in rows_of}.values())
        means = {}
        for key in FIGURES:
            values = [(1 if key == "zero_recall_classes" else 100) * row[key] for row in rows_of]
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            means[key] = {"mean": float(np.mean(values)), "std": std}
        published = PUBLISHED.get(row_name)
        summary[row_name] = {"n": len(rows_of), "summary": means, "runs": rows_of, "published": published}
    target = RESULTS / f"{name}.json"
    starts = sorted({experiment["pretrain"]["checkpoint"] for experiment in experiments.values()} - {None})
    facts = {
        "device": f"CPU, {platform.machine()}, bfloat16 autocast",
        "versions": {package: version(package) for package in ("btm", "torch", "numpy")},
        "stage_1": [{"file": Path(start).name, "sha256": file_digest(Path(start))[0]} for start in starts],
        "test_split": sorted(splits),
        "comment": json.loads(target.read_text()).get("comment", []) if target.exists() else [],
        "experiments": experiments,
    }
    target.write_text(json.dumps({**facts, "rows": summary}, indent=1) + "\n")
    render(name)


def render(name: str) -> None:
    """Write benchmarks/results/NAME.md from NAME.json."""
    document = json.loads(RESULTS.joinpath(f"{name}.json").read_text())
    versions = ", ".join(f"{package} {number}" for package, number in document["versions"].items())
    longest: dict[int, float] = defaultdict(float)
    for row in document["rows"].values():
        for run in row["runs"]:
            if "finetune" in run["trained"]:
                longest[run["seed"]] = max(longest[run["seed"]], run["seconds"])
    seconds = ", ".join(f"seed {seed} {taken:.0f} s" for seed, taken in sorted(longest.items()))
    lines = [
        f"{document['device']}; {versions}. Percent, of the test split; mean ± standard deviation over seeds of BTM "
        f"and post-training, all from one stage 1. Runs that fine-tuned took: {seconds} (beside other work).",
        "",
        *(f"Stage 1: `{start['file']}`, sha256 {start['sha256']}." for start in document["stage_1"]),
        f"Test split: {', '.join(document['test_split'])}.",
        "",
        "| row | n | " + " | ".join(FIGURES) + " | published H / G / lowest / Acc |",
        "|---" * (len(FIGURES) + 3) + "|",
    ]
    for row_name, row in document["rows"].items():
        cells = [_cell(**row["summary"][key]) for key in FIGURES]
        known = " / ".join(map(str, row["published"])) if row["published"] else ""
        lines.append(f"| {row_name} | {row['n']} | " + " | ".join(cells) + f" | {known} |")
    lines += ["", *(f"- {sentence}" for sentence in document["comment"])]
    RESULTS.joinpath(f"{name}.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


def _cell(mean: float, std: float | None) -> str:
    return f"{mean:.1f}" + (f" ± {std:.1f}" if std is not None else "")


if __name__ == "__main__":
    if sys.argv[1] == "choose":
        choose(Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) > 3 else ".btm/data"))
    elif sys.argv[1] == "choose-btm":
        choose_btm(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    elif sys.argv[1] == "report":
        report(sys.argv[2], [Path(name) for name in sys.argv[3:]])
    else:
        render(sys.argv[2])

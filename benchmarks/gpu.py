"""What BTM promises on one NVIDIA GPU: `make bench-gpu`, or `python -m benchmarks.gpu`.

`python -m benchmarks.gpu --prepare .btm/cifar100-lt.safetensors` packs CIFAR100-LT (48 MB) where the data are. The
machine with the GPU needs neither a network nor Prefect, MLflow, s3fs: of BTM only `btm_core` is imported, which takes
torch, torchvision, numpy, pillow, safetensors, fsspec, pydantic, pydantic-settings, tenacity and pyyaml; this program
itself psutil and rich.

Each part writes its rows to benchmarks/results/gpu.json as soon as it ends; `--parts` chooses among them:
- stage: fine-tunes and merge of ours, in this process, for every pack size of `--packs`; the reference style as a
  process of its own, evaluating after each epoch and once; their ratios.
- resume: a fine-tune that is cut off and gone on with, against one that is left alone: how far their weights are apart.
- row: the whole row of the paper: stage 1, BTM, post-training, evaluation of 13 models.
- resnet50: training on JPEG files and on decoded images of 224 pixels, against bare steps on one synthetic batch.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_data import Bench, load, prepare
from benchmarks.gpu_resnet50 import resnet50
from benchmarks.rows import at_least, at_most, keep, print_table, this_machine

if TYPE_CHECKING:
    from torch import Tensor

    from btm_core.config import FinetuneConfig
    from btm_core.data.dataset import LabelledImages
    from btm_core.models import Classifier
    from btm_core.training import Trainer

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "benchmarks" / "models" / "cifar100-lt-if100-resnet32-seed1.safetensors"
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PACKS = (10, 5, 2, 1)
"""Subsets that train in one step."""
STAGE_SECONDS, AT_LEAST, ROW_SECONDS = 20, 8.0, 180
RESUMED_EPOCHS, CUT_AFTER = 4, 2
RESUMED_PPM = 100
"""How far a fine-tune that is gone on with may be from one left alone, in millionths of the largest weight: one that
forgets the momentum is 156 away on a CPU, on 300 images."""


def ours(bench: Bench, base: Path, folder: Path, pack: int) -> list[Path]:
    """Fine-tune `base` on every subset, `pack` of them in one step; return the checkpoints."""
    from btm_core.checkpoints import save_tensors
    from btm_core.packing import PackTrainer

    config = bench.experiment.finetune
    trainers = [fine_tune(bench, base, config, index, subset) for index, subset in enumerate(subsets(bench))]
    paths = []
    for start in range(0, len(trainers), pack):
        members = trainers[start : start + pack]
        for _ in members[0] if len(members) == 1 else PackTrainer(members):
            pass
    for index, trainer in enumerate(trainers):
        paths.append(folder / f"{index:02d}.safetensors")
        weights = trainer.objective.network.state_dict()  # type: ignore[operator, union-attr]
        save_tensors(weights, paths[-1])
    return paths


def fine_tune(bench: Bench, base: Path, config: "FinetuneConfig", index: int, subset: "LabelledImages") -> "Trainer":
    """Return the trainer of `base` on a subset."""
    from btm_core.checkpoints import load_into
    from btm_core.training import part_trainer

    model = new_model(bench)
    load_into(model, base)
    seed = ("finetune", bench.experiment.seed, index)
    return part_trainer(model, config.train, subset, config, seed=seed, precision=bench.precision, device=bench.device)


def new_model(bench: Bench) -> "Classifier":
    from btm_core.models import build_model

    return build_model("resnet32", len(bench.counts), 3, bench.experiment.seed)


def subsets(bench: Bench) -> "list[LabelledImages]":
    """Return the balanced subsets, those of the reference style too."""
    import torch

    from btm_core.sampling import balanced_subset

    sampling, labels = bench.experiment.sampling, bench.train.labels.numpy()
    drawn = [balanced_subset(labels, sampling.shots, bench.experiment.seed, i) for i in range(sampling.num_subsets)]
    return [bench.train.take(torch.from_numpy(positions)) for positions in drawn]


def btm_stage(bench: Bench, base: Path, folder: Path, pack: int) -> tuple[list[Path], Path]:
    """Fine-tune and merge; return the ingredients and the soup."""
    from btm_core.merging import merge

    folder.mkdir(exist_ok=True)
    ingredients = ours(bench, base, folder, pack)
    merge(ingredients, folder / "soup.safetensors")
    return ingredients, folder / "soup.safetensors"


def evaluate(bench: Bench, *checkpoints: Path) -> list[dict[str, float]]:
    """Return accuracy, H-mean and so on of checkpoints, on the test split."""
    from btm_core.checkpoints import load_into
    from btm_core.evaluation import predict_all
    from btm_core.metrics import recall_report

    models = [new_model(bench) for _ in checkpoints]
    for model, checkpoint in zip(models, checkpoints, strict=True):
        load_into(model, checkpoint)
    targets, counts = bench.test.labels.numpy(), bench.counts.numpy()
    predicted = predict_all(models, bench.test, bench.device)
    return [recall_report(targets, classes, counts).summary() for classes, _ in predicted]


def reference_style(bench: Bench, how: str) -> dict[str, Any]:
    """Run the reference style for as many subsets and epochs, nothing extrapolated."""
    experiment = bench.experiment
    options = {
        "data": bench.folder / "tree",
        "checkpoint": CHECKPOINT,
        "subsets": experiment.sampling.num_subsets,
        "shots": experiment.sampling.shots,
        "epochs": experiment.finetune.epochs,
        "seed": experiment.seed,
        "device": bench.device.type,
        "precision": bench.precision,
        "evaluate": how,
    }
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.reference_style", *(f"--{k}={v}" for k, v in options.items())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout), "wall_seconds": time.perf_counter() - start}


def stage(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the rows of the BTM stage."""
    finetune, sampling = bench.experiment.finetune, bench.experiment.sampling
    what = f"BTM stage of CIFAR100-LT, {sampling.num_subsets} subsets x {finetune.epochs} epochs, {bench.precision}"
    with bench.timed() as first:  # the CUDA context, cuDNN's choices, the allocator: paid once a process
        ingredients, soup = btm_stage(bench, CHECKPOINT, bench.folder / "stage", bench.arguments.packs[0])
    with bench.timed() as evaluated:
        evaluate(bench, *ingredients, soup)
    cold = {"stage": first[0], "evaluation": evaluated[0], "decoding": bench.decoding_seconds}
    images = sum(map(len, subsets(bench))) * finetune.epochs
    rows = []
    for pack in bench.arguments.packs:
        times = []
        for _ in range(bench.arguments.repetitions):
            with bench.timed() as took:
                _, soup = btm_stage(bench, CHECKPOINT, bench.folder / "stage", pack)
            times += took
        row = at_most(
            f"{what}, {pack} in a step",
            times,
            "s",
            STAGE_SECONDS,
            first_seconds=round(first[0], 2),
            decoding_seconds=round(bench.decoding_seconds, 2),
            images_per_second=round(images / statistics.median(times)),
            soup=percent(evaluate(bench, soup)[0]),
        )
        rows.append(row)
        yield row
    for how in bench.arguments.evaluate:
        yield against(what, how, reference_style(bench, how), cold, rows[0])


def against(what: str, how: str, run: dict[str, Any], cold: dict[str, float], ours: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the reference style over ours.

    Both are the first of a process, decode the images, fine-tune, merge and evaluate: after each epoch or once there,
    once here. Neither has the import of torch in it.
    """
    alone, whole = run["wall_seconds"] - run["seconds"]["start"], sum(cold.values())
    words = {"each-epoch": "after each epoch", "once": "once"}[how]
    return at_least(
        f"{what}: seconds of sequential fine-tunes of the reference style, evaluating {words}, over ours",
        [alone / whole],
        "x",
        AT_LEAST,
        seconds={"reference": round(alone, 2), "ours": round(whole, 2)},
        reference={name: round(value, 2) for name, value in run["seconds"].items()},
        ours={name: round(value, 2) for name, value in cold.items()},
        images_per_second={"reference": round(run["images_per_second"]), "ours": ours["images_per_second"]},
        dataloader_workers=run["settings"]["workers"],
        soups={"reference": percent(run["soup"]), "ours": ours["soup"]},
    )


def resume(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the row of a fine-tune that is cut off: its distance to one that is not, and that of two that are not."""
    from btm_core.checkpoints import save_tensors
    from btm_core.tensor_files import load_tensors

    config = bench.experiment.finetune.model_copy(update={"epochs": RESUMED_EPOCHS})
    subset = subsets(bench)[0]

    def trained(cut_off: bool) -> "dict[str, Tensor]":
        trainer = fine_tune(bench, CHECKPOINT, config, 0, subset)
        if cut_off:
            next(record for record in trainer if record.epoch == CUT_AFTER)
            save_tensors(trainer.state_dict(), bench.folder / "state.safetensors")
            trainer = fine_tune(bench, CHECKPOINT, config, 0, subset)
            trainer.load_state_dict(load_tensors(bench.folder / "state.safetensors"))
        for _ in trainer:
            pass
        return {name: tensor.detach().cpu() for name, tensor in trainer.objective.named_parameters()}

    undisturbed, again, resumed = trained(False), trained(False), trained(True)
    yield at_most(
        f"a fine-tune of {RESUMED_EPOCHS} epochs, cut off after {CUT_AFTER} and gone on with, {bench.precision}: "
        "largest distance of a weight from one that was left alone, in millionths of the largest weight",
        [apart(resumed, undisturbed)],
        "ppm",
        RESUMED_PPM,
        left_alone_twice=round(apart(again, undisturbed), 2),
    )


def apart(found: "dict[str, Tensor]", expected: "dict[str, Tensor]") -> float:
    """Return the largest difference between two networks' weights, in millionths of the second one's largest."""
    difference = max(float((found[name].double() - tensor.double()).abs().max()) for name, tensor in expected.items())
    return 1e6 * difference / max(float(tensor.abs().max()) for tensor in expected.values())


def row(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the row of the whole row of the paper's table: stage 1 from nothing to 13 evaluated models."""
    folder = bench.folder / "row"
    folder.mkdir()
    with bench.timed() as pretrained:
        stage1 = pretrain(bench, folder / "stage1.safetensors")
    with bench.timed() as fine_tuned:
        ingredients, soup = btm_stage(bench, stage1, folder / "stage", bench.arguments.packs[0])
    with bench.timed() as post_trained:
        final = post_train(bench, soup, folder / "final.safetensors")
    models = [stage1, *ingredients, soup, final]
    with bench.timed() as evaluated:
        figures = evaluate(bench, *models)
    parts = {"stage 1": pretrained, "BTM": fine_tuned, "post-training": post_trained, "evaluation": evaluated}
    yield at_most(
        f"the paper's row of CIFAR100-LT: {bench.experiment.pretrain.epochs} epochs of stage 1, BTM, post-training, "
        f"{len(models)} models evaluated, {bench.precision}",
        [sum(took[0] for took in parts.values())],
        "s",
        ROW_SECONDS,
        parts={name: round(took[0], 2) for name, took in parts.items()},
        models={name: percent(figures[i]) for name, i in (("stage 1", 0), ("soup", -2), ("final", -1))},
    )


def pretrain(bench: Bench, output: Path) -> Path:
    """Train stage 1 from nothing."""
    from btm_core.checkpoints import save_tensors
    from btm_core.methods import stage1_trainer

    model, config = new_model(bench), bench.experiment.pretrain
    how: dict[str, Any] = {"seed": bench.experiment.seed, "precision": bench.precision, "device": bench.device}
    for _ in stage1_trainer(model, bench.train, bench.counts, config, **how):
        pass
    save_tensors(model.state_dict(), output)
    return output


def post_train(bench: Bench, soup: Path, output: Path) -> Path:
    """Re-train the head of the soup."""
    from btm_core.checkpoints import load_into, save_tensors
    from btm_core.post_training import post_trainer

    model, config = new_model(bench), bench.experiment.post_train
    load_into(model, soup)
    how: dict[str, Any] = {"precision": bench.precision, "device": bench.device}
    seed = ("post-train", bench.experiment.seed)
    wrapped, trainer = post_trainer(model, bench.train, bench.counts.numpy(), config, seed=seed, **how)
    for _ in trainer:
        pass
    save_tensors(wrapped.folded().state_dict(), output)
    return output


def percent(figures: dict[str, Any]) -> dict[str, float]:
    return {key: round(100 * figures[key], 2) for key in ("accuracy", "h_mean", "g_mean", "lowest_recall")}


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a reader must know to judge the rows."""
    import torch

    facts = {**this_machine(), "device": arguments.device, "seed": arguments.seed}
    if arguments.device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        found = shutil.which("nvidia-smi") is not None
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() if found else None
        facts |= {"device": torch.cuda.get_device_name(0), "driver": driver, "cuda": torch.version.cuda}
        facts |= {"cudnn": torch.backends.cudnn.version()}
    return {**facts, **{name: version(name) for name in ("torchvision", "numpy", "pillow")}}


PARTS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "stage": stage,
    "resume": resume,
    "row": row,
    "resnet50": resnet50,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".btm/cifar100-lt.safetensors"), help="what --prepare wrote")
    parser.add_argument("--prepare", type=Path, metavar="FILE", help="pack CIFAR100-LT into FILE, and end")
    parser.add_argument(
        "--root", type=Path, help="--prepare: where CIFAR-100 is; default: a copy at hand, or .btm/data"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--packs", type=int, nargs="+", choices=PACKS, default=list(PACKS), help="subsets in one step")
    parser.add_argument("--evaluate", nargs="+", choices=("each-epoch", "once"), default=["once", "each-epoch"])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="go through all parts on little; writes no results")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu is for trying this program: add --tiny, which writes no results")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.prepare is not None:
        prepare(arguments.prepare, arguments.root)
        return
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("There is no NVIDIA GPU that torch can use here: nothing is measured.", file=sys.stderr)
        sys.exit(2)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # as every worker of `btm run`
    warnings.filterwarnings("ignore", message=".*deterministic")
    on = machine(arguments)
    print(json.dumps(on), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bench = load(arguments, Path(name))
        for part in arguments.parts:
            for measured in PARTS[part](bench):
                rows.append(measured)
                print(json.dumps(measured), flush=True)
                if not arguments.tiny:
                    keep([measured], RESULTS, on)
    print_table(rows)


if __name__ == "__main__":
    main()

"""The BTM stage of `btm run` as a process: fine-tunes beside each other on the local engine, merge, evaluation.

`prepare` makes what a stage starts from (data, stage 1, subsets) and writes the fine-tunes to do as a file;
`python -m benchmarks.our_stage FILE STORE` does them, and prints one JSON document. The steps, the engine and all
settings are those of `btm run`; only Prefect, which would add its own start to it, is left out: `benchmarks.fan_out`
measures with it.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from safetensors.numpy import load

from btm_core.storage import Artifact, Store
from tasks.engines.orders import steps_from_json, steps_to_json
from tasks.evaluate import RECALL, Evaluate
from tasks.events import Event, listening
from tasks.execution import execute
from tasks.finetune import Finetune
from tasks.merge import Merge
from tasks.settings import RuntimeSettings
from tasks.stages import WEIGHTS

ROOT = Path(__file__).parents[1]

__all__ = ["on_tree", "prepare", "run"]


def on_tree(tree: Path, checkpoint: Path) -> list[str]:
    """Return overrides of `cifar100-lt` that take a folder of `benchmarks.cifar_tree` and a stage-1 checkpoint."""
    files = {
        "root": tree,
        "train": tree / "train.txt",
        "test": tree / "test.txt",
        "class_names": tree / "class_names.txt",
    }
    given = [f"data.{key}={path.resolve()}" for key, path in files.items()]
    # The lists hold the cut already.
    return [*given, "data.format=list", "data.imbalance_factor=null", f"pretrain.checkpoint={checkpoint.resolve()}"]


def prepare(preset: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Make data, stage 1 and subsets in `folder`/store, and write `folder`/steps.json: the fine-tunes.

    Returns the seconds of the data artifact, which is made once a data set.
    """
    from btm_core.config import load_experiment
    from btm_core.storage import file_digest_at
    from tasks.data import prepare_data
    from tasks.pretrain import ImportStage1, Pretrain
    from tasks.sample import SampleSubset

    experiment = load_experiment(preset, overrides)
    settings = _settings(folder / "store")
    start = time.perf_counter()
    [data] = execute([prepare_data(experiment.name, experiment.data, settings.cache)], settings)
    seconds = time.perf_counter() - start
    shared: dict[str, Any] = {
        "data": data,
        "view": experiment.data.input,
        "model": experiment.model,
        "seed": experiment.seed,
        "root": experiment.data.root,
    }
    source = experiment.pretrain.checkpoint
    if source is None:
        [stage1] = execute([Pretrain(config=experiment.pretrain, **shared)], settings)
    else:
        [stage1] = execute([ImportStage1(source=source, content=file_digest_at(source)[0], **shared)], settings)
    subsets = execute(SampleSubset.all(data, experiment.sampling, experiment.seed), settings)
    steps = [
        Finetune(base=stage1, subset=subset, index=index, config=experiment.finetune, **shared)
        for index, subset in enumerate(subsets)
    ]
    (folder / "steps.json").write_text(json.dumps(steps_to_json(steps)))
    return {"data_seconds": seconds}


def run(folder: Path) -> dict[str, Any]:
    """Do the stage that `prepare` described as a process of its own; return what it printed, and its wall time."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "benchmarks.our_stage", str(folder / "steps.json"), str(folder / "store")]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return {**json.loads(done.stdout), "wall_seconds": time.perf_counter() - start}


def fan_out(steps: Sequence[Finetune], settings: RuntimeSettings) -> list[Artifact]:
    """Do the fine-tunes as the flow does (`flows.work.join`): each is handed to the engine by a thread of its own."""
    with ThreadPoolExecutor(64) as threads:
        return list(threads.map(lambda step: execute([step], settings)[0], steps))


def shared_out(steps: Sequence[Evaluate], settings: RuntimeSettings) -> list[Artifact]:
    """Evaluate as the flow does (`flows.work.together`): each worker has its share of the models."""
    count = len(settings.slots())
    with ThreadPoolExecutor(count) as threads:
        shares = list(threads.map(lambda number: execute(steps[number::count], settings), range(count)))
    return [shares[number % count][number // count] for number in range(len(steps))]


def stage(steps: Sequence[Finetune], settings: RuntimeSettings) -> dict[str, Any]:
    """Fine-tune, merge, evaluate every ingredient and the soup once; return seconds and figures."""
    epochs: list[Event] = []
    marks = {"": psutil.Process().create_time(), "start": time.time()}
    with listening(lambda event: epochs.append(event) if event["event"] == "epoch" else None):
        ingredients = fan_out(steps, settings)
    marks["fine-tunes"] = time.time()
    [soup] = execute([Merge(ingredients=tuple(ingredients))], settings)
    marks["merge"] = time.time()
    first = steps[0]
    models = [*ingredients, soup]
    evaluations = [Evaluate(data=first.data, view=first.view, model=model, root=first.root) for model in models]
    store = Store(settings.store_url)
    found = [store.read_json(artifact, RECALL) for artifact in shared_out(evaluations, settings)]
    marks["evaluation"] = time.time()
    seconds = {name: marks[name] - marks[before] for before, name in itertools.pairwise(marks)}
    images = sum(event["images"] for event in epochs)
    return {
        "seconds": {"total": sum(seconds.values()), **seconds},
        "images": images,
        "steps": sum(_batches_seen(store, model) - _batches_seen(store, first.base) for model in ingredients),
        "images_per_second": images / seconds["fine-tunes"],
        "workers": len(settings.slots()),
        "threads": settings.finetune_threads,
        "ingredients": [figures["accuracy"] for figures in found[:-1]],
        "soup": {key: value for key, value in found[-1].items() if key != "recall"},
    }


def _batches_seen(store: Store, model: Artifact) -> int:
    """Return how many training batches a network has seen, as its batch normalisation counted them."""
    tensors = load(store.read_file(model, WEIGHTS) or b"")
    return next(int(tensor) for name, tensor in tensors.items() if name.endswith("num_batches_tracked"))


def _settings(store: Path) -> RuntimeSettings:
    return RuntimeSettings(home=store.parent / "home", store=str(store), device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=Path, help="what `prepare` wrote")
    parser.add_argument("store", type=Path)
    arguments = parser.parse_args()
    steps = [step for step in steps_from_json(json.loads(arguments.steps.read_text())) if isinstance(step, Finetune)]
    print(json.dumps(stage(steps, _settings(arguments.store))))


if __name__ == "__main__":
    main()

"""Runs that are done, with models of known recall: real artifacts in a real store, but for the training."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from btm_core.checkpoints import CheckpointMetadata, save_checkpoint
from btm_core.config import ExperimentConfig
from btm_core.metrics import recall_report
from btm_core.models import build_model
from btm_core.report import ModelResult, build_report
from btm_core.storage import Artifact, Store
from tasks.step import versions

__all__ = ["CLASSES", "IMAGES", "finish_run"]

CLASSES, IMAGES = 8, 50
"""Classes, and test images of each."""
COUNTS = np.array([120, 80, 50, 30, 20, 10, 5, 3])


def finish_run(
    store: Store,
    folder: Path,
    run_id: str,
    recall: Sequence[float],
    *,
    name: str = "trees",
    weights: int = 0,
    classes: Sequence[str] = tuple(f"tree-{c}" for c in range(CLASSES)),
    split: str = "0",
    tracked: str = "0" * 32,
    **promotion: object,
) -> str:
    """Write what a run leaves in the store whose final model has these recalls; returns its id.

    Arguments:
    - weights: seed of the network: equal ones make one artifact.
    - split: names the test images; models of one split were evaluated on the same.
    - tracked: its run in MLflow; by default it has none.
    """
    view = {"size": 8, "channels": 1, "mean": [0.3], "std": [0.4], "augmentation": "crop"}
    experiment = ExperimentConfig.model_validate(
        {"name": name, "data": {"format": "digits", "input": view}, "model": {"backbone": "small_cnn"}}
        | {"promotion": promotion}
    )
    targets = np.repeat(np.arange(CLASSES), IMAGES)
    right = np.tile(np.arange(IMAGES), CLASSES) < np.round(np.asarray(recall) * IMAGES)[targets]
    predicted = np.where(right, targets, (targets + 1) % CLASSES)
    data = _data(store, folder / f"{run_id}-data", classes, split, targets)
    model = _model(store, folder / f"{run_id}-model", data, classes, weights)
    split_hash = split.ljust(64, "0")
    report = recall_report(targets, predicted, COUNTS)
    out = folder / f"{run_id}-evaluation"
    out.mkdir()
    confidence = np.ones(len(targets), np.float32)
    arrays = {"predicted": predicted, "target": targets, "confidence": confidence}
    save_file(arrays, out / "predictions.safetensors")
    values = {"split": "test", "split_hash": split_hash, **report.summary(), "recall": report.recall.tolist()}
    (out / "recall.json").write_text(json.dumps(values))
    parents = {"data": data.address, "model": model.address}
    evaluation = _publish(store, f"evaluate/{run_id}-{_hash(run_id)}", out, parents)
    names = ("final", "post_train", model.address, evaluation.address)
    result = ModelResult(*names, report, predicted, "test", split_hash)
    document = build_report(
        run={
            "run_id": run_id,
            "name": name,
            "created": "2026-01-02 03:04 UTC",
            "data": {
                "content": split,
                "profile": "forged",
                "test_images": len(targets),
                "splits": {"test": {"images": len(targets), "hash": split_hash}},
            },
            "versions": versions(),
            "lost_ingredients": [],
            "lineage": [{"address": one.address, "parents": [], "state": "made"} for one in (data, model, evaluation)],
        },
        experiment=experiment.model_dump(mode="json"),
        class_names=list(classes),
        train_counts=COUNTS,
        targets=targets,
        models=[result],
    )
    store.write(json.dumps(document).encode(), "runs", run_id, "report.json")
    summary: dict[str, object] = {
        "run_id": run_id,
        "name": name,
        "seed": 0,
        "tracking": {"uri": "nowhere", "run_id": tracked},
    }
    summary["report"] = store.locate("runs", run_id, "report.html")
    store.write(json.dumps(summary).encode(), "runs", run_id, "run.json")
    return run_id


def _data(store: Store, out: Path, classes: Sequence[str], split: str, targets: NDArray[np.int64]) -> Artifact:
    address = f"data/forged-{_hash(split + ''.join(classes))}"
    found = store.find(address)
    if found is not None:
        return found
    out.mkdir()
    save_file({"test": targets}, out / "labels.safetensors")
    description = {"class_names": list(classes), "train_counts": COUNTS.tolist(), "content": split}
    (out / "dataset.json").write_text(json.dumps(description))
    return _publish(store, address, out, {})


def _model(store: Store, out: Path, data: Artifact, classes: Sequence[str], weights: int) -> Artifact:
    address = f"post_train/forged-{_hash(f'{weights}{data.address}')}"
    found = store.find(address)
    if found is not None:
        return found
    out.mkdir()
    facts = {"backbone": "small_cnn", "channels": 1, "size": 8, "mean": (0.3,), "std": (0.4,), "stage": "post_train"}
    metadata = CheckpointMetadata(class_names=tuple(classes), train_counts=tuple(COUNTS.tolist()), **facts)
    with torch.random.fork_rng():
        save_checkpoint(build_model("small_cnn", len(classes), 1, seed=weights), out / "model.safetensors", metadata)
    return _publish(store, address, out, {"data": data.address})


def _publish(store: Store, address: str, out: Path, parents: dict[str, str]) -> Artifact:
    return store.publish(address, out, config={}, parents=parents, versions={}, host={}, logs=())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

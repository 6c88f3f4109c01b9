"""The report of a run: one JSON document, and its figures. `btm_core.pages.report` makes a page of it.

C classes; models are listed in the order of the paper's Table 12.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btm_core.calibration import calibration
from btm_core.evidence import Evidence
from btm_core.metrics import RecallReport, shot_groups
from btm_core.pages import png
from btm_core.side_by_side import Evaluated, cautions, pair_document

__all__ = ["ModelResult", "build_report", "class_rows", "figures"]

SUMMARY = (
    "h_mean",
    "g_mean",
    "lowest_recall",
    "accuracy",
    "many",
    "medium",
    "few",
    "zero_recall_classes",
    "mean_recall",
)


@dataclass(frozen=True, eq=False)
class ModelResult:
    """One evaluated model: its name, the stage that made it, its artifacts, its recall and predictions (N,).

    `confidences` (N,) are the probabilities of the predicted classes, if they are known.
    """

    name: str
    stage: str
    artifact: str
    evaluation: str
    recall: RecallReport
    predictions: NDArray[np.int64]
    split: str
    split_hash: str
    confidences: NDArray[np.float32] | None = None

    def row(self) -> dict[str, Any]:
        """Return name, stage and the scalar figures (fractions)."""
        figures = self.recall.summary()
        names = {"name": self.name, "stage": self.stage, "artifact": self.artifact, "evaluation": self.evaluation}
        names |= {"split": self.split, "split_hash": self.split_hash}
        return names | {key: figures[key] for key in SUMMARY}


def build_report(
    *,
    run: dict[str, Any],
    experiment: dict[str, Any],
    class_names: Sequence[str],
    train_counts: NDArray[np.int64],
    targets: NDArray[np.int64],
    models: Sequence[ModelResult],
    lowest: int = 10,
) -> dict[str, Any]:
    """Return the report as a JSON-ready document.

    Arguments:
    - run: facts on this run: run_id, versions, lineage, data, and so on; taken as they are. `data.group_counts` (C,)
        say what is many, medium and few; without it `train_counts` do.
    - experiment: the configuration.
    - targets: (N,) classes of the test images.
    - models: in order; the last is the final model, the first stage 1.
    - lowest: how many of the final model's worst classes to list.

    Besides the figures of every model it has `comparison`, the final model against the one that BTM must beat (stage 1
    post-trained, or else stage 1) as `btm_core.side_by_side.pair_document` compares two, and `calibration` of both.
    """
    final, first = models[-1], models[0]
    before = next((model for model in models if model.stage == "baseline"), first)
    group_counts = np.asarray(run.get("data", {}).get("group_counts", train_counts))

    def evidence(model: ModelResult) -> Evidence:
        facts = (model.split, model.split_hash, tuple(class_names), train_counts, group_counts)
        return Evidence(*facts, targets, model.predictions)

    found = evidence(final)
    comparison = pair_document(Evaluated(before.name, evidence(before)), Evaluated(final.name, found))
    compared = comparison.pop("per_class")
    classes = {
        "name": list(class_names),
        "train_images": train_counts.tolist(),
        "test_images": found.test_counts.tolist(),
        "recall": {model.name: model.recall.recall.tolist() for model in models},
        **{key: [row[key] for row in compared] for key in ("group", "low", "high", "clear")},
    }
    worst = [{**row, "recall_before": float(before.recall.recall[row["class"]])} for row in found.lowest(lowest)]
    return {
        **run,
        "models": [model.row() for model in models],
        "compared_with": before.name,
        "comparison": comparison | {"cautions": cautions(comparison)},
        "calibration": {model.name: _calibration(model, targets, group_counts) for model in (before, final)},
        "lowest_classes": worst,
        "classes": classes,
        "experiment": experiment,
    }


def _calibration(
    model: ModelResult, targets: NDArray[np.int64], group_counts: NDArray[np.int64]
) -> dict[str, Any] | None:
    """Return how calibrated a model is, overall and on the test images of many, medium and few; None if unknown."""
    if model.confidences is None:
        return None
    right = model.predictions == targets
    members = {name: mask[targets] for name, mask in shot_groups(group_counts).items()}
    chosen = {"overall": np.ones(len(targets), bool), **members}
    return {
        name: calibration(model.confidences[images], right[images]).to_json() if images.any() else None
        for name, images in chosen.items()
    }


def class_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row a class, the model before and the final one, as `per_class` of a pair of models."""
    classes, recall = report["classes"], report["classes"]["recall"]
    columns = [classes[key] for key in ("name", "group", "train_images", "test_images")]
    columns += [recall[report["compared_with"]], recall[report["models"][-1]["name"]], classes["low"], classes["high"]]
    columns.append(classes["clear"])
    keys = ("name", "group", "train_images", "test_images", "a", "b", "low", "high", "clear")
    rows = [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
    return [{"class": c, **row, "difference": row["b"] - row["a"]} for c, row in enumerate(rows)]


def figures(report: dict[str, Any]) -> dict[str, bytes]:
    """Return the figures as PNG: stage 1 against the soup, and the baseline against the final model (Figure 3)."""
    from btm_core.plots import recall_by_frequency

    recall, counts = report["classes"]["recall"], report["classes"]["train_images"]
    names = {row["stage"]: row["name"] for row in report["models"]}
    first, final = report["models"][0]["name"], report["models"][-1]["name"]
    pairs = {"balanced_training": (first, names["merge"]), "final": (report["compared_with"], final)}
    images = {}
    for key, (before, after) in pairs.items():
        images[key] = png(recall_by_frequency(recall[before], recall[after], counts, before, after))
    return images

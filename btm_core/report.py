"""The report of a run: one JSON document, and one self-contained HTML page made from it.

C classes; models are listed in the order of the paper's Table 12.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btm_core.metrics import RecallReport, confusions
from btm_core.pages import inline, png, render_page

__all__ = ["ModelResult", "build_report", "render_html"]

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
    """One evaluated model: its name, the stage that made it, its artifacts, its recall and predictions (N,)."""

    name: str
    stage: str
    artifact: str
    evaluation: str
    recall: RecallReport
    predictions: NDArray[np.int64]
    split: str
    split_hash: str

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
    - run: facts on this run: run_id, versions, lineage, data, and so on; taken as they are.
    - experiment: the configuration.
    - targets: (N,) classes of the test images.
    - models: in order; the last is the final model, the first stage 1.
    - lowest: how many of the final model's worst classes to list.
    """
    final, first = models[-1], models[0]
    before = next((model for model in models if model.stage == "baseline"), first)
    order = np.lexsort((np.arange(len(class_names)), final.recall.recall))[:lowest]
    totals = np.bincount(targets, minlength=len(class_names))
    worst = [
        {
            "class": int(c),
            "name": class_names[c],
            "train_images": int(train_counts[c]),
            "test_images": int(totals[c]),
            "recall": float(final.recall.recall[c]),
            "recall_before": float(before.recall.recall[c]),
            "taken_for": [
                {"class": other, "name": class_names[other], "images": images}
                for other, images in confusions(targets, final.predictions, int(c))
            ],
        }
        for c in order
    ]
    classes = {
        "name": list(class_names),
        "train_images": train_counts.tolist(),
        "test_images": totals.tolist(),
        "recall": {model.name: model.recall.recall.tolist() for model in models},
    }
    return {
        **run,
        "models": [model.row() for model in models],
        "compared_with": before.name,
        "lowest_classes": worst,
        "classes": classes,
        "experiment": experiment,
    }


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


def render_html(report: dict[str, Any], images: dict[str, bytes]) -> str:
    """Return the report as one HTML page that needs nothing beside it."""
    import yaml

    inlined = {key: inline(data) for key, data in images.items()}
    config = yaml.safe_dump(report["experiment"], sort_keys=False, default_flow_style=None)
    return render_page("report.html.j2", **report, figures=inlined, config=config)

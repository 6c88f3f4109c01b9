"""A run: what links a flow run to its artifacts, its tracker, its report."""

import datetime
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btm_core.config import ExperimentConfig
from btm_core.data.long_tail import profile
from btm_core.storage import Artifact, Store
from tasks.data import LABELS, describe
from tasks.evaluate import RECALL, predictions_of
from tasks.events import Event, listening
from tasks.sample import SUBSET
from tasks.settings import RuntimeSettings
from tasks.step import host_facts, versions
from tasks.tracking import Tracker, without_password

if TYPE_CHECKING:
    from btm_core.report import ModelResult

__all__ = ["Model", "Run"]

STAGES = ("data", "pretrain", "fc", "sample", "finetune", "merge", "post_train", "evaluate")
FIGURES = ("h_mean", "g_mean", "lowest_recall", "accuracy", "mean_recall", "zero_recall_classes")
GROUPS = ("many", "medium", "few")


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model on the way: its name in the report, the stage that made it, its weights, its evaluation."""

    name: str
    stage: str
    artifact: Artifact
    evaluation: Artifact


@dataclass
class Run:
    """Listens to the steps of one flow run, and writes its report. Use as a context manager."""

    experiment: ExperimentConfig
    settings: RuntimeSettings
    run_id: str
    steps: dict[str, bool] = field(default_factory=dict)
    """Address of each step, and whether its artifact was found."""
    trained: set[str] = field(default_factory=set)
    """Stages of which at least one epoch was trained in this run."""

    def __enter__(self) -> "Run":
        self.started = time.monotonic()
        self.store = Store(self.settings.store_url)
        self._stack = ExitStack()
        self.tracker = self._stack.enter_context(Tracker(self.settings, self.experiment, self.run_id))
        self._stack.enter_context(listening(self._listen))
        self._stack.enter_context(listening(self.tracker.listen))
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

    def _listen(self, event: Event) -> None:
        if event["event"] in ("cached", "started"):
            self.steps.setdefault(event["step"], event["event"] == "cached")
        elif event["event"] == "epoch":
            self.trained.add(event["stage"])

    def finish(
        self, data: Artifact, subset: Artifact, models: Sequence[Model], validated: Sequence[Model] = ()
    ) -> dict[str, Any]:
        """Write the report, log it, and return what `btm run --json` prints.

        `models` are evaluated on the test split, `validated` are the same on the validation split, if there is one.
        """
        from btm_core.report import figures, render_html

        report = self._report(data, subset, models)
        report["validation"] = [result.row() for result in self._results(validated)]
        images = figures(report)
        with tempfile.TemporaryDirectory(prefix="btm-") as name:
            folder = Path(name)
            (folder / "report.json").write_text(json.dumps(report, indent=1))
            (folder / "report.html").write_text(render_html(report, images), encoding="utf-8")
            for key, png in images.items():
                (folder / f"{key}.png").write_bytes(png)
            urls = {
                path.name: self.store.put(path, "runs", self.run_id, path.name) for path in sorted(folder.iterdir())
            }
            summary = self._summary(report, urls["report.html"], models)
            self.store.write(json.dumps(summary, indent=1).encode(), "runs", self.run_id, "run.json")
            try:
                self._track(report, models, sorted(folder.iterdir()), urls["report.html"])
            except Exception as error:  # the report is written: a tracking server that is down does not undo the run
                log.warning("MLflow did not take the results: %s", error)
        return summary

    def _report(self, data: Artifact, subset: Artifact, models: Sequence[Model]) -> dict[str, Any]:
        import numpy as np
        from safetensors.numpy import load_file

        from btm_core.report import build_report

        results = self._results(models)
        description = describe(self.store, data)
        drawn = self.store.read_json(subset, SUBSET)
        with tempfile.TemporaryDirectory(prefix="btm-") as name:
            labels = load_file(self.store.fetch(data, LABELS, Path(name)))
        counts = np.asarray(description["train_counts"])
        run = {
            "run_id": self.run_id,
            "name": self.experiment.name,
            "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "published": self.experiment.published,
            "data": {
                "content": description["content"],
                "profile": str(profile(counts)),
                "test_images": len(labels["test"]),
                "splits": description["splits"],
            },
            "subset_images": len(drawn["positions"]),
            "short_classes": len(drawn["short_classes"]),
            "lineage": self._lineage(),
            "versions": versions(),
            "host": host_facts(),
        }
        return build_report(
            run=run,
            experiment=self.experiment.model_dump(mode="json"),
            class_names=description["class_names"],
            train_counts=counts,
            targets=labels["test"],
            models=results,
        )

    def _results(self, models: Sequence[Model]) -> "list[ModelResult]":
        """Read the evaluations of models."""
        import numpy as np

        from btm_core.metrics import RecallReport
        from btm_core.report import ModelResult

        results = []
        for model in models:
            values = self.store.read_json(model.evaluation, RECALL)
            split, split_hash = values.pop("split"), values.pop("split_hash")
            values["recall"] = np.asarray(values["recall"], dtype=np.float64)
            _, predicted = predictions_of(self.store, model.evaluation)
            addresses = (model.artifact.address, model.evaluation.address)
            recall = RecallReport(**values)
            results.append(ModelResult(model.name, model.stage, *addresses, recall, predicted, split, split_hash))
        return results

    def _in_order(self) -> list[tuple[str, bool]]:
        """Return the steps by stage of the algorithm, then by name: they end in any order."""
        return sorted(self.steps.items(), key=lambda item: (STAGES.index(item[0].partition("/")[0]), item[0]))

    def _lineage(self) -> list[dict[str, Any]]:
        rows = []
        for address, cached in self._in_order():
            manifest = self.store.manifest(address)
            parents = sorted(manifest.parents.values()) if manifest else []
            rows.append({"address": address, "parents": parents, "cached": cached})
        return rows

    def _summary(self, report: dict[str, Any], url: str, models: Sequence[Model]) -> dict[str, Any]:
        artifacts = {}
        for address, _ in self._in_order():
            stage, _, rest = address.partition("/")
            if stage in ("sample", "finetune"):
                artifacts[f"{stage}/{rest.rsplit('-', 1)[0]}"] = self.store.locate("artifacts", address)
            elif stage != "evaluate":
                artifacts.setdefault(stage, self.store.locate("artifacts", address))
        artifacts["post_train"] = self.store.locate("artifacts", models[-1].artifact.address)
        made = sorted({address.partition("/")[0] for address, cached in self.steps.items() if not cached})
        stages = {address.partition("/")[0] for address in self.steps}
        return {
            "run_id": self.run_id,
            "name": self.experiment.name,
            "seed": self.experiment.seed,
            "report": url,
            "final_model": f"{artifacts['post_train']}/model.safetensors",
            "artifacts": artifacts,
            "models": report["models"],
            "validation": report["validation"],
            "cached_stages": sorted(stages - set(made)),
            "made_stages": made,
            "trained_stages": [stage for stage in STAGES if stage in self.trained],
            "tracking": {"uri": without_password(self.tracker.uri), "run_id": self.tracker.run_id},
            "seconds": round(time.monotonic() - self.started, 2),
        }

    def _track(self, report: dict[str, Any], models: Sequence[Model], files: list[Path], url: str) -> None:
        source = self.experiment.data.root or self.experiment.data.format
        counts = asdict(profile(report["classes"]["train_images"]))
        self.tracker.log_dataset(self.experiment.name, report["data"]["content"], counts, source)
        for model, row in zip(models, report["models"], strict=True):
            self.tracker.log_model_result(model.artifact.address, _metrics(row))
        tags = {"btm.report": url, "btm.store": self.store.url, "btm.data": report["data"]["content"]}
        self.tracker.log_result(_metrics(report["models"][-1]), tags, files)


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    """Name the figures of a model as MLflow metrics, groups that are empty left out."""
    named = {f"test/{key}": row[key] for key in FIGURES}
    return named | {f"test/recall_{key}": row[key] for key in GROUPS if row[key] is not None}

"""A run: what links a flow run to its artifacts, its tracker, its report."""

import datetime
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btm_core.config import ExperimentConfig, with_absolute_paths
from btm_core.data.long_tail import profile
from btm_core.storage import Artifact, Store
from btm_core.urls import without_credentials
from tasks.data import LABELS, describe, group_counts
from tasks.elsewhere import comparisons_elsewhere
from tasks.evaluate import RECALL, answers_of
from tasks.events import Event, listening
from tasks.journal import Journal, is_over
from tasks.sample import SUBSET
from tasks.samples import lowest_thumbnails
from tasks.settings import RuntimeSettings
from tasks.stages import WEIGHTS
from tasks.step import host_facts, versions
from tasks.stopping import on_stop
from tasks.tracking import PER_CLASS, Tracker, run_note, split_metrics
from tasks.workspace import RECORDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from btm_core.report import ModelResult

__all__ = ["Model", "Run"]

STAGES = ("data", "pretrain", "fc", "sample", "finetune", "merge", "post_train", "evaluate")


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
    links: Mapping[str, str] = field(default_factory=dict)
    """Where else the run can be looked at, by name: a URL, or what to search there."""
    steps: dict[str, bool] = field(default_factory=dict)
    """Address of each step, and whether its artifact was found."""
    trained: set[str] = field(default_factory=set)
    """Stages of which at least one epoch was trained in this run."""

    def __enter__(self) -> "Run":
        self.started = time.monotonic()
        self.store = Store(self.settings.store_url)
        with ExitStack() as stack:
            journal = Journal(self.store, self.run_id, self.experiment.name, self.experiment.seed)
            stack.enter_context(journal)
            stack.enter_context(on_stop(journal.stop))
            self.tracker = stack.enter_context(self._tracker())
            stack.enter_context(on_stop(self.tracker.kill))
            stack.enter_context(listening(self._listen))
            stack.enter_context(listening(self.tracker.listen))
            self._stack = stack.pop_all()
        return self

    def _tracker(self) -> Tracker:
        tags = {
            "btm.store": self.store.url,
            **{f"btm.{name.lower().replace(' ', '_')}": url for name, url in self.links.items()},
        }
        return Tracker(
            self.settings, self.experiment, self.run_id, tags, self._records, lambda run_id: is_over(self.store, run_id)
        )

    def _records(self, address: str) -> list[dict[str, Any]]:
        """Return the epochs of an artifact; none if it was made without training."""
        artifact = self.store.find(address)
        data = None if artifact is None else self.store.read_file(artifact, RECORDS)
        return [json.loads(line) for line in data.decode().splitlines()] if data else []

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

    def _listen(self, event: Event) -> None:
        if event["event"] in ("cached", "started"):
            # Made once is made, though found later; and found once may turn out damaged, and be made after all.
            self.steps[event["step"]] = self.steps.get(event["step"], True) and event["event"] == "cached"
        elif event["event"] == "epoch":
            self.trained.add(event["stage"])

    def finish(
        self,
        data: Artifact,
        subset: Artifact,
        models: Sequence[Model],
        validated: Sequence[Model] = (),
        lost: Mapping[int, str] | None = None,
    ) -> dict[str, Any]:
        """Write the report, log it, and return what `btm run --json` prints.

        `models` are evaluated on the test split, `validated` are the same on the validation split, if there is one;
        `lost` tells why there is no ingredient of a subset.
        """
        from btm_core.pages.report import render_html
        from btm_core.report import figures

        results, labels = self._results(models), self._labels(data)
        report = self._report(data, subset, results, labels)
        report["lost_ingredients"] = [{"subset": index, "reason": reason} for index, reason in (lost or {}).items()]
        report["elsewhere"] = comparisons_elsewhere(
            self.store, self.run_id, self.experiment.name, results[-1].split_hash, [models[0].artifact.address]
        )
        report["validation"] = [result.row() for result in self._results(validated)]
        images = figures(report)
        with tempfile.TemporaryDirectory(prefix="btm-") as name:
            folder = Path(name)
            (folder / "report.json").write_text(json.dumps(report, indent=1))
            pictures = lowest_thumbnails(self.store, data, self.experiment, report, results[-1], labels)
            page = render_html(report, *pictures)
            (folder / "report.html").write_text(page, encoding="utf-8")
            for key, png in images.items():
                (folder / f"{key}.png").write_bytes(png)
            urls = {
                path.name: self.store.put(path, "runs", self.run_id, path.name) for path in sorted(folder.iterdir())
            }
            summary = self._summary(report, urls["report.html"], models)
            self.store.write(json.dumps(summary, indent=1).encode(), "runs", self.run_id, "run.json")
            self._track(report, models, sorted(folder.iterdir()), urls["report.html"])
        return summary

    def _labels(self, data: Artifact) -> "dict[str, NDArray[Any]]":
        """Return the labels of each split."""
        from btm_core.tensor_files import load_arrays

        with tempfile.TemporaryDirectory(prefix="btm-") as name:
            return load_arrays(self.store.fetch(data, LABELS, Path(name)))

    def _report(
        self, data: Artifact, subset: Artifact, results: "list[ModelResult]", labels: "dict[str, NDArray[Any]]"
    ) -> dict[str, Any]:
        import numpy as np

        from btm_core.report import build_report

        description = describe(self.store, data)
        drawn = self.store.read_json(subset, SUBSET)
        counts = np.asarray(description["train_counts"])
        found = profile(counts, group_counts(description))
        carved = "; groups by the counts before the validation split was carved"
        run = {
            "run_id": self.run_id,
            "name": self.experiment.name,
            "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "published": self.experiment.published,
            "data": {
                "content": description["content"],
                "profile": f"{found}{carved if 'uncarved_counts' in description else ''}",
                "long_tail": asdict(found),
                "group_counts": group_counts(description),
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
            experiment=with_absolute_paths(self.experiment).model_dump(mode="json"),
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
            answers = answers_of(self.store, model.evaluation)
            results.append(
                ModelResult(
                    name=model.name,
                    stage=model.stage,
                    artifact=model.artifact.address,
                    evaluation=model.evaluation.address,
                    recall=RecallReport(**values),
                    predictions=answers["predicted"],
                    split=split,
                    split_hash=split_hash,
                    confidences=answers.get("confidence"),
                )
            )
        return results

    def _in_order(self) -> list[tuple[str, bool]]:
        """Return the steps by stage of the algorithm, then by name: they end in any order."""
        return sorted(self.steps.items(), key=lambda item: (STAGES.index(item[0].partition("/")[0]), item[0]))

    def _lineage(self) -> list[dict[str, Any]]:
        rows = []
        for address, cached in self._in_order():
            manifest = self.store.manifest(address)
            parents = sorted(manifest.parents.values()) if manifest else []
            state = "lost" if manifest is None else "found" if cached else "made"
            rows.append({"address": address, "parents": parents, "state": state})
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
            "final_model": self.store.file_url(models[-1].artifact, WEIGHTS),
            "artifacts": artifacts,
            "models": report["models"],
            "validation": report["validation"],
            "lost_ingredients": report["lost_ingredients"],
            "cached_stages": sorted(stages - set(made)),
            "made_stages": made,
            "trained_stages": [stage for stage in STAGES if stage in self.trained],
            "tracking": {
                "uri": without_credentials(self.tracker.uri),
                "run_id": self.tracker.run_id,
                "page": self.tracker.page,
            },
            "seconds": round(time.monotonic() - self.started, 2),
        }

    def _track(self, report: dict[str, Any], models: Sequence[Model], files: list[Path], url: str) -> None:
        source = without_credentials(self.experiment.data.root or self.experiment.data.format)
        splits = report["data"]["splits"]
        sets = [("training", splits["train"]["hash"], report["data"]["long_tail"], source)]
        for split, context in (("validation", "validation"), ("test", "evaluation")):
            if split in splits:
                sets.append((context, splits[split]["hash"], {"images": splits[split]["images"]}, source))
        self.tracker.log_datasets(self.experiment.name, sets)
        validated = {row["artifact"]: row for row in report["validation"]}
        for model, row in zip(models, report["models"], strict=True):
            metrics = split_metrics("test", row)
            if (on_validation := validated.get(model.artifact.address)) is not None:
                metrics |= split_metrics("validation", on_validation)
            self.tracker.log_model_result(model.artifact.address, metrics)
        classes = report["classes"]
        columns = {"class": classes["name"], **{key: classes[key] for key in ("train_images", "test_images")}}
        self.tracker.log_table({**columns, **classes["recall"]}, PER_CLASS)
        tags = {"btm.report": url, "btm.data": report["data"]["content"]}
        links = {"Report": url, **self.links, "Store": self.store.locate("runs", self.run_id)}
        note = run_note(report["models"], links, report["data"]["profile"])
        self.tracker.log_result(metrics, tags, files, note)  # the last model is the final one

"""Registering and promoting on real MLflow servers with passwords and proxied artifacts: on disk, and on S3."""

import base64
import io
import json
import shutil
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer, postgres
from PIL import Image
from promotable import CLASSES, finish_run
from serving_processes import serve_model

from btm_core.config import PromotionRules, load_experiment
from btm_core.errors import ConfigError, TrackingError
from btm_core.storage import Store
from tasks.finished import FinishedRun
from tasks.named_models import evaluated
from tasks.registry.promotion import Decision, decide, roll_back
from tasks.registry.recording import record
from tasks.registry.registering import register
from tasks.registry.registry import Registry
from tasks.settings import RuntimeSettings, runtime_settings
from tasks.tracking import Tracker

OLD = [0.9, 0.9, 0.9, 0.8, 0.8, 0.6, 0.4, 0.3]
BETTER = [0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6]
"""Recalls of the classes."""


@pytest.fixture(scope="module", params=["sqlite", "postgres-s3" if shutil.which("postgres") else "sqlite-s3"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    kind, _, on_s3 = request.param.partition("-")
    keys: dict[str, str] = {}
    if on_s3:
        s3 = request.getfixturevalue("s3")
        keys = {**s3, "MLFLOW_S3_ENDPOINT_URL": s3["AWS_ENDPOINT_URL_S3"], "AWS_DEFAULT_REGION": s3["AWS_REGION"]}
    with postgres() if kind == "postgres" else nullcontext() as database:
        server = MlflowServer(folder, database, f"s3://btm/{folder.name}" if on_s3 else None, **keys)
        server.start()
        yield server
        server.kill()


class Place:
    """A store with forged runs, and a registered model of its own on the server."""

    def __init__(self, settings: RuntimeSettings, folder: Path, model: str):
        self.settings, self.folder = settings, folder
        self.store = Store(settings.store_url)
        self.registry = Registry(settings, model)
        self.made = 0

    def run(self, recall: list[float], **more: Any) -> FinishedRun:
        self.made += 1
        run_id = finish_run(self.store, self.folder, f"run-{self.made}", recall, **{"weights": self.made, **more})
        return FinishedRun.find(self.store, run_id)

    def promote(self, run: FinishedRun, force: str | None = None, again: Any = None, **rules: Any) -> Decision:
        candidate = register(self.registry, run)
        return decide(
            self.registry,
            candidate,
            run.evidence,
            PromotionRules(**rules),
            by="ann",
            again=again or (lambda champion, evidence: None),
            force=force,
        )

    def aliases(self) -> dict[str, str]:
        found = self.registry.client.get_registered_model(self.registry.name).aliases
        return {name: str(version) for name, version in found.items()}


@pytest.fixture
def place(server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Place(runtime_settings({"home": tmp_path}), tmp_path, f"trees-{tmp_path.name}")


def test_the_life_of_a_model(place: Place) -> None:
    """Promoted, refused, forced, rolled back; with everything written down."""
    first, second, third = place.run(OLD), place.run(BETTER), place.run(OLD)
    with pytest.raises(ConfigError, match=r"--set promotion\.lowest_recall"):
        place.promote(first)
    assert place.aliases() == {"challenger": "1"}
    assert place.promote(first, lowest_recall=0.3).decision == "promoted"
    assert place.aliases() == {"champion": "1"}
    again = place.promote(first, lowest_recall=0.9)
    assert (again.decision, again.reasons) == ("promoted", ["version 1 is the champion already"])

    promoted = record(place.registry, place.store, place.promote(second))
    assert (promoted["decision"], promoted["version"], promoted["model"]) == ("promoted", "2", place.registry.name)
    assert place.aliases() == {"champion": "2", "previous": "1"}

    refused = record(place.registry, place.store, place.promote(third))
    assert (refused["decision"], refused["version"]) == ("refused", "3")
    assert any("H-mean changes by -" in reason for reason in refused["reasons"])
    assert refused["champion_before"]["version"] == "2"
    assert [row["difference"] for row in refused["comparison"]["per_class"]] == pytest.approx(
        [a - b for a, b in zip(OLD, BETTER, strict=True)]
    )
    assert place.aliases() == {"champion": "2", "previous": "1", "challenger": "3"}
    tags = place.registry.client.get_model_version(place.registry.name, "3").tags
    assert tags["btm.decision"] == "refused" and tags["btm.decision.by"] == "ann"
    assert tags["btm.decision.against"] == "version 2" and tags["btm.decision.reasons"] == "\n".join(refused["reasons"])
    assert json.loads(tags["btm.decision.rules"])["class_loss"] == 0.2
    page = Path(refused["report"].removeprefix("file://")).read_text()
    assert "refused" in page and "tree-7" in page and page.count("<svg") == 4
    logged = place.registry.version("3").mlflow_run
    files = [file.path for file in place.registry.client.list_artifacts(logged, "promotion")]
    assert len(files) == 3 and any(file.endswith(".html") for file in files)

    forced = record(place.registry, place.store, place.promote(third, force="the field team asked for it"))
    assert forced["decision"] == "forced" and forced["force"] == "the field team asked for it"
    assert forced["reasons"][0] == "forced: the field team asked for it" and len(forced["reasons"]) > 1
    assert place.aliases() == {"champion": "3", "previous": "2"}

    back = record(place.registry, place.store, roll_back(place.registry, "bob", "it was worse"))
    assert (back["decision"], back["version"]) == ("rolled_back", "2")
    assert [(row["a"], row["b"]) for row in back["comparison"]["per_class"]] == list(zip(OLD, BETTER, strict=True))
    assert place.aliases() == {"champion": "2", "previous": "3"}
    rows = place.registry.summary()["versions"]
    assert [(row["version"], row["alias"]) for row in rows] == [("1", None), ("2", "champion"), ("3", "previous")]
    assert rows[1]["decision"] == "rolled_back" and rows[1]["reasons"] == ["rolled back from version 3: it was worse"]


def test_a_first_decision_holds_the_recall_of_every_class(place: Place) -> None:
    first = record(place.registry, place.store, place.promote(place.run(OLD), lowest_recall=0.1))
    assert (first["decision"], first["changed"], first["comparison"]) == ("promoted", True, None)
    rows = first["candidate"]["per_class"]
    assert [row["recall"] for row in rows] == pytest.approx(OLD)
    assert [(row["name"], row["group"]) for row in rows[::7]] == [("tree-0", "many"), ("tree-7", "few")]
    page = Path(first["report"].removeprefix("file://"))
    assert '<tr id="class-7"><th scope="row" class="name">tree-7</th>' in page.read_text()
    assert "| tree-7 | 3 | 50 | 30.0 |" in page.with_suffix(".md").read_text()
    assert json.loads(page.with_suffix(".json").read_text())["candidate"] == first["candidate"]

    other = place.promote(place.run(BETTER, split="1"), force="new images")
    assert other.champion is not None and record(place.registry, place.store, other)["comparison"] is None
    assert other.evidence is not None and other.evidence[0].split_hash == "1".ljust(64, "0")


def test_a_rollback_wants_no_evidence(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    for run in (place.run(OLD), place.run(BETTER)):
        place.promote(run, lowest_recall=0.1)
    place.registry.evidence = unreadable  # type: ignore[method-assign]
    back = record(place.registry, place.store, roll_back(place.registry, "ann"))
    assert (back["version"], back["comparison"], back["candidate"]) == ("1", None, None)
    assert place.aliases() == {"champion": "1", "previous": "2"}
    assert "written down without the recall of the classes: the artifacts are away" in caplog.text


def unreadable(version: Any) -> Any:
    raise TrackingError("the artifacts are away")


def test_promoted_again_it_keeps_its_record(place: Place) -> None:
    run = place.run(OLD)
    record(place.registry, place.store, place.promote(run, force="for a start"))
    again = record(place.registry, place.store, place.promote(run, lowest_recall=0.1))
    assert (again["decision"], again["report"]) == ("promoted", None)
    assert again["reasons"] == ["version 1 is the champion already"]
    [row] = place.registry.summary()["versions"]
    assert (row["decision"], row["reasons"]) == ("forced", ["forced: for a start"])


def test_rollbacks_at_once_and_after_a_deletion(place: Place) -> None:
    assert place.promote(place.run(OLD), lowest_recall=0.1).decision == "promoted"
    with pytest.raises(ConfigError, match="has no previous champion to go back to: only one was ever promoted"):
        roll_back(place.registry, "ann")
    assert place.promote(place.run(BETTER), lowest_recall=0.1).decision == "promoted"
    slow = Registry(place.settings, place.registry.name)
    move = slow.move

    def late(*arguments: Any) -> bool:
        roll_back(place.registry, "bob")
        return move(*arguments)

    slow.move = late  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="it is version 1 now, and nothing was rolled back"):
        roll_back(slow, "ann")
    assert place.aliases() == {"champion": "1", "previous": "2"}
    place.registry.client.delete_model_version(place.registry.name, "1")
    refused = place.promote(place.run(OLD))  # judged against the previous one, not as the first of all
    assert refused.decision == "refused" and refused.champion is not None and refused.champion.number == "2"
    back = roll_back(place.registry, "ann")
    assert (back.candidate.number, back.reasons) == ("2", ["rolled back from a version that was deleted"])
    assert place.aliases()["champion"] == "2"


def test_the_previous_champion_of_a_deleted_one_is_not_judged_against_itself(place: Place) -> None:
    first, second = place.run(OLD), place.run(BETTER)
    assert place.promote(first, lowest_recall=0.1).decision == "promoted"
    assert place.promote(second).decision == "promoted"
    place.registry.client.delete_model_version(place.registry.name, "2")
    with pytest.raises(ConfigError, match="no other to judge it against; make it the champion again: btm promote --ro"):
        place.promote(first, lowest_recall=0.1)
    assert place.aliases() == {"previous": "1"}  # and no challenger
    forced = place.promote(first, force="at once")
    assert (forced.decision, forced.champion) == ("forced", None)
    assert place.aliases() == {"champion": "1"}


def test_a_store_that_fails_after_the_move_loses_no_record(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    decision = place.promote(place.run(OLD), lowest_recall=0.1)
    shutil.rmtree(place.folder / "store" / "runs")
    (place.folder / "store" / "runs").write_text("a file where a folder has to be")
    document = record(place.registry, place.store, decision)
    assert document["decision"] == "promoted"
    assert "the store did not take the decision" in caplog.text
    tags = place.registry.client.get_model_version(place.registry.name, "1").tags
    assert tags["btm.decision"] == "promoted"


@pytest.mark.parametrize(
    ("rule", "recall", "rules"),
    [
        ("h_mean_gain", OLD, {}),
        ("accuracy_loss", [0.7, 0.7, 0.7, 0.8, 0.8, 0.7, 0.6, 0.5], {}),
        ("class_loss", [0.6, *BETTER[1:]], {"accuracy_loss": None}),
        ("worst_loss", [*BETTER[:7], 0.26], {"h_mean_gain": -1}),
        ("lowest_recall", BETTER, {"lowest_recall": 0.7}),
        ("new_zero_recall_classes", [*BETTER[:7], 0.0], {"h_mean_gain": -1, "worst_loss": None, "class_loss": None}),
    ],
)
def test_each_rule_refuses(place: Place, rule: str, recall: list[float], rules: dict[str, Any]) -> None:
    assert place.promote(place.run(OLD), lowest_recall=0.1).decision == "promoted"
    refused = place.promote(place.run(recall), **rules)
    assert refused.decision == "refused"
    assert refused.verdict is not None
    assert [check.rule for check in refused.verdict.checks if not check.passed] == [rule]
    assert place.aliases() == {"champion": "1", "challenger": "2"}


def test_of_many_promotions_at_once_one_wins(place: Place) -> None:
    assert place.promote(place.run(OLD), lowest_recall=0.1).decision == "promoted"
    runs = [place.run(BETTER) for _ in range(4)]
    for run in runs:
        register(place.registry, run)
    start = threading.Barrier(len(runs))

    def promote(run: FinishedRun) -> str:
        registry = Registry(place.settings, place.registry.name)
        candidate = register(registry, run)
        start.wait()
        return decide(registry, candidate, run.evidence, PromotionRules(), by="ann", again=lambda c, e: None).decision

    with ThreadPoolExecutor(len(runs)) as threads:
        decisions = list(threads.map(promote, runs))
    assert sorted(decisions) == ["promoted", "refused", "refused", "refused"]
    winner = str(2 + decisions.index("promoted"))
    assert place.aliases()["champion"] == winner and place.aliases()["previous"] == "1"


def test_the_same_model_is_registered_once(place: Place) -> None:
    first = register(place.registry, place.run(OLD, weights=7))
    again = register(place.registry, place.run(OLD, weights=7))
    assert (first.number, again.number) == ("1", "1")
    assert register(place.registry, place.run(OLD, weights=8)).number == "2"


def test_a_registered_version_says_what_it_is_and_predicts(place: Place) -> None:
    import mlflow.pyfunc
    import pandas as pd

    run = place.run(BETTER)
    version = register(place.registry, run)
    found = place.registry.client.get_model_version(place.registry.name, version.number)
    assert found.tags["btm.run_id"] == run.run_id and found.tags["btm.address"] == run.model.address
    assert found.tags["test/h_mean"] == f"{run.final['h_mean']:.4f}"
    assert "## Limitations" in found.description
    mlflow.set_tracking_uri(place.registry.uri)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{place.registry.name}@challenger")
    finally:
        mlflow.set_tracking_uri(None)
    [first] = model.predict(pd.DataFrame({"image": [picture()]}))
    assert len(first["probabilities"]) == CLASSES
    evidence = place.registry.evidence(version)
    assert evidence is not None and evidence.report.recall.tolist() == pytest.approx(BETTER)


def test_a_tracked_run_is_registered_and_served(server: MlflowServer, place: Place, tmp_path: Path) -> None:
    figure = tmp_path / "final.png"
    figure.write_bytes(b"a figure")
    with Tracker(place.settings, load_experiment("digits-lt"), "run-1") as tracker:
        tracker.log_result({"test/h_mean": 0.5}, {}, [figure], "a note")
    run = place.run(BETTER, tracked=tracker.run_id)
    version = register(place.registry, run)
    assert version.mlflow_run == tracker.run_id
    client, wherever = place.registry.client, tmp_path / "fetched"
    wherever.mkdir()
    fetched = client.download_artifacts(tracker.run_id, "figures/final.png", str(wherever))
    assert Path(fetched).read_bytes() == b"a figure"
    image = picture()
    with serve_model(f"models:/{place.registry.name}@challenger", tmp_path, **server.environment) as url:
        body = json.dumps({"dataframe_records": [{"image": image}]}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            [served] = json.load(answer)["predictions"]
    assert served["label"] in {f"tree-{c}" for c in range(CLASSES)}
    assert sum(served["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert (server.folder / "artifacts").exists() == (not server.on_s3)


def picture() -> str:
    """Return a grey image as it is sent to a served model."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 100).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_champion_without_evidence_or_of_other_images_is_not_beaten_silently(place: Place, tmp_path: Path) -> None:
    client, name = place.registry.client, place.registry.name
    place.registry.create()
    mlflow_run = place.registry.run_of(place.run(OLD))
    logged = client.create_logged_model(client.get_run(mlflow_run).info.experiment_id, name="foreign")
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    client.log_model_artifact(logged.model_id, str(tmp_path / "MLmodel"))
    client.finalize_logged_model(logged.model_id, "READY")
    client.create_model_version(name, logged.artifact_location, run_id=mlflow_run, model_id=logged.model_id)
    client.set_registered_model_alias(name, "champion", "1")
    refused = place.promote(place.run(BETTER))
    assert refused.decision == "refused" and "holds no evidence" in refused.reasons[0]
    assert place.promote(place.run(OLD), force="it has none").decision == "forced"

    moved = place.run(BETTER, split="1")
    refused = place.promote(moved)
    assert refused.decision == "refused" and "other images" in refused.reasons[0]
    asked: list[str] = []

    def again(champion: Any, evidence: Any) -> Any:
        asked.append(champion.number)
        return place.run(OLD, split="1").evidence

    assert place.promote(moved, again=again).decision == "promoted"
    assert asked == ["3"]
    other = place.run(BETTER, classes=tuple(f"bush-{c}" for c in range(CLASSES)))
    assert "other classes" in place.promote(other).reasons[0]


def test_versions_are_compared(place: Place) -> None:
    register(place.registry, place.run(OLD))
    register(place.registry, place.run(BETTER))
    name = place.registry.name
    first, second = evaluated([f"models:/{name}/1", f"{name}@challenger"], place.settings, None)
    assert (first.kind, first.name) == ("version", f"{name}, version 1")
    assert (first.evidence.report.lowest_recall, second.evidence.report.lowest_recall) == (0.3, 0.6)


def test_a_registry_that_cannot_be_used_is_one_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    registry = place.registry
    calls: list[Callable[[], Any]] = [registry.standing, registry.exists, lambda: registry.version("1")]
    for call in calls:
        with pytest.raises(
            TrackingError,
            match=r"MLflow's registry at .* cannot be used: .*; check MLFLOW_TRACKING_URI, and MLFLOW_TRACK",
        ):
            call()

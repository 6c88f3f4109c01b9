"""`btm plan`: it says what a run would do, does none of it, and writes nothing."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import FAST, Btm, small_experiment, write_digits, write_lists

from btm_core.config import ExperimentConfig, load_experiment
from btm_core.data import scan
from btm_core.data.catalog import Catalog, Split
from btm_core.errors import ConfigError
from btm_core.storage import Manifest, Store
from flows.plan import walk as walking
from flows.plan.commands import plan as plan_command
from flows.plan.document import plan_document
from flows.plan.printing import print_plan
from flows.plan.timing import place_of
from flows.plan.walk import walk
from flows.preflight import preflight
from flows.typed import Typed
from tasks.past import Past, epochs_done
from tasks.settings import RuntimeSettings

Listing = dict[str, tuple[int, int]]
FAST_VALUES = [flag.removeprefix("--set=") for flag in FAST]
TRAINED = ["pretrain", "finetune", "post_train"]


def nothing_measured(stage: str) -> list[Any]:
    return []


def listing(folder: Path) -> Listing:
    """Return size and time of modification of everything below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def finished(undisturbed: tuple[Path, dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in it, of this module's own."""
    folder = tmp_path_factory.mktemp("plan") / "finished"
    shutil.copytree(undisturbed[0], folder)
    return folder


Plan = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def plan(finished: Path) -> Plan:
    """Return the plan of the run that has finished, with values on top; it changes no file, and starts no process."""
    import torch  # noqa: F401  # whose import may start what it likes

    def refuse(self: object, *arguments: object, **options: object) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    known: dict[tuple[str, ...], dict[str, Any]] = {}

    def call(*overrides: str) -> dict[str, Any]:
        if overrides not in known:
            config = load_experiment("digits-lt", [*FAST_VALUES, *overrides])
            settings = RuntimeSettings(home=finished / ".btm")
            before = listing(finished)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(subprocess.Popen, "__init__", refuse)
                catalog = preflight(config, settings, writing=False)
                past = Past(Store(settings.store_url))
                base = load_experiment("digits-lt")
                found = walk(config, settings, catalog)
                known[overrides] = plan_document(config, settings, catalog, found, past.of, base)
            assert listing(finished) == before
        return known[overrides]

    return call


def to_do(document: dict[str, Any]) -> dict[str, int]:
    return {row["stage"]: row["to_do"] for row in document["stages"] if row["to_do"]}


def test_after_a_run_nothing_would_be_trained(btm: Btm, finished: Path) -> None:
    before = listing(finished)
    done = btm("plan", "digits-lt", *FAST, cwd=finished, PREFECT_API_URL="http://127.0.0.1:9/api")  # nobody is asked
    assert done.returncode == 0, done.stderr
    assert "Nothing would be trained, and nothing made" in done.stdout
    [offered] = [line for line in done.stdout.splitlines() if "btm run digits-lt" in line]
    assert f"--set {FAST_VALUES[0]} " in offered and offered.endswith("--set seed=1")  # not the same again
    assert listing(finished) == before


def test_what_a_report_offers_to_run_again_is_all_there_from_any_folder(
    btm: Btm, databases: Path, tmp_path: Path
) -> None:
    """Though the root was relative, a list was below it, and the other one and the names were in the working folder."""
    work, other = tmp_path / "work", tmp_path / "other"
    write_lists(write_digits(work / "images"))
    shutil.copytree(databases, work / ".btm")
    (work / "images" / "test.txt").rename(work / "test.txt")
    (work / "names.txt").write_text("nought\none\ntwo\n")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(small_experiment(format="digits", test_per_class=6)))
    paths = {"root": "images", "train": "train.txt", "test": "test.txt", "class_names": "names.txt"}
    options = [f"--set=data.{key}={value}" for key, value in {"format": "list", **paths}.items()]
    options += ["--set=sampling.num_subsets=1"]
    done = btm("run", str(tmp_path / "own.yaml"), "--json", *options, cwd=work)
    assert done.returncode == 0, done.stderr
    page = Path(json.loads(done.stdout)["report"].removeprefix("file://")).read_text(encoding="utf-8")
    link = re.search(r'download="own.yaml" href="data:text/yaml;base64,([^"]+)"', page)
    assert link is not None
    other.mkdir()
    (other / "own.yaml").write_bytes(base64.b64decode(link[1]))
    (other / "test.txt").write_text("elsewhere.png 0\n")  # another list of the same name
    planned = btm("plan", "own.yaml", "--json", f"--store={work / '.btm' / 'store'}", cwd=other)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["to_make"] == []


def test_only_what_follows_a_change_is_to_be_made(btm: Btm, finished: Path, plan: Plan) -> None:
    done = btm("plan", "digits-lt", "--json", *FAST, "--set=post_train.epochs=20", cwd=finished)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    document["storage"]["free_bytes"] = plan("post_train.epochs=20")["storage"]["free_bytes"]
    assert document == plan("post_train.epochs=20")
    assert to_do(document) == {"post_train": 2, "evaluate": 2}
    [row] = [row for row in document["stages"] if row["stage"] == "post_train"]
    assert (row["epochs"], row["batch_size"], row["optimizer_steps"]) == (20, 64, 2 * 20 * 7)
    assert row["estimate"]["sources"][0].startswith("post_train/mislas-on-") and row["seconds"] > 0
    assert document["time"]["cpu_hours"] > 0 and document["time"]["gpu_hours"] == 0
    assert document["storage"]["models"] == 2


def test_a_new_seed_makes_everything_but_the_data(plan: Plan) -> None:
    document = plan("seed=1")
    assert document["to_train"] == TRAINED
    expected = {"pretrain": 1, "sample": 3, "finetune": 3, "merge": 1, "post_train": 2, "evaluate": 7}
    assert to_do(document) == expected


def test_a_validation_split_is_evaluated_too(plan: Plan) -> None:
    document = plan("data.validation_per_class=1")
    assert to_do(document)["evaluate"] == 2 * 7
    assert document["data"]["splits"]["validation"] == 10 and document["data"]["carved"]


def test_what_it_foretells_is_what_was_done(finished: Path, plan: Plan) -> None:
    """Epochs and images of a new run, and what it stores, are those of the finished one."""
    document = plan("seed=1")
    rows = {row["stage"]: row for row in document["stages"]}
    store = finished / ".btm" / "store" / "artifacts"
    for stage in TRAINED:
        records = [path.read_text().splitlines() for path in (store / stage).rglob("records.jsonl")]
        epochs = [json.loads(line) for lines in records for line in lines]
        assert rows[stage]["images"] == sum(epoch["images"] for epoch in epochs)
        assert rows[stage]["epochs"] == epochs[0]["epochs"]
    sizes = [path.stat().st_size for path in store.rglob("model.safetensors")]
    assert document["storage"]["models"] == len(sizes)
    assert document["storage"]["models_bytes"] == pytest.approx(sum(sizes), rel=0.05)


def test_the_screen_tells_all_of_it(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan("seed=1", "finetune.batch_size=128"), Typed("digits-lt"))
    shown = capsys.readouterr().out
    for part in (
        "329 train, 600 test images in 10 classes",
        "small_cnn, float32, 8 px: 56,554 parameters",
        "4 classes have fewer images than that: 9 (2)",
        " by finetune/subset-",
        "with another batch_size",
        "free",
        "Warning: sampling.shots: 4 of 10 classes",
        "Warning: finetune.batch_size: a batch is to hold 128 images, a balanced subset holds 78",
        "Warning: finetune.batch_size: it is 128 in place of 32",
        "\nHint: data.validation: there is no validation split",
        "What to type next:",
    ):
        assert part in shown, part


def test_what_was_never_measured_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_experiment("digits-lt")
    settings = RuntimeSettings(home=tmp_path / "home")
    catalog = preflight(config, settings, writing=False)
    found = walk(config, settings, catalog)
    document = plan_document(config, settings, catalog, found, Past(Store(settings.store_url)).of, config)
    assert document["time"]["wall_seconds"] is document["time"]["cpu_hours"] is None
    print_plan(document, Typed("digits-lt"))
    shown = capsys.readouterr().out
    assert "not known: nothing like pretrain, finetune, post_train was measured" in shown and "--probe" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_probe_measures_what_was_never_run(btm: Btm, tmp_path: Path) -> None:
    done = btm("plan", "digits-lt", "--probe", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "btm: measuring a few steps of pretrain, finetune, post_train, evaluate\n"
    document = json.loads(done.stdout)
    for row in document["stages"]:
        if row["stage"] in (*TRAINED, "evaluate"):
            assert row["estimate"]["sources"][0].startswith("a probe of ") and row["seconds"] > 0
    assert document["time"]["wall_seconds"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["digits-lt", "--set=pretrain.epoch=3"], "did you mean 'pretrain.epochs'?"),
        (["digits-lt", "--device=cuda"], "no NVIDIA GPU is visible"),
        (["digits-lt", "--store=own.yaml/store"], "own.yaml is a file, not a folder; choose another with --store"),
        (["own.yaml"], "unknown.txt"),
    ],
)
def test_bad_input_is_one_clear_error(btm: Btm, tmp_path: Path, arguments: list[str], part: str) -> None:
    (tmp_path / "own.yaml").write_text("data: {format: list, root: ., train: unknown.txt, test: unknown.txt}\n")
    done = btm("plan", *arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert part in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


def test_a_cluster_s_time_goes_by_its_workers(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_experiment("digits-lt", [*FAST_VALUES, "seed=1"])
    catalog = scan(config.data)
    times = {}
    for workers in (None, 1, 3):
        settings = RuntimeSettings(home=finished / ".btm", engine="ray", workers=workers)
        past = Past(Store(settings.store_url))
        document = plan_document(config, settings, catalog, walk(config, settings, catalog), past.of, None)
        times[workers] = document["time"]["wall_seconds"]
        print_plan(document, Typed("digits-lt"))
        assert document["time"]["cpu_hours"] > 0  # where it was measured
    assert times[None] is None and times[1] > times[3] > 0
    assert "it goes by the number of workers (--workers)" in capsys.readouterr().out


def test_fine_tunes_in_packs_are_not_timed_as_those_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_experiment("digits-lt", [*FAST_VALUES, "seed=1"])
    catalog = scan(config.data)
    past = Past(Store(str(finished / ".btm/store")))
    differs = {}
    for pack in (1, 2):
        settings = RuntimeSettings(home=finished / ".btm", pack=pack)
        document = plan_document(config, settings, catalog, walk(config, settings, catalog), past.of, None)
        differs[pack] = {row["stage"]: row["estimate"]["differs"] for row in document["stages"] if row["trains"]}
        print_plan(document, Typed("digits-lt"))
    assert differs[1] == {stage: [] for stage in TRAINED} and differs[2] == {**differs[1], "finetune": ["pack"]}
    assert capsys.readouterr().out.count("with another pack") == 1


def test_while_it_trains_two_states_are_kept_of_network_and_momentum(tmp_path: Path) -> None:
    config = load_experiment("digits-lt")
    settings = RuntimeSettings(home=tmp_path, workers=1)
    catalog = scan(config.data)
    found = walk(config, settings, catalog)
    storage = plan_document(config, settings, catalog, found, nothing_measured, None)["storage"]
    assert storage["while_training_bytes"] == pytest.approx(2 * 2 * storage["checkpoint_bytes"], rel=0.01)


def test_a_probe_is_of_this_machine(tmp_path: Path) -> None:
    config = load_experiment("digits-lt")
    settings = RuntimeSettings(home=tmp_path, engine="ray")
    catalog = scan(config.data)
    found = walk(config, settings, catalog)
    with pytest.raises(ConfigError, match="engine ray runs on others; leave it out"):
        plan_document(config, settings, catalog, found, nothing_measured, None, probing=True)


def test_training_under_way_goes_on(finished: Path, tmp_path: Path) -> None:
    """A state as a worker saves it, at the address of a stage whose artifact is gone."""
    from safetensors.numpy import save_file

    store = tmp_path / "store"
    shutil.copytree(finished / ".btm" / "store", store)
    [folder] = (store / "artifacts" / "pretrain").iterdir()
    shutil.rmtree(folder)
    state = store / "partial" / "pretrain" / folder.name / "state-0.safetensors"
    state.parent.mkdir(parents=True)
    save_file({"epoch": np.array(4)}, state, {"records": json.dumps([{}] * 4)})
    config = load_experiment("digits-lt", FAST_VALUES)
    settings = RuntimeSettings(home=tmp_path, store=str(store))
    catalog = scan(config.data)
    found = walk(config, settings, catalog)
    assert [(one.state, one.epochs_done) for one in found.steps("pretrain")] == [("to do", 4)]
    # Who follows is not looked for: its address is made of a digest that is not there yet.
    assert all(one.state == "to do" for stage in ("finetune", "merge", "evaluate") for one in found.steps(stage))
    document = plan_document(config, settings, catalog, found, Past(Store(str(store))).of, None)
    [row] = [row for row in document["stages"] if row["stage"] == "pretrain"]
    assert (row["images"], row["optimizer_steps"]) == (2 * 329, 2 * 6)
    state.write_bytes(b"half")
    assert epochs_done(Store(str(store)), f"pretrain/{folder.name}") == 0


def files_experiment(tmp_path: Path) -> tuple[ExperimentConfig, Catalog]:
    root = write_digits(tmp_path / "images")
    write_lists(root)
    raw = small_experiment(format="list", root=str(root), train="train.txt", test="test.txt")
    config = ExperimentConfig.model_validate(raw)
    return config, scan(config.data)


def test_images_that_are_too_many_to_read_are_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, catalog = files_experiment(tmp_path)
    settings = RuntimeSettings(home=tmp_path / ".btm")
    few = walk(config, settings, catalog)
    assert not few.unread and {one.state for one in few.planned} == {"to do"}
    assert not (tmp_path / ".btm").exists()
    monkeypatch.setattr(walking, "READ_BYTES", 100)
    monkeypatch.setattr("btm_core.data.files.ImageReader", None)  # nothing is read
    assert {one.state for one in walk(config, settings, catalog).planned} == {"to do"}  # the store is empty
    folder = tmp_path / ".btm" / "store" / "artifacts" / "data" / "list-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
    many = walk(config, settings, catalog)
    assert len(many.unread) == len(catalog.train) + len(catalog.test)
    assert {one.state for one in many.planned} == {"unknown"}
    document = plan_document(config, settings, catalog, many, nothing_measured, None)
    assert not document["known"] and document["unread"]["files"] == len(many.unread)


def test_thousands_of_classes(tmp_path: Path) -> None:
    """As many labels and classes as iNaturalist 2018, 200 subsets."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(8142), rng.integers(0, 8142, 437_513 - 8142)])
    splits = [Split(name, y, pixels=np.zeros((len(y), 1, 1, 1), np.uint8)) for name, y in
              (("train", labels), ("test", np.arange(8142)))]  # fmt: skip
    catalog = Catalog(tuple(map(str, range(8142))), *splits)
    config = load_experiment("digits-lt", ["sampling.num_subsets=200", "model.backbone=small_cnn"])
    settings = RuntimeSettings(home=tmp_path, workers=4)
    document = plan_document(config, settings, catalog, walk(config, settings, catalog), nothing_measured, None)
    rows = {row["stage"]: row for row in document["stages"]}
    assert rows["finetune"]["to_do"] == 200 and rows["evaluate"]["to_do"] == 204
    assert "sampling.num_subsets" in [warning["key"] for warning in document["warnings"]]
    assert len(document["subsets"]["worst"]) <= 5


def test_where_steps_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_experiment("cifar100-lt")
    labels = np.repeat(np.arange(100), 12)
    split = Split("train", labels, pixels=np.zeros((1200, 3, 1, 1), np.uint8))
    catalog = Catalog(tuple(map(str, range(100))), split, split)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    settings = RuntimeSettings(home=tmp_path)
    found = walk(config, settings, catalog)
    [first, *_] = finetunes = found.steps("finetune")
    assert place_of(first.step, settings).text == "2 x GPU" and place_of(first.step, settings).workers == 2
    assert len({one.pack for one in finetunes}) == 2  # of five: small networks are packed on GPUs
    elsewhere = place_of(first.step, settings.model_copy(update={"engine": "workpool"}))
    assert (elsewhere.text, elsewhere.device, elsewhere.workers) == ("work pool btm", None, None)


def test_manifests_tell_how_long_a_step_took(finished: Path) -> None:
    manifests = [Manifest.model_validate_json(path.read_text()) for path in finished.rglob("manifest.json")]
    assert manifests and all(manifest.host["seconds"] >= 0 for manifest in manifests)
    past = Past(Store(str(finished / ".btm" / "store")))
    [evaluation] = past.of("evaluate")
    assert evaluation.images == 7 * 600 and evaluation.conditions.backbone == "small_cnn"
    [data] = past.of("data")
    assert data.images == 929


def test_a_file_is_what_its_overrides_are_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It sets batch size and learning rate, so that neither is a default: as `btm init` writes them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))  # else the plan's own would stay in the environment
    digits = load_experiment("digits-lt")
    raw = digits.model_dump(mode="json", include={"data", "model", "pretrain", "finetune"})
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(raw))
    keys = []
    for overrides in ([], ["pretrain.batch_size=16"], ["pretrain.batch_size=16", "pretrain.lr=0.025"]):
        plan_command("my.yaml", overrides, store=str(tmp_path / "store"), as_json=True)
        keys.append([one["key"] for one in json.loads(capsys.readouterr().out)["warnings"]])
    assert ["pretrain.batch_size" in found for found in keys] == [False, True, False]

"""Steps by themselves, without Prefect: addresses, refusals, resuming."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_experiment, write_digits, write_lists
from family import worker_process

from btm_core.config import ExperimentConfig, load_experiment
from btm_core.errors import DataError
from btm_core.storage import Artifact, Store
from tasks.data import PrepareData, group_counts, prepare_data
from tasks.events import listening, publish
from tasks.execution import DeadlineError, WorkerDiedError, execute
from tasks.finetune import Finetune
from tasks.merge import Merge
from tasks.pretrain import Pretrain
from tasks.sample import SampleSubset
from tasks.settings import RuntimeSettings
from tasks.step import Step, perform


@pytest.fixture
def own(tmp_path: Path) -> ExperimentConfig:
    root = write_digits(tmp_path / "images")
    write_lists(root)
    return ExperimentConfig.model_validate(
        small_experiment(format="list", root=str(root), train="train.txt", test="test.txt")
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def silent(event: dict[str, Any]) -> None:
    pass


def data_step(experiment: ExperimentConfig, cache: Path | None = None) -> PrepareData:
    return prepare_data("own", experiment.data, cache)


def test_data_have_the_same_address_wherever_they_lie(own: ExperimentConfig, store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    assert own.data.root is not None
    Path(own.data.root).rename(elsewhere)
    moved = own.model_copy(update={"data": own.data.model_copy(update={"root": str(elsewhere)})})
    address = data_step(moved).address
    elsewhere.rename(own.data.root)
    assert data_step(own).address == address
    artifact = perform(data_step(own), store, silent)
    assert artifact.address == address


def test_a_carved_split_is_another_data_set_than_the_same_split_given(tmp_path: Path) -> None:
    """Their groups differ: many, medium and few go by the counts before carving."""
    from btm_core.data import scan

    root = write_digits(tmp_path / "images", train=(20, 8, 6))
    write_lists(root)
    named = {"format": "list", "root": str(root), "train": "train.txt", "test": "test.txt"}
    whole = ExperimentConfig.model_validate(small_experiment(**named))
    carving = ExperimentConfig.model_validate(small_experiment(**named, validation_per_class=2))
    catalog = scan(carving.data)
    assert catalog.validation is not None
    for split in (catalog.train, catalog.validation):
        assert split.paths is not None
        lines = [f"{path} {label}\n" for path, label in zip(split.paths, split.labels.tolist(), strict=True)]
        (root / f"{split.name}-carved.txt").write_text("".join(lines))
    files = {"train": "train-carved.txt", "validation": "validation-carved.txt"}
    given = ExperimentConfig.model_validate(small_experiment(**(named | files)))
    store = Store(str(tmp_path / "store"))
    made = [perform(data_step(experiment), store, silent) for experiment in (whole, carving, given)]
    assert len({artifact.address for artifact in made}) == 3
    found = [store.read_json(artifact, "dataset.json") for artifact in made]
    assert found[1]["splits"] == found[2]["splits"]
    assert [description["train_counts"] for description in found] == [[20, 8, 6], [18, 6, 4], [18, 6, 4]]
    assert [group_counts(description) for description in found] == [[20, 8, 6], [20, 8, 6], [18, 6, 4]]
    assert [("uncarved_counts" in description) for description in found] == [False, True, False]


def test_a_changed_image_or_label_is_another_data_set(own: ExperimentConfig, tmp_path: Path) -> None:
    assert own.data.root is not None
    first = data_step(own, tmp_path / "cache").address
    image = sorted(Path(own.data.root, "train/digit-0").iterdir())[0]
    other = sorted(Path(own.data.root, "train/digit-1").iterdir())[0]
    data = image.read_bytes()
    image.write_bytes(other.read_bytes())
    assert data_step(own, tmp_path / "cache").address != first
    image.write_bytes(data)
    assert data_step(own, tmp_path / "cache").address == first
    lines = Path(own.data.root, "train.txt").read_text().splitlines()
    Path(own.data.root, "train.txt").write_text("\n".join([lines[0][:-1] + "1", *lines[1:]]) + "\n")
    assert data_step(own, tmp_path / "cache").address != first


def test_truncated_images_are_found_and_nothing_is_published(own: ExperimentConfig, store: Store) -> None:
    assert own.data.root is not None
    victim = sorted(Path(own.data.root, "train/digit-1").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:70])
    step = data_step(own)
    with pytest.raises(DataError, match="1 of 33 images") as error:
        perform(step, store, silent)
    assert victim.name in str(error.value)
    assert store.find(step.address) is None


def test_long_transfers_are_told_as_those_of_their_step(
    own: ExperimentConfig, settings: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.progress import telling_progress

    monkeypatch.setattr("btm_core.storage.folder.TELL_SECONDS", 0.0)
    step = data_step(own)
    heard: list[dict[str, Any]] = []
    lines: list[str] = []
    with listening(heard.append), telling_progress(lambda stage, text: lines.append(text), 0.0):
        execute([step], settings)
    transfers = [event for event in heard if event["event"] == "transfer"]
    assert {event["step"] for event in transfers} == {step.address}
    assert {event["verb"] for event in transfers} == {"sending"}
    assert any("sending pixels.safetensors: 0 of 0 MB" in line for line in lines)


def test_short_classes_can_be_refused(own: ExperimentConfig, store: Store) -> None:
    data = perform(data_step(own), store, silent)
    sampling = own.sampling.model_copy(update={"shots": 6, "when_short": "error"})
    [step, _] = SampleSubset.all(data, sampling, seed=0)
    with pytest.raises(
        DataError, match=r"(?s)1 classes have fewer images than sampling.shots = 6.*digit-2\): 5 images"
    ):
        perform(step, store, silent)
    lenient = step.model_copy(update={"when_short": "take-all"})
    drawn = store.read_json(perform(lenient, store, silent), "subset.json")
    assert drawn["short_classes"] == [2]
    assert len(drawn["positions"]) == 6 + 6 + 5


def chain(experiment: ExperimentConfig, data: Artifact) -> dict[str, Step]:
    """Return the steps of a run over made-up parents: only their addresses matter."""
    shared = {"data": data, "view": experiment.data.input, "model": experiment.model, "seed": experiment.seed}
    parent = Artifact(stage="pretrain", address="pretrain/x-0", digest="1" * 64)
    [subset, *_] = SampleSubset.all(data, experiment.sampling, experiment.seed)
    drawn = Artifact(stage="sample", address="sample/x-0", digest="2" * 64)
    return {
        "pretrain": Pretrain(config=experiment.pretrain, **shared),
        "sample": subset,
        "finetune": Finetune(base=parent, subset=drawn, index=0, config=experiment.finetune, **shared),
        "merge": Merge(ingredients=(parent, drawn)),
    }


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("finetune.lr=0.5", {"finetune"}),
        ("pretrain.epochs=3", {"pretrain"}),
        ("sampling.shots=3", {"sample"}),
        ("sampling.num_subsets=30", set()),
        ("post_train.epochs=3", set()),
        ("data.input.crop_padding=2", {"pretrain", "finetune"}),
        ("seed=1", {"pretrain", "sample", "finetune"}),
        ("name=other", set()),
    ],
)
def test_addresses_change_with_what_determines_a_result(override: str, changed: set[str]) -> None:
    data = Artifact(stage="data", address="data/x-0", digest="0" * 64)
    before = {k: step.address for k, step in chain(load_experiment("digits-lt"), data).items()}
    after = {k: step.address for k, step in chain(load_experiment("digits-lt", [override]), data).items()}
    assert {stage for stage in before if before[stage] != after[stage]} == changed


def test_addresses_do_not_change_from_release_to_release() -> None:
    """An address is a promise: if this fails, users' artifacts would all be made again. Let it be on purpose."""
    data = Artifact(stage="data", address="data/x-0", digest="0" * 64)
    experiment = ExperimentConfig.model_validate(small_experiment(format="digits"))
    addresses = {stage: step.address for stage, step in chain(experiment, data).items()}
    assert addresses == ADDRESSES


ADDRESSES = {
    "pretrain": "pretrain/small_cnn-cross-entropy-206198b11c665a7b",
    "sample": "sample/subset-00-b7885982448b6a47",
    "finetune": "finetune/subset-00-02db4828a8e7e59f",
    "merge": "merge/uniform-of-2-bdad7f550c606b6c",
}


def test_a_step_survives_the_way_to_the_worker() -> None:
    from tasks.engines.orders import steps_from_json, steps_to_json

    data = Artifact(stage="data", address="data/x-0", digest="0" * 64)
    steps = [step for step in chain(load_experiment("digits-lt"), data).values() if step.in_worker]
    received = steps_from_json(json.loads(json.dumps(steps_to_json(steps))))
    assert [step.address for step in received] == [step.address for step in steps]


@pytest.fixture
def settings(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RuntimeSettings:
    return RuntimeSettings(home=tmp_path / ".btm", store=store.url, checkpoint_seconds=0, retries=0)


def test_a_worker_goes_on_from_its_last_checkpoint(
    own: ExperimentConfig, store: Store, settings: RuntimeSettings
) -> None:
    data = perform(data_step(own), store, silent)
    config = own.pretrain.model_copy(update={"epochs": 6})
    step = Pretrain(data=data, view=own.data.input, model=own.model, seed=0, config=config)
    news: list[dict[str, Any]] = []

    def kill_after_three(event: dict[str, Any]) -> None:
        news.append(event)
        if event["event"] == "epoch" and event["epoch"] == 3:
            worker_process().kill()

    with listening(kill_after_three), pytest.raises(WorkerDiedError, match="SIGKILL"):
        execute([step], settings)
    assert store.find(step.address) is None
    news.clear()
    with listening(news.append):
        [artifact] = execute([step], settings)
    assert news[1]["event"] == "resumed"
    assert news[1]["epoch"] >= 2
    undisturbed = Store(store.url + "-2")
    copy = perform(data_step(own), undisturbed, silent)
    assert copy == data
    [expected] = execute([step], settings.model_copy(update={"store": undisturbed.url}))
    assert artifact == expected
    records = (Path(store.locate("artifacts", step.address).removeprefix("file://")) / "records.jsonl").read_text()
    assert [f'"epoch": {n},' in line for n, line in enumerate(records.splitlines(), 1)] == [True] * 6


def test_a_tasks_module_of_the_user_is_left_alone(
    own: ExperimentConfig, store: Store, settings: RuntimeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working folder is not on a worker's path: a tasks.py there is somebody else's."""
    (tmp_path / "tasks.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    data = perform(data_step(own), store, silent)
    step = Pretrain(data=data, view=own.data.input, model=own.model, seed=0, config=own.pretrain)
    [artifact] = execute([step], settings)
    assert artifact.address == step.address


def test_a_corrupt_checkpoint_is_skipped(own: ExperimentConfig, store: Store, settings: RuntimeSettings) -> None:
    data = perform(data_step(own), store, silent)
    step = Pretrain(data=data, view=own.data.input, model=own.model, seed=0, config=own.pretrain)
    store.write(b"nonsense", "partial", step.address, "state-0.safetensors")
    [artifact] = execute([step], settings)
    assert store.find(step.address) == artifact
    assert store.read("partial", step.address, "state-0.safetensors") is None


def test_a_deadline_ends_a_worker(own: ExperimentConfig, store: Store, settings: RuntimeSettings) -> None:
    data = perform(data_step(own), store, silent)
    step = Pretrain(data=data, view=own.data.input, model=own.model, seed=0, config=own.pretrain)
    with pytest.raises(DeadlineError, match="passed its deadline"):
        execute([step], settings.model_copy(update={"deadline_hours": 0.5 / 3600}))


def test_all_threads_share_one_queue_of_slots(settings: RuntimeSettings) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from tasks.engines.pool import pool_of

    with ThreadPoolExecutor(16) as pool:
        queues = {id(queue) for queue in pool.map(lambda _: pool_of(settings), range(64))}
    assert len(queues) == 1
    assert pool_of(settings).qsize() == len(settings.slots())


def test_a_checkpoint_of_other_classes_is_refused(own: ExperimentConfig, store: Store, tmp_path: Path) -> None:
    from btm_core.checkpoints import check_classes
    from btm_core.errors import CheckpointError

    data = perform(data_step(own), store, silent)
    step = Pretrain(data=data, view=own.data.input, model=own.model, seed=0, config=own.pretrain)
    weights = store.fetch(perform(step, store, silent), "model.safetensors", tmp_path)
    check_classes(weights, ["digit-0", "digit-1", "digit-2"])
    with pytest.raises(
        CheckpointError,
        match=r"(?s)was trained on other classes, or in another order: 3 there, 3 here.*0: digit-0, here digit-1",
    ):
        check_classes(weights, ["digit-1", "digit-0", "digit-2"])


@pytest.mark.slow
def test_a_compiled_stage_1_is_the_same_but_for_rounding(own: ExperimentConfig, store: Store, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    from btm_core.tensor_files import load_tensors

    if shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    data = perform(data_step(own), store, silent)
    step = Pretrain(data=data, view=own.data.input, model=own.model, seed=0, config=own.pretrain)
    plain = load_tensors(store.fetch(perform(step, store, silent), "model.safetensors", tmp_path))
    other = Store(str(tmp_path / "other"))
    assert perform(data_step(own), other, silent) == data
    counters.clear()
    compiled = load_tensors(other.fetch(perform(step, other, silent, compiled=True), "model.safetensors", tmp_path))
    assert counters["stats"]["unique_graphs"] > 0  # it was
    assert compiled.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-2, atol=1e-3)


def test_news_reach_those_who_listen() -> None:
    heard: list[dict[str, Any]] = []
    with listening(heard.append):
        publish({"event": "epoch", "step": "a"})
    publish({"event": "epoch", "step": "b"})
    assert [event["step"] for event in heard] == ["a"]

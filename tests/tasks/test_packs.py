"""Several steps of one order, done at once: fine-tunes in packs, evaluations over the same images."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import clean_environment, small_experiment, write_digits, write_lists
from family import worker_process

from btm_core.checkpoints import load_checkpoint, save_tensors
from btm_core.config import ExperimentConfig
from btm_core.errors import CheckpointError
from btm_core.storage import Artifact, Store
from btm_core.tensor_files import load_tensors
from tasks.data import prepare_data
from tasks.evaluate import RECALL, evaluation_step
from tasks.events import listening
from tasks.execution import execute
from tasks.finetune import Finetune, pack_size
from tasks.pretrain import Pretrain
from tasks.sample import SampleSubset
from tasks.settings import RuntimeSettings
from tasks.step import perform, perform_together
from tasks.workspace import Workspace


def silent(*event: Any) -> None:
    pass


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    root = write_digits(tmp_path / "images")
    write_lists(root)
    raw = small_experiment(format="list", root=str(root), train="train.txt", test="test.txt")
    return ExperimentConfig.model_validate({**raw, "sampling": {"num_subsets": 3, "shots": 5}})


@pytest.fixture
def settings(tmp_path: Path) -> RuntimeSettings:
    return RuntimeSettings(home=tmp_path / ".btm", store=str(tmp_path / "store"), workers=1, checkpoint_seconds=0)


def fine_tunes(experiment: ExperimentConfig, store: Store, **config: Any) -> list[Finetune]:
    """Make what they need, and return the steps."""
    data = perform(prepare_data("own", experiment.data, None), store, silent)
    shared: dict[str, Any] = {
        **{"data": data, "view": experiment.data.input, "model": experiment.model, "seed": 0},
        "root": experiment.data.root,
    }
    base = perform(Pretrain(config=experiment.pretrain, **shared), store, silent)
    subsets = [perform(step, store, silent) for step in SampleSubset.all(data, experiment.sampling, 0)]
    own = experiment.finetune.model_copy(update=config)
    return [Finetune(base=base, subset=s, index=i, config=own, **shared) for i, s in enumerate(subsets)]


def weights(store: Store, artifact: Artifact, folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(store.fetch(artifact, "model.safetensors", folder))


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-4, msg=lambda text, name=name: name + text)


def test_a_pack_makes_the_artifacts_that_its_members_would(
    experiment: ExperimentConfig, settings: RuntimeSettings, tmp_path: Path
) -> None:
    store, other = Store(settings.store_url), Store(str(tmp_path / "other"))
    alone = [perform(step, other, silent) for step in fine_tunes(experiment, other)]
    news: list[dict[str, Any]] = []
    with listening(news.append):
        packed = execute(fine_tunes(experiment, store), settings)
    assert [artifact.address for artifact in packed] == [artifact.address for artifact in alone]
    for found, expected in zip(packed, alone, strict=True):
        assert_near(weights(store, found, tmp_path), weights(other, expected, tmp_path))
        manifests = store.manifest(found.address), other.manifest(expected.address)
        assert manifests[0] is not None
        assert manifests[1] is not None
        assert manifests[0].config == manifests[1].config
    epochs = [(event["epoch"], event["step"]) for event in news if event["event"] == "epoch"]
    assert epochs == [(epoch, step.address) for epoch in (1, 2) for step in packed]  # they took turns
    assert all(0 <= event["waited"] <= event["seconds"] for event in news if event["event"] == "epoch")


def test_a_killed_pack_goes_on_and_so_does_each_alone(
    experiment: ExperimentConfig, settings: RuntimeSettings, tmp_path: Path
) -> None:
    store, other = Store(settings.store_url), Store(str(tmp_path / "other"))
    alone = [perform(step, other, silent) for step in fine_tunes(experiment, other, epochs=5)]
    steps = fine_tunes(experiment, store, epochs=5)
    news: list[dict[str, Any]] = []
    killed: list[bool] = []

    def kill_at_three(event: dict[str, Any]) -> None:
        news.append(event)
        if event["event"] == "epoch" and event["epoch"] == 3 and event["step"] == steps[0].address:
            if not killed:
                worker_process().kill()
            killed.append(True)

    with listening(kill_at_three):
        packed = execute(steps, settings)
    assert {event["step"] for event in news if event["event"] == "resumed"} == {step.address for step in steps}
    assert all(event["epoch"] >= 2 for event in news if event["event"] == "resumed")
    for found, expected in zip(packed, alone, strict=True):
        assert_near(weights(store, found, tmp_path), weights(other, expected, tmp_path))


PROGRAM = """
import json, sys
from pathlib import Path
from flows.environment import prepare_prefect
prepare_prefect(Path(sys.argv[1]))
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from flows.work import join
from tasks.engines.orders import steps_from_json
from tasks.settings import RuntimeSettings

@flow(task_runner=ThreadPoolTaskRunner(max_workers=4))
def several(documents, settings):
    return join(steps_from_json(documents), settings, quorum=2, pack=3)

settings = RuntimeSettings(home=sys.argv[1], store=sys.argv[2], workers=1)
made, lost = several(json.loads(Path(sys.argv[3]).read_text()), settings)
print(json.dumps([{index: artifact.address for index, artifact in made.items()}, lost]))
"""


def with_nan(store: Store, artifact: Artifact, tmp_path: Path) -> Artifact:
    """Publish a copy of a classifier one of whose weights is no number."""
    folder = tmp_path / "nan"
    folder.mkdir()
    path = store.fetch(artifact, "model.safetensors", tmp_path)
    tensors, (_, metadata) = dict(load_tensors(path)), load_checkpoint(path)
    tensors["head.bias"] = torch.full_like(tensors["head.bias"], float("nan"))
    save_tensors(tensors, folder / "model.safetensors", {"btm": metadata.model_dump_json()})
    facts: dict[str, Any] = {"config": {}, "parents": {}, "versions": {}, "host": {}, "logs": ()}
    return store.publish("pretrain/nan-0123456789abcdef", folder, **facts)


def test_what_one_member_is_refused_for_costs_the_others_nothing(
    experiment: ExperimentConfig, settings: RuntimeSettings, tmp_path: Path
) -> None:
    store = Store(settings.store_url)
    steps = fine_tunes(experiment, store)
    steps[1] = steps[1].model_copy(update={"base": with_nan(store, steps[1].base, tmp_path)})
    with pytest.raises(CheckpointError, match=r"finetune subset-00 and 2 with it: .*NaN or infinite values"):
        execute(steps, settings)
    orders = tmp_path / "steps.json"
    orders.write_text(json.dumps([step.model_dump(mode="json") for step in steps]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(settings.home), settings.store_url, str(orders)],
        env={**clean_environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made, lost = json.loads(done.stdout.splitlines()[-1])
    assert made == {"0": steps[0].address, "2": steps[2].address}
    assert lost.keys() == {"1"}
    assert "NaN or infinite values" in lost["1"]


def test_what_is_done_of_an_order_is_published_before_the_next_is_begun(
    experiment: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory holds one network at a time; the third is refused."""
    monkeypatch.setattr(Workspace, "members_that_fit", lambda self, trainer: 1)
    store = Store(str(tmp_path / "store"))
    steps = fine_tunes(experiment, store)

    def refuse_the_third(address: str, event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and address == steps[2].address:
            raise CheckpointError("refused")

    with pytest.raises(CheckpointError, match="refused"):
        list(perform_together(steps, store, refuse_the_third))
    assert [store.find(step.address) is not None for step in steps] == [True, True, False]


@pytest.mark.parametrize(
    ("values", "size", "expected"),
    [
        ({"device": "cpu"}, 32, 1),
        ({"device": "cpu", "pack": 4}, 32, 4),
        ({"gpus": 1}, 32, 10),
        ({"gpus": 4}, 32, 3),
        ({"gpus": 1, "workers": 4}, 32, 3),
        ({"gpus": 1}, 64, 10),
        ({"gpus": 1}, 65, 1),
        ({"gpus": 1, "pack": 2}, 224, 2),
        ({"gpus": 1, "pack": 100}, 32, 10),
        ({"gpus": 1, "engine": "ray"}, 32, 1),
    ],
)
def test_small_images_are_packed_on_gpus(
    experiment: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], size: int, expected: int
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    own = experiment.model_copy(
        update={
            "sampling": experiment.sampling.model_copy(update={"num_subsets": 10}),
            "data": experiment.data.model_copy(
                update={"input": experiment.data.input.model_copy(update={"size": size})}
            ),
        }
    )
    assert pack_size(own, RuntimeSettings(**values)) == expected


def test_a_pack_is_bounded_and_a_hundred_subsets_are_several(experiment: ExperimentConfig) -> None:
    many = experiment.model_copy(update={"sampling": experiment.sampling.model_copy(update={"num_subsets": 100})})
    assert pack_size(many, RuntimeSettings(gpus=1)) == 16


def test_models_evaluated_at_once_get_what_each_gets_alone(
    experiment: ExperimentConfig, tmp_path: Path, decoded: list[str]
) -> None:
    view = experiment.data.input.model_copy(update={"augmentation": "random-resized-crop"})
    own = experiment.model_copy(update={"data": experiment.data.model_copy(update={"input": view})})
    store, other = Store(str(tmp_path / "store")), Store(str(tmp_path / "other"))
    tunes = fine_tunes(own, store)
    models = [tunes[0].base, perform(tunes[0], store, silent)]
    for step in fine_tunes(own, other)[:1]:
        assert perform(step, other, silent).address == models[1].address
    decoded.clear()
    steps = [evaluation_step(own, tunes[0].data, model) for model in models]
    together = list(perform_together(steps, store, silent))
    assert len(decoded) == 18  # test images, of three classes
    alone = [perform(step, other, silent) for step in steps]
    assert [artifact.digest for artifact in together] == [artifact.digest for artifact in alone]
    assert len(decoded) == 18 + 2 * 18
    assert store.read_json(together[0], RECALL) != store.read_json(together[1], RECALL)


def test_precision_is_part_of_what_an_evaluation_is(experiment: ExperimentConfig, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    step = fine_tunes(experiment, store)[0]
    lower = experiment.evaluation.model_copy(update={"precision": "bfloat16"})
    steps = [
        evaluation_step(own, step.data, step.base)
        for own in (experiment, experiment.model_copy(update={"evaluation": lower}))
    ]
    exact, rounded = perform_together(steps, store, silent)
    assert exact.address != rounded.address
    assert exact.digest != rounded.digest  # each in its own precision, though of one order
    found = [store.read_json(artifact, RECALL) for artifact in (exact, rounded)]
    assert found[0]["split_hash"] == found[1]["split_hash"]

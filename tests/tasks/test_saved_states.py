"""Inner checkpoints: what a stage goes on from after it was cut off, and what it leaves alone because it is damaged."""

import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_experiment, write_digits, write_lists

from btm_core.config import ExperimentConfig
from btm_core.errors import CheckpointError
from btm_core.storage import Artifact, Store
from btm_core.tensor_files import load_tensors, read_header
from tasks.data import prepare_data
from tasks.past import epochs_done
from tasks.pretrain import Pretrain
from tasks.saved_states import STATES, read_state, write_state
from tasks.settings import RuntimeSettings
from tasks.step import perform, perform_together
from tasks.workspace import Pace, Workspace

EPOCHS = 6


class CutOffError(Exception):
    """Stands for whatever ends a stage."""


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    root = write_digits(tmp_path / "images")
    write_lists(root)
    raw = small_experiment(format="list", root=str(root), train="train.txt", test="test.txt")
    return ExperimentConfig.model_validate({**raw, "pretrain": {"epochs": EPOCHS, "batch_size": 16, "lr": 0.05}})


class Stage:
    """A stage 1 on a store, which saves its state after every epoch."""

    def __init__(self, experiment: ExperimentConfig, url: str):
        self.store = Store(url)
        data = perform(prepare_data("own", experiment.data, None), self.store, lambda event: None)
        shared: dict[str, Any] = {"data": data, "view": experiment.data.input, "model": experiment.model, "seed": 0}
        self.step = Pretrain(config=experiment.pretrain, root=experiment.data.root, **shared)
        self.resumed: list[int] = []

    def run(self, until: int = EPOCHS, checkpoint_seconds: float = 0) -> Artifact:
        """Train; in epoch `until`, if that is not the last, it is cut off before its state is saved."""

        def emit(event: dict[str, Any]) -> None:
            if event["event"] == "resumed":
                self.resumed.append(event["epoch"])
            if event["event"] == "epoch" and event["epoch"] == until < EPOCHS:
                raise CutOffError

        return perform(self.step, self.store, emit, checkpoint_seconds=checkpoint_seconds)

    def cut_off(self, at: int, checkpoint_seconds: float = 0) -> None:
        with pytest.raises(CutOffError):
            self.run(at, checkpoint_seconds)

    def states(self) -> dict[int, Path]:
        """Return where its saved states lie on the disk, by the epoch after which they were saved."""
        folder = Path(self.store.url.removeprefix("file://"), "partial", self.step.address)
        return {int(load_tensors(path)["epoch"]): path for path in folder.glob("*.safetensors")}


@pytest.fixture
def expected(experiment: ExperimentConfig, tmp_path: Path) -> Artifact:
    """What comes of it if nothing happens."""
    return Stage(experiment, str(tmp_path / "undisturbed")).run()


@pytest.fixture
def stage(experiment: ExperimentConfig, tmp_path: Path) -> Stage:
    return Stage(experiment, str(tmp_path / "store"))


def flip_a_bit(path: Path, at: Callable[[bytes], int]) -> None:
    """Flip the lowest bit of the byte whose place `at` tells."""
    data = bytearray(path.read_bytes())
    data[at(bytes(data))] ^= 1
    path.write_bytes(data)


def of_a_tensor(data: bytes) -> int:
    return len(data) - 1001  # of a float32, the byte with most of its exponent


def of_a_record(data: bytes) -> int:
    return data.index(b'\\"loss\\"') + len(b'\\"loss\\": 0.1')


@pytest.mark.parametrize("at", [of_a_tensor, of_a_record])
def test_a_flipped_bit_costs_one_epoch_and_changes_nothing(
    at: Callable[[bytes], int], stage: Stage, expected: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    stage.cut_off(5)
    states = stage.states()
    assert states.keys() == {3, 4}
    flip_a_bit(states[4], at)
    load_tensors(states[4])  # to safetensors it is a file like any other
    assert stage.run() == expected
    assert stage.resumed == [3]
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert states[4].name in warning
    assert stage.step.address in warning
    assert "is not what was written" in warning


def test_of_two_damaged_states_neither_is_used(
    stage: Stage, expected: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    stage.cut_off(5)
    states = stage.states()
    flip_a_bit(states[4], of_a_tensor)
    states[3].write_bytes(b"nonsense")
    assert stage.run() == expected
    assert stage.resumed == []
    warnings = [record.getMessage() for record in caplog.records]
    assert [path.name in text for path, text in zip((states[4], states[3]), warnings, strict=True)] == [True, True]


def test_the_state_that_was_used_stays_until_there_is_a_newer_one(stage: Stage, expected: Artifact) -> None:
    """It is not the next one that takes its place, but the one after."""
    stage.cut_off(5)
    states = stage.states()
    flip_a_bit(states[4], of_a_tensor)
    stage.cut_off(5)
    assert stage.states() == states  # 3 as it was, and 4 anew in its place
    assert epochs_done(stage.store, stage.step.address) == 4
    assert stage.run() == expected
    assert stage.resumed == [3, 4]


def test_unless_told_otherwise_a_death_costs_ten_seconds_and_an_epoch() -> None:
    by_hand = inspect.signature(perform_together).parameters["checkpoint_seconds"].default
    assert RuntimeSettings().checkpoint_seconds == Workspace.checkpoint_seconds == by_hand == 10


def test_states_are_saved_at_intervals_that_training_bears() -> None:
    pace = Pace(10, last=100)
    assert [pace.due(now) for now in (100, 109.9, 110, 130)] == [False, False, True, True]
    pace.saved(110, 110.5)
    assert [pace.due(now) for now in (120, 120.5)] == [False, True]
    pace.saved(120.5, 140.5)  # it took 20 s
    assert [pace.due(now) for now in (150.5, 320, 320.5)] == [False, False, True]
    always = Pace(0, last=100, took=20)
    assert always.due(100)


@pytest.mark.parametrize(("seconds", "saved"), [(0, {3, 4}), (1000, set())])
def test_the_interval_is_that_of_the_settings(stage: Stage, seconds: float, saved: set[int]) -> None:
    stage.cut_off(5, seconds)
    assert stage.states().keys() == saved


def test_no_state_outlives_its_stage(stage: Stage) -> None:
    stage.run()
    assert list(stage.store.walk("partial")) == []


def test_a_state_in_object_storage_is_one_too(experiment: ExperimentConfig, expected: Artifact) -> None:
    stage = Stage(experiment, "memory://saved-states")
    stage.cut_off(4)
    assert [fact.path.rpartition("/")[2] for fact in stage.store.walk("partial")] == list(STATES)
    assert epochs_done(stage.store, stage.step.address) == 3
    assert stage.run() == expected
    assert stage.resumed == [3]


def test_a_state_without_its_digest_is_not_believed(tmp_path: Path) -> None:
    """As those of older versions are."""
    from btm_core.checkpoints import save_tensors

    path = tmp_path / STATES[0]
    state = {"epoch": torch.tensor(3), "none": torch.zeros(0, 2), "half": torch.ones(3, dtype=torch.bfloat16)}
    write_state(state, [{"epoch": 1}], path)
    tensors, records = read_state(path)
    assert records == [{"epoch": 1}]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
    with path.open("rb") as file:
        metadata = read_header(file, "it").metadata
    save_tensors(state, path, {"records": metadata["records"]})
    with pytest.raises(CheckpointError, match=r"is not what was written: sha256 \w+, it says None"):
        read_state(path)
    save_tensors(state, path, {**metadata, "records": json.dumps([{"epoch": 2}])})
    with pytest.raises(CheckpointError, match="is not what was written"):
        read_state(path)

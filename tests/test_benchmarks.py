"""The programs that measure do what they say: tiny, for real, and never into the results."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import benchmarks.gpu
from benchmarks import growth, our_stage, rows, speed
from benchmarks.cifar_tree import write_tree
from benchmarks.gpu_data import prepare, unpack

ROOT = Path(__file__).parents[1]
SUBSETS, SHOTS, EPOCHS = 2, 3, 1
STEPS = SUBSETS * EPOCHS * 2  # 300 images a subset in batches of 256


@pytest.fixture(scope="module")
def tree(cifar100: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training images and two test images a class, as PNG files."""
    folder = tmp_path_factory.mktemp("tree")
    write_tree(cifar100, folder, train_per_class=SHOTS, test_per_class=2)
    return folder


@pytest.mark.slow
def test_the_reference_style_and_ours_do_the_same_work(tree: Path, tmp_path: Path) -> None:
    task = speed.Task(tree, tmp_path, SUBSETS, SHOTS, EPOCHS)
    theirs = {how: speed.reference(task, "float32", 0, how, 1, "--threads=1") for how in ("once", "none")}
    ours = speed.ours(task, "float32", 0)
    for run in (*theirs.values(), ours):
        assert (run["steps"], run["images"]) == (STEPS, SUBSETS * EPOCHS * 300)
        assert sum(run["seconds"].values()) == pytest.approx(2 * run["seconds"]["total"], rel=0.05)
    assert theirs["none"]["soup"] is None and theirs["none"]["seconds"].get("evaluation") is None
    # From a stage 1 of 39 %: both begin there, and a step of so small a rate leads neither far.
    assert theirs["once"]["soup"]["accuracy"] > 0.3
    assert ours["soup"]["accuracy"] == pytest.approx(theirs["once"]["soup"]["accuracy"], abs=0.08)
    assert ours["ingredients"] == pytest.approx(theirs["once"]["ingredients"], abs=0.08)

    rounds = [{"ours": ours, "each-epoch": theirs["once"], **theirs}]
    found = speed.rows_of(task, "float32", 1, rounds)
    assert {"name", "value", "unit", "target", "holds", "spread", "repetitions"} <= set.intersection(*map(set, found))
    assert len({row["name"] for row in found}) == len(found) == 3
    assert len(speed.rows_of(replace(task, epochs=30), "float32", 1, rounds)) == 4  # and the accuracies of the soups
    assert found[0]["value"] == pytest.approx(theirs["once"]["wall_seconds"] / ours["wall_seconds"], abs=0.01)


def gpu(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_the_gpu_program_goes_through_all_its_parts_and_keeps_nothing_of_a_trial(
    cifar100: Path, tree: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed.safetensors"
    prepare(packed, cifar100, train_per_class=SHOTS, test_per_class=2)
    unpack(packed, tmp_path / "unpacked")
    files = {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert len(files) == 503 and all((tmp_path / "unpacked" / name).read_bytes() == files[name] for name in files)

    results = ROOT / "benchmarks" / "results" / "gpu.json"
    before = results.read_bytes() if results.exists() else None
    done = gpu(f"--data={packed}", "--device=cpu", "--tiny", "--repetitions=1", "--evaluate=once", "--packs", "2", "1")
    assert done.returncode == 0, done.stderr
    machine, *found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert machine["device"] == "cpu" and machine["seed"] == 0 and machine["torch"] == torch.__version__.split("+")[0]
    [resumed] = [row for row in found if "gone on with" in row["name"]]
    found.remove(resumed)
    assert resumed["value"] == resumed["left_alone_twice"] == 0  # on a CPU, to the last bit
    assert len(found) == 6  # the stage in a pack and one by one, the reference style over it, the row, two of ResNet-50
    assert all(row["value"] > 0 and row["repetitions"] == 1 for row in found)
    assert found[0]["soup"]["accuracy"] == pytest.approx(found[1]["soup"]["accuracy"], abs=2)
    soups = found[2]["soups"]
    assert soups["ours"]["accuracy"] == pytest.approx(soups["reference"]["accuracy"], abs=8)
    assert (results.read_bytes() if results.exists() else None) == before


def test_the_distance_of_networks_is_that_of_their_farthest_weights() -> None:
    a = {"x": torch.tensor([1.0, -4.0]), "y": torch.tensor([[0.5]])}
    b = {"x": torch.tensor([1.0, -4.0]), "y": torch.tensor([[0.501]])}
    assert benchmarks.gpu.apart(a, a) == 0
    assert benchmarks.gpu.apart(b, a) == pytest.approx(250, rel=1e-3)  # 0.001 of 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_program_says_so_in_one_line() -> None:
    done = gpu("--data=nothing.safetensors")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "no NVIDIA GPU" in done.stderr
    assert gpu("--device=cpu").returncode == 2  # a CPU's figures never get into the results


def test_a_slope_is_the_steepest_power_between_neighbours() -> None:
    for power in (0.5, 1.0, 2.0):
        assert growth.slope({n: [n**power] for n in (100, 1000, 8142)}) == pytest.approx(power)
    # A fixed cost flattens the whole; what comes after it does not hide in it.
    assert growth.slope({1: [10.0], 10: [10.0], 100: [1000.0]}) == pytest.approx(2)
    assert growth.class_row("x", {n: [n**1.5] * 3 for n in (100, 1000)})["holds"] is False
    assert growth.class_row("x", {n: [math.log(n)] * 3 for n in (100, 1000)})["holds"] is True


def test_twice_the_subsets_may_take_a_tenth_more_than_twice_the_time() -> None:
    assert growth.subset_row({5: [1.0], 10: [2.0], 20: [4.3]})["holds"] is True
    assert growth.subset_row({5: [1.0], 10: [2.0], 20: [4.5]})["holds"] is False


def test_the_work_of_the_curves_is_done_and_drawn(tmp_path: Path) -> None:
    curves = growth.by_classes((10, 60), 1)
    assert len(curves) == 5 and all(set(times) == {10, 60} for times in curves.values())
    growth.draw({5: [1.0], 10: [2.0]}, curves).savefig(tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()


@pytest.mark.slow
def test_our_stage_of_digits_trains_every_subset(tmp_path: Path) -> None:
    quick = ["pretrain.epochs=2", "sampling.num_subsets=3", "finetune.epochs=2"]
    our_stage.prepare("digits-lt", quick, tmp_path)
    run = our_stage.run(tmp_path)
    # About 100 images a subset, in batches of 32: as many as the preset says, epoch by epoch.
    assert len(run["ingredients"]) == 3 and run["steps"] == 3 * 2 * math.ceil(run["images"] / 3 / 2 / 32)


def test_rows_replace_older_ones_of_their_name_and_leave_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    rows.keep([rows.at_least("a", [1.0, 3.0, 2.0], "x", 2)], path, {"cores": 1})
    rows.keep([rows.at_most("b", [1.0], "s", 2)], path, {"cores": 2})
    rows.keep([rows.at_least("a", [1.0], "x", 2)], path, {"cores": 3})
    a, b = json.loads(path.read_text())
    assert (a["name"], a["value"], a["holds"], a["on"]) == ("a", 1.0, False, {"cores": 3})
    assert (b["name"], b["spread"], b["holds"], b["on"]) == ("b", [1.0, 1.0], True, {"cores": 2})

"""`btm init`: what it writes can be run, it asks only who can answer, and it leaves nothing half."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import s3fs
from conftest import Btm, clean_environment, write_digits
from safetensors.numpy import save_file

from btm_core.config import load_experiment
from btm_core.data import scan

TEN = (40, 25, 20, 16, 12, 10, 8, 6, 5, 4)


def test_an_experiment_that_was_made_runs(btm: Btm, tmp_path: Path) -> None:
    """Real digits in folders without a test split: init, then run, as a user types it."""
    write_digits(tmp_path / "images", train=TEN, test=0)
    (tmp_path / "images/train").rename(tmp_path / "digits")
    done = btm("init", "digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Wrote my.yaml" in done.stdout and "run my.yaml" in done.stdout
    text = (tmp_path / "my.yaml").read_text()
    assert "Your smallest class (digit-9) has 3 images" in " ".join(text.replace("#", "").split())
    small = ["pretrain.epochs=3", "sampling.num_subsets=2", "finetune.epochs=2", "post_train.epochs=2"]
    run = btm("run", "my.yaml", "--json", *(f"--set={value}" for value in small), cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    models = json.loads(run.stdout)["models"]
    assert models[-1]["stage"] == "post_train" and models[-1]["accuracy"] > 0.1


def test_what_it_writes_is_what_was_asked_for(btm: Btm, tmp_path: Path) -> None:
    write_digits(tmp_path / "images")
    options = [
        "--data",
        "images",
        "-o",
        "a/x.yaml",
        "--goal",
        "try",
        "--backbone",
        "resnet20",
        "--size",
        "16",
        "--json",
    ]
    (tmp_path / "a").mkdir()
    done = btm("init", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["train_images"], document["test_images"], document["lists"]) == (33, 18, [])
    config = load_experiment(tmp_path / "a/x.yaml")
    assert (config.name, config.model.backbone, config.data.input.size) == ("x", "resnet20", 16)
    assert document["choices"]["pretrain.epochs"] == config.pretrain.epochs
    assert scan(config.data).train_counts.tolist() == [20, 8, 5]


def test_a_validation_split_that_is_there_is_taken(btm: Btm, tmp_path: Path) -> None:
    root = write_digits(tmp_path / "images", train=(60, 50, 40))
    shutil.copytree(root / "train", root / "val")
    for image in sorted((root / "train").rglob("*.png"))[::2]:
        image.unlink()
    for image in sorted((root / "train").rglob("*.png")):
        (root / "val" / image.relative_to(root / "train")).unlink()
    done = btm("init", "images", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = load_experiment(tmp_path / "my.yaml")
    assert (config.data.validation, config.data.validation_per_class) == ("val", None)
    assert scan(config.data).train_counts.min() >= 20


def test_nothing_is_overwritten_unless_forced(btm: Btm, tmp_path: Path) -> None:
    write_digits(tmp_path / "images", test=0)
    (tmp_path / "my-train.txt").write_text("mine")
    done = btm("init", "images", cwd=tmp_path)
    assert (
        done.returncode == 2
        and "my-train.txt is there already; choose another -o, or overwrite with --force" in done.stderr
    )
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".btm") == ["images", "my-train.txt"]
    assert btm("init", "images", "--force", cwd=tmp_path).returncode == 0
    before = (tmp_path / "my.yaml").read_text()
    done = btm("init", "images", cwd=tmp_path)
    assert (
        done.returncode == 2
        and "my.yaml is there already; choose another with -o, or overwrite it with --force" in done.stderr
    )
    shutil.rmtree(tmp_path / "images/train/digit-2")
    shutil.rmtree(tmp_path / "images/train/digit-1")
    done = btm("init", "images", "--force", cwd=tmp_path)
    assert done.returncode == 2 and "there are 1 classes, expected at least 2" in done.stderr
    assert (tmp_path / "my.yaml").read_text() == before


def test_what_cannot_be_used_leaves_all_as_it_was(tmp_path: Path) -> None:
    from btm_core.errors import ConfigError
    from btm_core.first_experiment import FirstExperiment

    output, old, new = (tmp_path / name for name in ("my.yaml", "my-train.txt", "my-test.txt"))
    output.write_text("mine")
    old.write_text("mine")
    with pytest.raises(ConfigError, match="data is missing"):
        FirstExperiment(output, "seed: 0\n", {old: "theirs", new: "theirs"}, "", {}, []).write(force=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"my.yaml": "mine", "my-train.txt": "mine"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no data are named, and there is nobody to ask: btm init DATA"),
        (["absent"], "absent does not exist; expected a folder"),
        (["images", "--goal", "fast"], "--goal 'fast': expected try, normal, best"),
        (["images", "--backbone", "vgg"], "--backbone 'vgg': expected one of small_cnn"),
        (["images", "-o", "my.txt"], "my.txt: an experiment is a .yaml file"),
        (["images", "-o", "absent/my.yaml"], "absent is no folder; make it first"),
    ],
)
def test_what_it_refuses(btm: Btm, tmp_path: Path, arguments: list[str], message: str) -> None:
    write_digits(tmp_path / "images")
    done = btm("init", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.yaml"))


def test_a_class_without_test_images_is_told(btm: Btm, tmp_path: Path) -> None:
    write_digits(tmp_path / "images")
    shutil.rmtree(tmp_path / "images/test/digit-1")
    done = btm("init", "images", cwd=tmp_path)
    assert done.returncode == 2 and "1 of 3 classes have no test image" in done.stderr and "digit-1" in done.stderr


def test_a_checkpoint_is_started_from(btm: Btm, tmp_path: Path) -> None:
    """Of the same classes it is stage 1; of others only its backbone is of use."""
    from btm_core.checkpoints import CheckpointMetadata, save_checkpoint
    from btm_core.models import build_model

    write_digits(tmp_path / "images")
    for names, key in ((("digit-0", "digit-1", "digit-2"), "checkpoint"), (("a", "b"), "initial")):
        metadata = CheckpointMetadata(
            backbone="resnet20",
            channels=1,
            size=12,
            mean=(0.2,),
            std=(0.3,),
            class_names=names,
            train_counts=(9,) * len(names),
            stage="pretrain",
        )
        save_checkpoint(build_model("resnet20", len(names), 1), tmp_path / "start.safetensors", metadata)
        done = btm("init", "images", "--start", "start.safetensors", "--force", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        choices = json.loads(done.stdout)["choices"]
        assert choices[f"pretrain.{key}"] == str(tmp_path / "start.safetensors")
        assert (choices["model.backbone"], choices["data.input.size"]) == ("resnet20", 12)


def test_a_checkpoint_is_started_from_wherever_it_lies(btm: Btm, tmp_path: Path, s3: dict[str, str]) -> None:
    """As a run takes it: the experiment names the URL, and can be planned."""
    from btm_core.checkpoints import CheckpointMetadata, save_checkpoint
    from btm_core.models import build_model

    write_digits(tmp_path / "images")
    names = ("digit-0", "digit-1", "digit-2")
    shown = {"channels": 1, "size": 12, "mean": (0.2,), "std": (0.3,)}
    metadata = CheckpointMetadata(
        backbone="small_cnn", class_names=names, train_counts=(9, 9, 9), stage="pretrain", **shown
    )
    save_checkpoint(build_model("small_cnn", 3, 1), tmp_path / "start.safetensors", metadata)
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "bare.safetensors")
    keys = {"key": s3["AWS_ACCESS_KEY_ID"], "secret": s3["AWS_SECRET_ACCESS_KEY"]}
    bucket = s3fs.S3FileSystem(**keys, endpoint_url=s3["AWS_ENDPOINT_URL_S3"], skip_instance_cache=True)
    for name in ("start.safetensors", "bare.safetensors"):
        bucket.put_file(str(tmp_path / name), f"s3://btm/init/{name}")

    def init(start: str) -> "subprocess.CompletedProcess[str]":
        return btm("init", "images", "--start", start, "--force", "--json", cwd=tmp_path, **s3)

    for url in ("s3://btm/init/start.safetensors", (tmp_path / "start.safetensors").as_uri()):
        done = init(url)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["choices"]["pretrain.checkpoint"] == url
        assert load_experiment(tmp_path / "my.yaml").pretrain.checkpoint == url
    planned = btm("plan", "my.yaml", "--json", cwd=tmp_path, **s3)
    assert planned.returncode == 0 and "pretrain" not in json.loads(planned.stdout)["to_train"], planned.stderr
    absent, bare = init("s3://btm/init/absent.safetensors"), init("s3://btm/init/bare.safetensors")
    assert absent.returncode == 2 and "checkpoint s3://btm/init/absent.safetensors does not exist" in absent.stderr
    assert bare.returncode == 2 and "s3://btm/init/bare.safetensors does not say what network it is" in bare.stderr
    assert "one that does of a copy here: btm import-checkpoint bare.safetensors" in bare.stderr


def test_it_asks_on_a_terminal_and_only_there(tmp_path: Path) -> None:
    write_digits(tmp_path / "images")
    ours, theirs = pty.openpty()
    os.write(ours, b"images\n\ntry\n")
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "init"],
        cwd=tmp_path,
        env=clean_environment(),
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert [done.stderr.count(words) for words in ("Where are the images?", "Start from", "What for?")] == [1, 1, 1]
    assert "Where" not in done.stdout
    assert load_experiment(tmp_path / "my.yaml").sampling.num_subsets == 5


def test_images_in_s3(btm: Btm, s3: dict[str, str], tmp_path: Path) -> None:
    import fsspec

    root = write_digits(tmp_path / "images", test=0)
    bucket = f"btm/{tmp_path.name}"
    fs = fsspec.filesystem(
        "s3",
        key=s3["AWS_ACCESS_KEY_ID"],
        secret=s3["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=s3["AWS_ENDPOINT_URL_S3"],
        skip_instance_cache=True,
    )
    fs.put(str(root / "train"), f"{bucket}/digits", recursive=True)
    done = btm("init", f"s3://{bucket}/digits", cwd=tmp_path, **s3)
    assert done.returncode == 0, done.stderr
    config = load_experiment(tmp_path / "my.yaml")
    assert config.data.root == f"s3://{bucket}/digits" and config.data.train == str(tmp_path / "my-train.txt")
    done = btm("data", "inspect", "my.yaml", "--json", cwd=tmp_path, **s3)
    assert json.loads(done.stdout)["images"]["readable"] == 33

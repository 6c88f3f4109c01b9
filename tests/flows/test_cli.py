"""The command line: what it prints, and one clear message with exit code 2 for whatever the user got wrong."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Btm, small_experiment, write_digits, write_lists

from btm_core.config import preset_text


def test_presets(btm: Btm, tmp_path: Path) -> None:
    rows = json.loads(btm("presets", "--json", cwd=tmp_path).stdout)
    assert {"cifar100-lt", "cifar100-lt-cpu", "digits-lt"} <= {row["name"] for row in rows}
    assert all(set(row) == {"name", "source", "hardware", "published", "command"} for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["cifar100-lt"]["published"]["h_mean"] == 36.3
    assert by_name["cifar100-lt"]["command"] == "btm run cifar100-lt"
    for name in ("places-lt", "places-lt-gpaco"):  # what they leave as it is would be random without a file
        assert by_name[name]["command"] == f"btm run {name} --set pretrain.initial=FILE"
    assert all(f"# Run: {row['command']}\n" in preset_text(row["name"]) for row in rows)
    listing = btm("presets", cwd=tmp_path).stdout
    assert all(row["name"] in listing for row in rows)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from flows.cli import app;"
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0, result.output;"
        "print([m for m in ('torch', 'prefect', 'mlflow', 'pandas', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_cached_run_never_imports_torch() -> None:
    script = (
        "import sys; import tasks.execution, tasks.engines.worker, tasks.run, tasks.data;"
        "print('torch' in sys.modules, 'prefect' in sys.modules, 'mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False False"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with images, lists, and my.yaml for them."""
    root = write_digits(tmp_path / "images")
    write_lists(root)
    experiment = small_experiment(format="list", root="images", train="train.txt", test="test.txt")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(experiment))
    return tmp_path


def refused(done: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    [message] = [line for line in done.stderr.splitlines() if line.startswith("btm: ")]
    for part in parts:
        assert part in done.stderr, message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("finetune.epoch=3", "did you mean 'finetune.epochs'?"),
        ("sampling.shots=0", "sampling.shots: input should be greater than or equal to 1, found 0"),
        ("model.backbone=vgg", "model.backbone"),
        ("data.root=absent", "absent does not exist"),
        ("data.train=absent.txt", "absent.txt does not exist"),
        ("pretrain.checkpoint=absent.safetensors", "checkpoint absent.safetensors does not exist"),
    ],
)
def test_bad_configuration(btm: Btm, own: Path, override: str, part: str) -> None:
    refused(btm("run", "my.yaml", "--set", override, cwd=own), part)
    assert not (own / ".btm" / "store" / "artifacts").exists()


def test_unknown_preset_and_bad_flag(btm: Btm, tmp_path: Path) -> None:
    refused(btm("run", "digits", cwd=tmp_path), "did you mean 'digits-lt'?")
    refused(btm("run", "digits-lt", "--engine", "warp", cwd=tmp_path), "engine", "'warp'")
    assert btm("run", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("options", [["places-lt"], ["places-lt-gpaco"], ["my.yaml", "--set=pretrain.train=head"]])
def test_no_part_is_left_random_for_good(btm: Btm, own: Path, options: list[str]) -> None:
    refused(btm("run", *options, cwd=own), "random without a file to start from", "pretrain.initial", "--backbone-only")
    assert not (own / ".btm/prefect").exists()


def test_bad_lists(btm: Btm, own: Path) -> None:
    file = own / "images" / "train.txt"
    good = file.read_text()
    file.write_text(good + "../../etc/passwd 0\n")
    refused(btm("run", "my.yaml", cwd=own), "train.txt, line 34", "'../../etc/passwd' leaves data.root")
    file.write_text(good + "train/digit-0/0000.png zero\n")
    refused(btm("run", "my.yaml", cwd=own), "train.txt, line 34: expected 'path label'")
    file.write_text(good + "train/digit-0/missing.png 0\n")
    refused(btm("run", "my.yaml", cwd=own), "1 of 52 listed images are missing", "train/digit-0/missing.png")


def test_a_checkpoint_that_does_not_fit(btm: Btm, own: Path) -> None:
    from safetensors.torch import save_file

    from btm_core.models import build_model

    save_file(build_model("small_cnn", 5, 1).state_dict(), own / "five.safetensors")
    save_file(build_model("resnet20", 3, 1).state_dict(), own / "other.safetensors")
    for name, part in (("five", "has 5 classes, the data set has 3"), ("other", "another architecture")):
        done = btm("run", "my.yaml", "--set", f"pretrain.checkpoint={name}.safetensors", cwd=own)
        refused(done, part)


def test_a_nan_loss_stops_the_stage_and_keeps_what_was_done(btm: Btm, own: Path) -> None:
    done = btm("run", "my.yaml", "--set", "finetune.lr=1e30", cwd=own)
    refused(done, "finetune subset-0", "in epoch 1 of 2 at learning rate 1e+30")
    assert list((own / ".btm/store/artifacts/pretrain").rglob("manifest.json"))
    assert not (own / ".btm/store/artifacts/merge").exists()


def test_what_is_found_before_anything_starts(btm: Btm, own: Path) -> None:
    shots = ["--set=sampling.when_short=error", "--set=sampling.shots=6"]
    refused(btm("run", "my.yaml", *shots, cwd=own), "1 classes have fewer images than sampling.shots = 6", "digit-2")
    refused(
        btm("run", "my.yaml", "--device", "cuda", cwd=own, CUDA_VISIBLE_DEVICES=""),
        "device cuda was asked for, but no NVIDIA GPU",
    )
    refused(
        btm("run", "my.yaml", cwd=own, BTM_GPUS="2", CUDA_VISIBLE_DEVICES="0"),
        "BTM_GPUS asks for 2 GPUs, 1 can be seen here; lower it",
    )
    (own / "file").write_text("")
    refused(
        btm("run", "my.yaml", "--store", "s2", cwd=own, BTM_HOME="file"),
        "BTM_HOME file cannot be used as a folder: File exists; choose another, or unset it",
    )
    refused(
        btm("run", "my.yaml", cwd=own, BTM_WORKERS="none"),
        "runtime settings: BTM_WORKERS: input should be a valid integer",
        "'none'",
    )
    refused(btm("run", "cifar100-lt", "--set=data.root=file", cwd=own), "is a file, not a folder")
    assert not (own / ".btm/prefect").exists()


def test_a_tracking_server_that_cannot_be_used(btm: Btm, own: Path) -> None:
    refused(
        btm("run", "my.yaml", cwd=own, BTM_TRACKING_URI="foo://user:secret@x"),
        "MLflow at foo://***@x cannot be used: ",
        "; check MLFLOW_TRACKING_URI or BTM_TRACKING_URI, or unset",
    )


def test_a_store_that_cannot_be_written(btm: Btm, own: Path) -> None:
    (own / "file").write_text("")
    refused(btm("run", "my.yaml", "--store", "file/store", cwd=own), "cannot be written")
    refused(btm("run", "my.yaml", "--store", "nosuch://bucket", cwd=own), "not usable")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_without_permission(btm: Btm, own: Path) -> None:
    locked = own / "locked"
    locked.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    refused(btm("run", "my.yaml", "--store", str(locked / "store"), cwd=own), "cannot be written")


def test_merge(btm: Btm, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from torch import full

    for number in (1, 4):
        save_file({"w": full((2,), float(number))}, tmp_path / f"{number}.safetensors")
    done = btm("merge", "1.safetensors", "4.safetensors", "-o", "out.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [2.5, 2.5]
    done = btm("merge", "1.safetensors", "4.safetensors", "-w", "2", "-w", "1", "-o", "out.safetensors", cwd=tmp_path)
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [2.0, 2.0]
    refused(
        btm("merge", "1.safetensors", "absent.safetensors", "-o", "x", cwd=tmp_path),
        "absent.safetensors does not exist",
    )

"""What a checkpoint can be wrong in: each message names the file, what is expected, what was found, what to do."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from btm_core.checkpoints import METADATA_KEY, CheckpointMetadata, load_backbone, load_checkpoint, load_into
from btm_core.config import InputConfig
from btm_core.errors import CheckpointError, ConfigError, DataError, StoreError
from btm_core.importing import import_checkpoint
from btm_core.merging import merge
from btm_core.models import build_model
from btm_core.serving.predictor import require_same_view
from btm_core.serving.settings import serving_settings
from btm_core.tensor_files import load_arrays, read_header

Give = Callable[[str], Path]


@pytest.fixture
def give(tmp_path: Path) -> Give:
    """Make a file of some kind: a whole network of ours by default."""

    def make(name: str) -> Path:
        path = tmp_path / name
        kind = path.stem
        if kind == "folder":
            path.mkdir()
        elif kind == "text":
            path.write_text("hello, this is a text")
        elif kind == "torch":
            torch.save(build_model("small_cnn", 3, 1).state_dict(), path)
        elif kind == "whole":
            save_file(build_model("small_cnn", 3, 1).state_dict(), path)
        elif kind == "other":
            save_file(build_model("resnet20", 3, 1).state_dict(), path)
        elif kind == "bits":
            save_file({"flags": torch.ones(2).to(torch.float8_e4m3fn)}, path)
        elif kind == "cut":
            path.write_bytes(struct.pack("<Q", 100) + b"{}")
        elif kind == "two-bytes":
            save_file({"a": torch.ones(1, dtype=torch.bfloat16)}, path)
        elif kind == "headless":
            state = {k: v for k, v in build_model("resnet20", 3, 3).state_dict().items() if not k.startswith("head.")}
            torch.save({name.removeprefix("backbone."): tensor for name, tensor in state.items()}, path)
        elif kind == "odd":
            torch.save({"state_dict_model": 3, "state_dict_classifier": {}}, path)
        elif kind == "backbone":
            torch.save({"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv2.weight": torch.ones(8, 8, 3, 3)}, path)
        return path

    return make


def load(path: Path) -> None:
    load_into(build_model("small_cnn", 3, 1), path)


READ: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "absent": (load, "absent.safetensors", "checkpoint {path} does not exist"),
    "a folder": (load, "folder", "checkpoint {path} is a folder, expected a safetensors file"),
    "text": (load, "text.safetensors", " bytes, at most 16777216 are read: it is something else"),
    "torch": (
        load,
        "torch.pth",
        "{path} is not a safetensors file: torch.save wrote it; make a safetensors file of it with btm import-",
    ),
    "cut": (load, "cut.safetensors", "its header is cut off: 100 bytes are announced, the file has 10"),
    "another network": (
        load,
        "other.safetensors",
        "{path} is a checkpoint of another architecture (129 differences); set model.backbone to its own:\n  missing: ",
    ),
    "another backbone": (
        lambda path: load_backbone(build_model("small_cnn", 9, 1), path),
        "other.safetensors",
        "set model.backbone to its own",
    ),
    "no metadata": (
        load_checkpoint,
        "whole.safetensors",
        "{path} carries no BTM metadata, so its architecture is unknown; btm import-checkpoint adds them, with --data",
    ),
    "numpy": (load_arrays, "two-bytes.safetensors", "{path} cannot be read as safetensors: "),
    "import absent": (import_checkpoint, "absent.pth", "checkpoint {path} does not exist"),
    "import folder": (
        import_checkpoint,
        "folder",
        "checkpoint {path} is a folder, expected a file of torch.save or safetensors",
    ),
    "import text": (
        import_checkpoint,
        "text.pth",
        "{path} is no readable checkpoint: it was not written by torch, nor ends in .safetensors",
    ),
    "import family": (
        lambda path: import_checkpoint(path, family="foo"),
        "torch.pth",
        "family 'foo' is unknown; known are mislas, decoupling, paco",
    ),
    "import layout": (import_checkpoint, "odd.pth", "{path} is not laid out as mislas checkpoints are: "),
    "import headless": (
        lambda path: import_checkpoint(path, family="torchvision"),
        "headless.pth",
        "{path} holds no head (fc or linear); import its backbone alone with --backbone-only",
    ),
    "import unknown": (
        lambda path: import_checkpoint(path, family="torchvision", backbone_only=True),
        "backbone.pth",
        "{path}: no backbone here has blocks (1, 0, 0, 0); if one does, name it with --backbone, else this ",
    ),
    "import another": (
        lambda path: import_checkpoint(path, backbone="resnet32"),
        "torch.pth",
        "{path} is not a whole resnet32 and nothing else (",
    ),
    "import another's cure": (
        lambda path: import_checkpoint(path, backbone="resnet32"),
        "torch.pth",
        " differences); leave a tensor aside with --drop, or name another --backbone:\n  missing: ",
    ),
}


@pytest.mark.parametrize(("read", "name", "message"), READ.values(), ids=READ)
def test_reading(give: Give, read: Callable[[Path], object], name: str, message: str) -> None:
    path = give(name)
    with pytest.raises(CheckpointError) as error:
        read(path)
    assert message.format(path=path) in str(error.value)


MERGE: dict[str, tuple[list[str], list[float] | None, str]] = {
    "nothing": ([], None, "merge needs at least one checkpoint"),
    "absent": (["whole", "absent"], None, "checkpoint {absent} does not exist"),
    "a folder": (["whole", "folder"], None, "checkpoint {folder} is a folder, expected a safetensors file"),
    "text": (["whole", "text"], None, "{text} is not a safetensors file: a header of "),
    "another network": (
        ["whole", "other"],
        None,
        "{whole} and {other} are not of one architecture; they differ in ",
    ),
    "eight bits": (["bits", "bits"], None, "{bits} holds tensors of type F8_E4M3, which cannot be averaged"),
    "weights": (
        ["whole", "whole"],
        [1.0],
        "2 checkpoints need 2 weights, none below 0 and their sum above 0, found [1.0]",
    ),
    "no sum": (
        ["whole"],
        [float("nan")],
        "1 checkpoints need 1 weights, none below 0 and their sum above 0, found [nan]",
    ),
}


@pytest.mark.parametrize(("names", "weights", "message"), MERGE.values(), ids=MERGE)
def test_merging(give: Give, tmp_path: Path, names: list[str], weights: list[float] | None, message: str) -> None:
    paths = {name: give(name) for name in dict.fromkeys(names)}
    with pytest.raises(CheckpointError) as error:
        merge([paths[name] for name in names], tmp_path / "out", weights)
    assert message.format(**paths) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_plain_file_is_not_written_over(give: Give, tmp_path: Path) -> None:
    """Root could replace /dev/null by a soup."""
    import os

    whole, folder = give("whole"), give("folder")
    os.mkfifo(tmp_path / "pipe")
    for name, kind in {"folder": "a folder", "pipe": "a device or a pipe"}.items():
        message = f"{tmp_path / name} is {kind}, expected a file to write, or none yet: choose another name"
        with pytest.raises(StoreError, match=message):
            merge([whole], tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and not list(folder.iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere.safetensors")
    merge([whole], tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere.safetensors").is_file()


def test_what_a_checkpoint_says_of_itself(tmp_path: Path) -> None:
    view = InputConfig(size=8, channels=1, mean=(0.3,), std=(0.4,), augmentation="none")
    seen = {"backbone": "small_cnn", "channels": 1, "size": 12, "mean": (0.3,), "std": (0.4,), "stage": "final"}
    metadata = CheckpointMetadata(**seen, class_names=("a", "b"), train_counts=(1, 1))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="the checkpoint was trained on images of size 12, not 8: they would not"):
        require_same_view(metadata, view)
    path = tmp_path / "a.safetensors"
    state = {**build_model("small_cnn", 3, 1).state_dict()}
    save_file(state, path, {METADATA_KEY: metadata.model_dump_json()})
    with pytest.raises(CheckpointError, match=r"a.safetensors has a head of shape \[3, 64\], and names 2 classes"):
        import_checkpoint(path)


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    f32 = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    for header, data, message in (
        ("[]", b"", "its header is no mapping"),
        (f'{{"a":{f32 % (4, 8)}}}', b"12345678", "tensor 'a' does not begin where the one before it ends"),
        (f'{{"a":{f32 % (0, 4)}}}', b"12345678", "its tensors take 4 bytes, 8 are there: it is cut off, or holds"),
        (f'{{"a":{f32 % (0, 4)},"a":{f32 % (0, 4)}}}', b"1234", "its header names something twice"),
        ('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"1234", "tensor 'a' is of the unknown type 'F99'"),
        ('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"1234", "safetensors file: NaN is no number"),
    ):
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)
        with path.open("rb") as file, pytest.raises(CheckpointError) as error:
            read_header(file, str(path))
        assert f"{path} is not a safetensors file: " in str(error.value)
        assert message in str(error.value)


def test_serving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from test_serving_predictor import INPUT, image, predictor  # the network of those tests

    with pytest.raises(DataError, match="row 1: no image: text was expected, an image file in base64"):
        predictor("a", "b").predict([image(), 3])
    with pytest.raises(DataError, match="row 0: no base64: "):
        predictor("a", "b").predict(["this is no base64!"])
    monkeypatch.setenv("BTM_SERVE_URL_SECONDS", "soon")
    monkeypatch.setenv("BTM_SERVE_URL_MEGABYTES", "0")
    with pytest.raises(ConfigError) as refusal:
        serving_settings()
    message = str(refusal.value)
    assert message.startswith("serving settings: BTM_SERVE_URL_MEGABYTES: Input should be greater than 0, found '0'; ")
    assert "BTM_SERVE_URL_SECONDS: Input should be a valid number, unable to parse string as a number, found" in message
    assert INPUT.size == 8

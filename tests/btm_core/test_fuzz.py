"""What strangers write is read as it is meant, or is one error of ours: never another exception, a hang, or a guess."""

import io
import json
import posixpath
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from btm_core.checkpoints import read_metadata
from btm_core.config import load_experiment
from btm_core.data import read_list
from btm_core.data.inaturalist import parse_inaturalist
from btm_core.data.sources import inside
from btm_core.errors import CheckpointError, ConfigError, DataError
from btm_core.importing import import_checkpoint
from btm_core.merging import merge
from btm_core.tensor_files import load_tensors, read_header

fuzz = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,  # CI tells of changes, not of luck
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = st.one_of(
    st.integers(-2, 24), st.sampled_from([2**31, 2**63, 2**64, 10**30]), st.floats(), st.booleans(), st.none()
)
JSON = st.recursive(
    NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
)

# safetensors

ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I64", "U8", "BOOL", "F4", "F8_E8M0", "C64", "F99", "", None]),
        "shape": st.lists(st.integers(0, 4) | NUMBERS, max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(0, 24), st.integers(0, 24)).map(list) | st.lists(NUMBERS, max_size=3),
    },
    optional={"more": JSON},
)
METADATA = st.dictionaries(st.sampled_from(["btm", "format", "x"]), st.text(max_size=20) | JSON, max_size=2)
HEADER = st.dictionaries(st.sampled_from(["a", "b", "head.weight", ""]), ENTRY | JSON, max_size=3).flatmap(
    lambda tensors: METADATA.map(lambda metadata: {**tensors, "__metadata__": metadata}) | st.just(tensors)
)


def written(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def packed(header: bytes, data: bytes, announced: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if announced is None else announced) + header + data


def agrees_with_the_library(path: Path) -> None:
    """Read a file of tensors in every way; if it can be read, we and the library read the same."""
    for read in (read_metadata, import_checkpoint, lambda path: merge([path, path], path.with_name("merged"))):
        with suppress(CheckpointError):
            read(path)
    try:
        tensors = load_tensors(path)
    except CheckpointError:
        return
    data = path.read_bytes()
    header = read_header(io.BytesIO(data), "file")
    library = load_file(path)
    assert set(header.entries) == set(tensors) == set(library)
    for name, entry in header.entries.items():
        assert entry.shape == tuple(library[name].shape) or entry.dtype == "F4"  # torch packs two of these in one
        raw = library[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes() if library[name].numel() else b""
        assert raw == data[header.start + entry.first : header.start + entry.last]


@fuzz
@given(st.binary(max_size=64), st.none() | st.integers(0, 2**64 - 1))
def test_any_bytes_as_a_safetensors_file(tmp_path: Path, data: bytes, announced: int | None) -> None:
    agrees_with_the_library(written(tmp_path, "a.safetensors", data))
    agrees_with_the_library(written(tmp_path, "a.safetensors", packed(data, b"", announced)))


@fuzz
@given(HEADER, st.integers(0, 24), st.none() | st.integers(0, 300))
def test_any_header_of_a_safetensors_file(tmp_path: Path, header: Any, size: int, announced: int | None) -> None:
    data = packed(json.dumps(header).encode(), bytes(range(size)), announced)
    agrees_with_the_library(written(tmp_path, "a.safetensors", data))


@pytest.fixture(scope="module")
def sound() -> bytes:
    """A sound file of a small network, with metadata."""
    metadata = {"backbone": "small_cnn", "channels": 1, "size": 8, "mean": [0], "std": [1], "stage": "pretrain"}
    metadata |= {"class_names": ["a", "b"], "train_counts": [2, 1]}
    from safetensors.torch import save

    from btm_core.models import build_model

    return save(build_model("small_cnn", 2, 1).state_dict(), {"btm": json.dumps(metadata)})


@fuzz
@given(st.data())
def test_a_damaged_safetensors_file(tmp_path: Path, sound: bytes, data: st.DataObject) -> None:
    header = 8 + struct.unpack("<Q", sound[:8])[0]
    position = data.draw(st.integers(0, header - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                sound[:position],
                sound[:position] + bytes([data.draw(st.integers(0, 255))]) + sound[position + 1 :],
                sound[:position] + sound[position + data.draw(st.integers(1, 40)) :],
                sound[: header + data.draw(st.integers(0, 100))],
            ]
        )
    )
    agrees_with_the_library(written(tmp_path, "a.safetensors", damaged))


# torch's own files

TENSOR = st.sampled_from(
    [torch.zeros(2), torch.zeros(2, 3), torch.zeros(4, 3, 3, 3), torch.tensor(1), torch.tensor([float("nan")])]
)
KEYS = st.sampled_from(
    [
        *(
            "state_dict",
            "model",
            "state_dict_model",
            "state_dict_classifier",
            "feat_model",
            "classifier",
            "model_ema",
            "",
        ),
        *(
            "conv1.weight",
            "module.conv1.weight",
            "fc.weight",
            "fc.bias",
            "module.encoder_q.conv1.weight",
            "epoch",
            "arch",
        ),
        *(
            "layer1.0.conv1.weight",
            "head.weight",
            "backbone.conv1.weight",
            "learned_norm",
            "bn1.bias",
            "state_dict_best",
        ),
    ]
)
CHECKPOINT = st.recursive(
    TENSOR | st.integers() | st.text(max_size=3) | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS | st.integers(0, 2), inner, max_size=4),
    max_leaves=12,
)


@fuzz
@given(CHECKPOINT)
def test_any_structure_as_a_torch_file(tmp_path: Path, checkpoint: Any) -> None:
    torch.save(checkpoint, tmp_path / "a.pth")
    for options in ({}, {"backbone_only": True}, {"ema": True}, {"family": "mislas"}, {"family": "torchvision"}):
        with suppress(CheckpointError):
            import_checkpoint(tmp_path / "a.pth", **options)  # type: ignore[arg-type]


@fuzz
@given(st.data(), st.booleans())
def test_a_damaged_torch_file(tmp_path: Path, data: st.DataObject, zipped: bool) -> None:
    buffer = io.BytesIO()
    checkpoint = {"state_dict": {"module.conv1.weight": torch.zeros(2, 3)}, "epoch": 3}
    torch.save(checkpoint, buffer, _use_new_zipfile_serialization=zipped)
    sound = buffer.getvalue()
    position = data.draw(st.integers(0, len(sound) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    damaged = data.draw(st.sampled_from([sound[:position], sound[:position] + byte + sound[position + 1 :]]))
    with pytest.raises(CheckpointError):  # sound or damaged, it is no whole network
        import_checkpoint(written(tmp_path, "a.pth", damaged))


def tells(error: Exception, start: str = "") -> None:
    """Check that a message begins as it should, and can be read."""
    assert str(error).startswith(start) and len(str(error)) < 20_000


# Lists

CHARACTERS = st.characters() | st.sampled_from("/\\. \n\r\t\0:~\u2028\x85\x1c\ud800")
PARTS = st.sampled_from(["..", ".", "a", "b.jpg", "", "~", "C:", "s3:", " ", "\n", "\u2028", "\ud83d"])
PATHS = st.tuples(st.sampled_from("/\\"), st.lists(PARTS | st.text(CHARACTERS), min_size=1, max_size=5)).map(
    lambda path: path[0].join(path[1])
)


@fuzz
@given(st.text(st.characters() | st.sampled_from(" 019\n\r\u2028/."), max_size=60))
def test_any_text_as_a_list(text: str) -> None:
    try:
        paths, labels = read_list(text, "list")
    except DataError as error:
        return tells(error, "list, line ")
    assert len(paths) == len(labels) == sum(bool(line.strip()) for line in text.splitlines())
    assert all(path and path in text and label >= 0 for path, label in zip(paths, labels.tolist(), strict=True))


@fuzz
@given(st.lists(PATHS, max_size=4))
def test_a_path_stays_inside_and_is_the_same_when_it_is_listed_again(paths: list[str]) -> None:
    try:
        safe = inside(paths, "table", [f"row {number}" for number in range(len(paths))])
    except DataError as error:
        return tells(error, "table, row ")
    for path in safe:
        assert posixpath.normpath(f"/root/{path}").startswith("/root/") and "\0" not in path
    listed = "".join(f"{path} {number}\n" for number, path in enumerate(safe)).encode().decode()
    found, labels = read_list(listed, "list")
    assert (tuple(found), labels.tolist()) == (safe, list(range(len(safe))))


@fuzz
@given(
    st.text(max_size=30)
    | JSON.map(json.dumps)
    | st.fixed_dictionaries(
        {
            "images": st.lists(st.fixed_dictionaries({"id": JSON, "file_name": JSON}) | JSON, max_size=3),
            "annotations": st.lists(st.fixed_dictionaries({"image_id": JSON, "category_id": JSON}) | JSON, max_size=3),
        },
        optional={"categories": JSON | st.lists(st.fixed_dictionaries({"id": JSON, "name": JSON}), max_size=2)},
    ).map(json.dumps)
)
def test_any_text_as_annotations(text: str) -> None:
    try:
        paths, labels, names = parse_inaturalist(text, "file")
        inside(paths, "file", [""] * len(paths))
    except DataError:
        return
    assert len(paths) == len(labels) and (not len(labels) or labels.min() >= 0)
    assert names is None or all(isinstance(name, str) for name in names)


# Configurations

SECTIONS = [
    "data",
    "model",
    "pretrain",
    "sampling",
    "finetune",
    "merge",
    "post_train",
    "evaluation",
    "fc",
    "seed",
    "name",
]
FIELDS = ["format", "root", "train", "input", "size", "epochs", "lr", "method", "lists", "checkpoint", "preset", "mean"]
VALUES = st.one_of(
    NUMBERS,
    st.text(CHARACTERS, max_size=8),
    st.sampled_from(["list", "digits", "digits-lt", "~nobody", "a" * 300, "s3://b/x", "paco", "1e-3", "s3://k:s@b"]),
    st.dates(),
    st.binary(max_size=3),
)
TREE = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SECTIONS + FIELDS) | VALUES, inner, max_size=4)
    ),
    max_leaves=10,
)
YAML = st.sampled_from(
    [
        *(
            "2001-13-45",
            "!!bool x",
            "!!int ''",
            "!!float a",
            "=",
            "&a [*a]",
            "1" * 5000,
            "{[1]: 2}",
            "!!timestamp x",
            "*a",
        ),
        *(
            "!!python/name:os.system ''",
            "[" * 2000,
            "{a: " * 2000,
            "<<: 3",
            "<<: [1]",
            "? ",
            "--- a\n--- b",
            "!!set {a}",
        ),
        *("!!omap [a]", "%YAML 9.9\n---\n", "\ufeff", "0x", "0b", "1:99:99", ".inf", "!!binary '@'", "preset: [a]"),
        *("--- a\n--- b", "!!timestamp x"),
    ]
)


def loads(source: str | Path, overrides: list[str]) -> None:
    try:
        load_experiment(source, overrides)
    except ConfigError as error:
        tells(error)


@fuzz
@given(TREE.map(lambda tree: yaml.safe_dump(tree)) | st.text(CHARACTERS, max_size=60) | YAML)
def test_any_yaml_as_an_experiment(tmp_path: Path, text: str) -> None:
    loads(written(tmp_path, "my.yaml", text.encode(errors="surrogatepass")), [])


@fuzz
@given(
    st.lists(st.sampled_from(SECTIONS + FIELDS) | st.text(max_size=3), max_size=4).map(".".join),
    st.text(CHARACTERS, max_size=20) | YAML | TREE.map(lambda tree: yaml.safe_dump(tree, default_flow_style=True)),
)
def test_any_override(key: str, text: str) -> None:
    loads("digits-lt", [f"{key}={text}"])
    loads("digits-lt", [f"{key}{text}"])


@fuzz
@given(st.text(CHARACTERS, max_size=20) | st.just("a" * 5000))
def test_any_name_of_an_experiment(name: str) -> None:
    loads(name, [])


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    loads(written(tmp_path, "my.yaml", "\n".join([*lines, "seed: *a29", "published: *a29"]).encode()), [])


def test_a_sound_file_is_still_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    agrees_with_the_library(tmp_path / "a.safetensors")
    assert load_experiment(written(tmp_path, "my.yaml", b"preset: digits-lt\nseed: 3"), ["finetune.lr=0.5"]).seed == 3

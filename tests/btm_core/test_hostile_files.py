"""Files that were made to harm: pickles, archives, headers. Each is one error; nothing of it is run or left behind."""

import io
import json
import os
import pickle
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Btm
from safetensors.torch import save_file

from btm_core.checkpoints import read_metadata
from btm_core.data import cifar
from btm_core.errors import CheckpointError, DataError
from btm_core.importing import import_checkpoint
from btm_core.tensor_files import HEADER_LIMIT, load_arrays, load_tensors, read_header

# Pickles


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_not_run(btm: Btm, tmp_path: Path, zipped: bool) -> None:
    target = tmp_path / "owned"
    torch.save(
        {"state_dict": {"fc.weight": torch.zeros(2, 2)}, "extra": Evil(target)},
        tmp_path / "evil.pth",
        _use_new_zipfile_serialization=zipped,
    )
    done = btm("import-checkpoint", "evil.pth", "-o", "out.safetensors", cwd=tmp_path)
    assert done.returncode == 2 and "names code" in done.stderr and "Traceback" not in done.stderr
    assert not target.exists() and not (tmp_path / "out.safetensors").exists()
    with pytest.raises(Exception, match=r"touch|system"):  # the file does what we say it does
        torch.load(tmp_path / "evil.pth", weights_only=True)
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert target.exists()


def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    bomb = torch.zeros(1).expand(2**20, 2**24)  # 64 TB out of four bytes
    torch.save({"state_dict": {"module.conv1.weight": bomb}}, tmp_path / "bomb.pth")
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"module.conv1.weight .* more than the file"):
        import_checkpoint(tmp_path / "bomb.pth")


def test_a_compressed_checkpoint_is_refused_before_it_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(1000, 1000)}}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for info in plain.infolist():
            bomb.writestr(info.filename, plain.read(info), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 20_000
    with pytest.raises(CheckpointError, match=r"is compressed, \d+ bytes in \d+: torch writes no such"):
        import_checkpoint(tmp_path / "bomb.pth")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_a_tensor_that_is_not_dense_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.eye(4).to_sparse()}}, tmp_path / "sparse.pth")
    with pytest.raises(CheckpointError, match=r"fc.weight is no plain tensor, but sparse, quantized or empty"):
        import_checkpoint(tmp_path / "sparse.pth")


def test_cifars_pickle_gives_arrays_and_calls_nothing(tmp_path: Path) -> None:
    plain = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"fine_labels": [1, 2]}
    found = cifar._unpickled(pickle.dumps(plain, protocol=3))
    assert (found[b"data"] == plain[b"data"]).all() and found[b"fine_labels"] == [1, 2]
    python2 = (  # as Python 2 and its NumPy wrote it
        b"\x80\x02}q\x01U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87"
        b"Rq\x05(K\x01K\x03\x85cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
        b"\xffK\x00tb\x89U\x03\x01\x02\x03tbs."
    )
    assert cifar._unpickled(python2)[b"data"].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match=r"a file of cifar-100-python needs posix\.system to be read; only arrays are"):
        cifar._unpickled(pickle.dumps(Evil(tmp_path / "owned"), protocol=3))
    assert not (tmp_path / "owned").exists()


# Archives


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize(
    "name", ["../escaped", "/tmp/escaped", "cifar-100-binary/../../escaped", "other", "a/train.bin"]
)
def test_only_the_official_names_are_unpacked(tmp_path: Path, name: str) -> None:
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    path = archive(tmp_path / "a.tar.gz", (member(name), b"x"), (member("cifar-100-binary/train.bin"), b"content"))
    cifar._unpack(path, root)
    assert files_below(tmp_path) == {"a.tar.gz", "deep/root/cifar-100-binary/train.bin"}
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = archive(tmp_path / "a.tar.gz", (member("cifar-100-binary/train.bin", kind, "/etc/passwd"), b""))
    with pytest.raises(DataError, match=r"holds a cifar-100-binary/train\.bin that is not the official one; delete it"):
        cifar._unpack(path, root)
    assert files_below(root) == set()


def test_an_archive_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = member("cifar-100-binary/train.bin")
        info.size = cifar.MAX_MEMBER_BYTES + 1
        with Path("/dev/zero").open("rb") as zeros:
            tar.addfile(info, zeros)
    assert (tmp_path / "a.tar.gz").stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"holds a cifar-100-binary/train\.bin that is not the official one; delete it"):
        cifar._unpack(tmp_path / "a.tar.gz", root)
    assert files_below(root) == set()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_cut_archive_is_one_error(tmp_path: Path, keep: float) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    path = archive(tmp_path / "a.tar.gz", (member("cifar-100-binary/train.bin"), noise))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match=r"a.tar.gz cannot be unpacked: .*; delete it, and it is fetched again"):
        cifar._unpack(path, tmp_path / "root")


# Headers of safetensors files


def entry(first: int, last: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def tensor_file(path: Path, header: Any, data: bytes = b"", length: int | str | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if length == "short":
        path.write_bytes(b"\0" * 7)
        return path
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


HOSTILE = {
    "nothing": (b"", b"", None, "Expecting value"),
    "shorter than a length": (b"", b"", "short", "shorter than a header"),
    "no length": (b"", b"", 10**18, "at most 16777216 are read"),
    "longer than the file": ({}, b"", 1000, "cut off"),
    "a list": (b"[]", b"", None, "no mapping"),
    "not JSON": (b"{", b"", None, "Expecting"),
    "not UTF-8": (b'{"\xff": 1}', b"", None, "utf-8"),
    "nested": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", None, "its header is nested without end"),
    "overlap": ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, b"0" * 4, None, "begin where"),
    "hole": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"0" * 12, None, "begin where"),
    "beyond the end": ({"a": entry(0, 400, [100])}, b"0" * 4, None, "400 bytes, 4 are there"),
    "something behind": ({"a": entry(0, 4, [1])}, b"0" * 40, None, "4 bytes, 40 are there"),
    "backwards": ({"a": entry(4, 0, [1])}, b"0" * 4, None, "tensor 'a' has offsets that do not fit its shape"),
    "negative": ({"a": entry(-4, 0, [1])}, b"0" * 4, None, "has a shape or offsets that are no whole numbers from 0"),
    "negative shape": (
        {"a": entry(0, 8, [-1, -2])},
        b"0" * 8,
        None,
        "has a shape or offsets that are no whole numbers from 0",
    ),
    "a fraction": (
        {"a": entry(0, 4, [1.0])},
        b"0" * 4,
        None,
        "has a shape or offsets that are no whole numbers from 0",
    ),
    "a truth": ({"a": entry(0, 4, [True])}, b"0" * 4, None, "has a shape or offsets that are no whole numbers from 0"),
    "endless": (b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', b"0" * 4, None, "no number"),
    "overflow": ({"a": entry(0, 0, [2**62, 2**62])}, b"", None, "tensor 'a' has offsets that do not fit its shape"),
    "dimensions": (
        {"a": entry(0, 4, [1] * 10_000)},
        b"0" * 4,
        None,
        "has a shape or offsets that are no whole numbers from 0",
    ),
    "type": ({"a": entry(0, 4, [1], "F99")}, b"0" * 4, None, "unknown type"),
    "type list": ({"a": entry(0, 4, [1], ["F32"])}, b"0" * 4, None, "unknown type"),
    "no offsets": (
        {"a": {"dtype": "F32", "shape": [1]}},
        b"0" * 4,
        None,
        "tensor 'a' needs dtype, shape and data_offsets, and nothing else",
    ),
    "metadata": ({"__metadata__": {"btm": 1}}, b"", None, "its metadata are no mapping of text to text"),
    "twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"0" * 4,
        None,
        "twice",
    ),
}


@pytest.mark.parametrize(("header", "data", "length", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_header_that_lies_is_refused_everywhere(
    tmp_path: Path, header: Any, data: bytes, length: int | None, reason: str
) -> None:
    from btm_core.merging import merge

    path = tensor_file(tmp_path / "a.safetensors", header, data, length)
    for read in (
        load_tensors,
        load_arrays,
        read_metadata,
        import_checkpoint,
        lambda p: merge([p, p], tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match=rf"a.safetensors is not a safetensors file: .*({reason})"):
            read(path)
    assert files_below(tmp_path) == {"a.safetensors"}


def test_a_large_header_is_refused_at_once(tmp_path: Path) -> None:
    path = tensor_file(tmp_path / "a.safetensors", b"", b"", HEADER_LIMIT + 1)
    with path.open("ab") as file:
        file.truncate(HEADER_LIMIT + 100)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="a header of 16777217 bytes"):
        load_tensors(path)
    assert time.monotonic() - began < 1


def test_a_sound_header_says_where_everything_is(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "c": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "a.safetensors", {"key": "value"})
    with (tmp_path / "a.safetensors").open("rb") as file:
        header = read_header(file, "a")
    assert header.metadata == {"key": "value"} and set(header.entries) == set(tensors)
    for name, tensor in load_tensors(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, tensors[name]) and header.entries[name].shape == tuple(tensor.shape)
    data = (tmp_path / "a.safetensors").read_bytes()[header.start :]
    where = header.entries["b"]
    assert np.frombuffer(data[where.first : where.last], np.int64).tolist() == [0, 1, 2, 3, 4, 5]


def test_metadata_that_ask_for_a_huge_network_are_refused(tmp_path: Path) -> None:
    from btm_core.checkpoints import load_checkpoint

    facts: dict[str, Any] = {"backbone": "resnet20", "channels": 3, "size": 32, "mean": [0], "std": [1], "stage": "x"}
    names = {"class_names": [str(i) for i in range(100_000)], "train_counts": []}
    save_file({"head.weight": torch.zeros(2, 64)}, tmp_path / "a.safetensors", {"btm": json.dumps(facts | names)})
    with pytest.raises(CheckpointError, match=r"head of shape \[2, 64\], and names 100000 classes"):
        load_checkpoint(tmp_path / "a.safetensors")
    names = {"class_names": ["0", "1"], "train_counts": []}
    save_file(
        {"a": torch.zeros(1)}, tmp_path / "b.safetensors", {"btm": json.dumps(facts | names | {"channels": 10**9})}
    )
    with pytest.raises(
        CheckpointError, match="carries metadata that cannot be understood: channels: Input should be less than"
    ):
        load_checkpoint(tmp_path / "b.safetensors")

"""What merging promises of numbers, memory and remote files: theorems, and references computed by NumPy at once."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from faults import Fault, Rule, reset, status, truncate
from proxy import Proxy
from safetensors.torch import load_file, save_file

from btm_core import merging
from btm_core.errors import CheckpointError, StoreError
from btm_core.merging import merge
from btm_core.storage import open_ranges

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip
SHAPES = [(), (0, 3), (1,), (7,), (2, 3, 5), (2**15 + 1,), (merging.LOCAL_BLOCK + 12_345,)]


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bits that are a finite number, in float64 not the largest: their differences are infinite."""
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape)) * dtype.itemsize
    bits = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        return (bits & 1).bool().reshape(shape)
    tensor = bits.view(dtype).reshape(shape)
    if dtype.is_floating_point:
        tensor = torch.where(tensor.isfinite(), tensor, 1.5)
    return tensor / 16 if dtype == torch.float64 else tensor


def write_all_types(path: Path, seed: int) -> Path:
    """Every type in every shape; names that sort otherwise than types."""
    numbered = enumerate(itertools.product(SHAPES, DTYPES))
    save_file({f"{i:02d}": random_tensor(dtype, shape, 1000 * seed + i) for i, (shape, dtype) in numbered}, path)
    return path


def bits(path: Path) -> dict[str, bytes]:
    return {name: t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in load_file(path).items()}


@pytest.mark.parametrize("weights", [None, [1.0, 0.3, 0.0], [1e-12, 5e300, 1e300]])
def test_equal_tensors_stay_what_they_are_bit_for_bit(tmp_path: Path, weights: list[float] | None) -> None:
    path = write_all_types(tmp_path / "a", 0)
    merge([path] * 3, tmp_path / "out", weights)
    assert bits(tmp_path / "out") == bits(path)


def test_signed_zeros_and_infinities_stay(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        save_file({"w": torch.tensor([-0.0, 0.0, float("inf"), float("-inf")], dtype=dtype)}, tmp_path / "a")
        merge([tmp_path / "a"] * 3, tmp_path / "out", [1, 2, 3])
        assert bits(tmp_path / "out") == bits(tmp_path / "a")


@pytest.mark.parametrize("threads", [1, 3])
def test_neither_order_nor_threads_change_one_bit(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_all_types(tmp_path / str(seed), seed) for seed in range(3)]
    weights = (0.2, 3.0, 0.7)
    merge(paths, tmp_path / "expected", weights)
    monkeypatch.setattr(merging.torch, "get_num_threads", lambda: threads)
    for order in itertools.permutations(range(3)):
        merge([paths[i] for i in order], tmp_path / "out", [weights[i] for i in order])
        assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (1.0, 0.1, 0.7, 1.0)])
def test_inputs_that_differ_in_one_number_are_told_apart(tmp_path: Path, weights: tuple[float, ...]) -> None:
    """Wherever it is; and of equal inputs, here the second and the third, the weights settle the order."""
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(300_000, generator=generator, dtype=torch.float64), "b": torch.ones(5)}
    for position in (0, 150_000, 299_999):
        paths = []
        for number, value in enumerate((1e20, 1.0, 1.0, -1e20)):  # a sum that shows its order
            tensor = base["a"] * (3 if value == 1 else 1)
            tensor[position] = value
            paths.append(tmp_path / str(number))
            save_file({**base, "a": tensor}, paths[-1])
        found = set()
        for order in itertools.permutations(range(4)):
            merge([paths[i] for i in order], tmp_path / "out", [weights[i] for i in order])
            found.add((tmp_path / "out").read_bytes())
        assert len(found) == 1


def test_the_mean_is_that_of_numpy(tmp_path: Path) -> None:
    count, weights = 4, np.array([0.5, 2.0, 0.25, 1.25])
    paths = [write_all_types(tmp_path / str(seed), seed) for seed in range(count)]
    merge(paths, tmp_path / "out", weights.tolist())
    models = [load_file(path) for path in paths]
    for name, found in load_file(tmp_path / "out").items():
        if found.dtype == torch.int64:
            continue  # float64 does not hold these: see below
        stacked = np.stack([model[name].double().numpy() for model in models])
        with np.errstate(over="ignore"):
            mean = np.tensordot(weights / weights.sum(), stacked, 1)
        tolerance = 8 * np.finfo(np.float64).eps * np.abs(stacked).max(0)
        if not found.dtype.is_floating_point:
            assert (np.abs(found.double().numpy() - mean) <= 0.5 + tolerance).all(), (name, found.dtype)
        elif found.dtype != torch.float64:
            # Between what a mean a little lower and one a little higher are rounded to.
            low, high = (torch.from_numpy(np.asarray(mean + e)).to(found.dtype) for e in (-tolerance, tolerance))
            assert ((low <= found) & (found <= high)).all(), (name, found.dtype)
        else:
            finite = np.isfinite(tolerance)
            assert (np.abs(found.numpy() - mean)[finite] <= tolerance[finite]).all(), name


def test_whole_numbers_of_64_bits_are_averaged_beyond_what_float64_holds(tmp_path: Path) -> None:
    pairs = [(2**62 + 1, 2**62 + 3), (-(2**63), -(2**63) + 2), (2**63 - 1, 2**63 - 3), (-7, 9), (0, 2**40), (-1, -3)]
    for number in range(2):
        save_file({"n": torch.tensor([pair[number] for pair in pairs])}, tmp_path / str(number))
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    assert load_file(tmp_path / "out")["n"].tolist() == [sum(pair) // 2 for pair in pairs]


def test_files_that_are_laid_out_otherwise_are_averaged_by_name(tmp_path: Path) -> None:
    path = write_all_types(tmp_path / "a", 0)
    tensors = load_file(path)
    names = list(tensors)
    random.Random(0).shuffle(names)
    header, data = {}, b""
    for name in names:
        raw = bits(path)[name] if tensors[name].numel() < 1000 else tensors[name].reshape(-1).view(torch.uint8).numpy()
        kind = next(kind for kind, dtype in merging.DTYPES.items() if dtype == tensors[name].dtype)
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [len(data)]}
        data += bytes(raw)
        header[name]["data_offsets"].append(len(data))
    text = json.dumps(header).encode()
    (tmp_path / "b").write_bytes(len(text).to_bytes(8, "little") + text + data)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert bits(tmp_path / "out") == bits(path)
    other = write_all_types(tmp_path / "c", 1)
    merge([path, other], tmp_path / "straight")
    merge([tmp_path / "b", other], tmp_path / "shuffled")
    assert (tmp_path / "straight").read_bytes() == (tmp_path / "shuffled").read_bytes()


PEAK = """
import re, sys
from pathlib import Path
from btm_core.merging import merge
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
merge(sys.argv[1:2], sys.argv[-1])
before = peak()
merge(sys.argv[1:-1], sys.argv[-1])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_number_of_models(tmp_path: Path) -> None:
    """Beyond what one input takes: of 3 or 12 models of 24 MB each, a megabyte or so for their headers."""
    paths = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        paths.append(tmp_path / str(seed))
        save_file({str(i): torch.randn(2_000_000, generator=generator) for i in range(3)}, paths[-1])
    for count in (3, 12):
        command = [sys.executable, "-c", PEAK, *map(str, paths[:count]), str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert float(done.stdout) < 10  # MB


def test_an_input_that_is_written_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_all_types(tmp_path / str(seed), seed) for seed in range(2)]
    (tmp_path / "out").write_bytes(b"as it was")
    ranked = merging._ranked

    def disturb(*arguments: object) -> object:
        with paths[0].open("r+b") as file:  # of the same size
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")
        os.utime(paths[0], ns=(1, 1))
        return ranked(*arguments)  # type: ignore[arg-type]

    def cut(*arguments: object) -> object:
        os.truncate(paths[0], 10_000)
        return ranked(*arguments)  # type: ignore[arg-type]

    for change in (disturb, cut):
        monkeypatch.setattr(merging, "_ranked", change)
        with pytest.raises(StoreError, match=f"{paths[0]} has changed while it was read"):
            merge(paths, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"as it was"
        assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "out"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "btm-test", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes a user who may")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_clear_error(tmp_path: Path, small_disk: Path) -> None:
    paths = [write_all_types(tmp_path / str(seed), seed) for seed in range(2)]
    with pytest.raises(StoreError, match=f"{small_disk}/out cannot be used: .*the disk is full: free space"):
        merge(paths, small_disk / "out")
    assert not list(small_disk.iterdir())


# Remote inputs


@pytest.fixture
def remote(s3: dict[str, str], proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Two checkpoints of several parts on S3, to be reached through a proxy."""
    settings = {"AWS_ENDPOINT_URL_S3": proxy.url, "BTM_STORE_PART_MEGABYTES": "5", "BTM_STORE_DEADLINE_SECONDS": "60"}
    for name, value in {**s3, **settings}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    urls = []
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        tensors = {"a": torch.randn(2_000_001, generator=generator), "n": torch.tensor(3), "z": torch.randn(900_000)}
        save_file(tensors, tmp_path / str(number))
        urls.append(f"s3://btm/{tmp_path.name}/{number}")
        put(tmp_path / str(number), urls[-1], s3)
    yield urls
    fsspec.filesystem("s3").clear_instance_cache()


def put(path: Path, url: str, s3: dict[str, str]) -> None:
    """Upload past the proxy."""
    import s3fs

    keys = {"key": s3["AWS_ACCESS_KEY_ID"], "secret": s3["AWS_SECRET_ACCESS_KEY"]}
    s3fs.S3FileSystem(**keys, endpoint_url=s3["AWS_ENDPOINT_URL_S3"], skip_instance_cache=True).put_file(str(path), url)


def test_remote_inputs_are_read_in_parts_and_never_kept(
    remote: list[str], proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "expected", [1, 3])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))  # nothing can be copied
    merge(remote, tmp_path / "out", [1, 3])
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()
    assert {seen.status for seen in proxy.record if seen.method == "GET"} == {206}


@pytest.mark.parametrize("fault", [reset, status(503), truncate(100_000), truncate(0)], ids=lambda fault: fault.name)
def test_trouble_in_reading_parts_passes(remote: list[str], proxy: Proxy, tmp_path: Path, fault: Fault) -> None:
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "expected")
    proxy.add(Rule(fault, "GET", at={1, 4, 6}))
    merge([tmp_path / "0", remote[1]], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()
    assert [seen.fault for seen in proxy.record].count(fault.name) == 3


def test_a_remote_input_that_changes_is_refused(
    remote: list[str], s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another upload between its header and its tensors, of the same size or shorter; or it is deleted."""
    ranked = merging._ranked
    for content in (tmp_path / "1", None):
        put(tmp_path / "0", remote[0], s3)
        (tmp_path / "short").write_bytes(b"short")

        def change(*arguments: object, content: Path | None = content) -> object:
            put(content or tmp_path / "short", remote[0], s3)
            return ranked(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(merging, "_ranked", change)
        with pytest.raises(StoreError, match=f"{remote[0]} has changed while it was read: run again"):
            merge(remote, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_any_file_system_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    paths = [write_all_types(tmp_path / str(seed), seed) for seed in range(2)]
    urls = [f"memory://{tmp_path.name}/{path.name}" for path in paths]
    for path, url in zip(paths, urls, strict=True):
        memory.pipe_file(url, path.read_bytes())
    merge(paths, tmp_path / "expected")
    merge(urls, f"memory://{tmp_path.name}/out")
    assert memory.cat_file(f"memory://{tmp_path.name}/out") == (tmp_path / "expected").read_bytes()
    with pytest.raises(CheckpointError, match="does not exist"):
        merge([*urls, f"memory://{tmp_path.name}/absent"], tmp_path / "out")
    with open_ranges(urls[0]) as ranges:
        memory.pipe_file(urls[0], paths[1].read_bytes())
        with pytest.raises(StoreError, match="has changed while it was read"):
            ranges.check_unchanged()
        memory.rm_file(urls[0])
        with pytest.raises(StoreError, match="has changed while it was read"):
            ranges.read_into(0, memoryview(bytearray(8)))


def test_an_output_on_s3_is_whole_or_not_there(remote: list[str], tmp_path: Path) -> None:
    merge(remote, f"{remote[0]}-merged")
    merge([f"{remote[0]}-merged"], tmp_path / "out")
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "expected")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()

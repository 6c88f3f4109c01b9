import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from btm_core.checkpoints import CheckpointMetadata, load_checkpoint, read_metadata, save_checkpoint
from btm_core.errors import CheckpointError
from btm_core.merging import average, merge
from btm_core.models import build_model


def write_models(folder: Path, count: int) -> list[Path]:
    paths = []
    for seed in range(count):
        model = build_model("resnet20", 10, seed=seed)
        model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))  # moves BN statistics
        paths.append(folder / f"{seed}.safetensors")
        save_file(model.state_dict(), paths[-1])
    return paths


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_the_soup_of_identical_models_is_that_model(tmp_path: Path, count: int, dtype: torch.dtype) -> None:
    [path] = write_models(tmp_path, 1)
    weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(path).items()}
    save_file(weights, path)
    merge([path] * count, tmp_path / "soup.safetensors")
    assert same_bits(load_file(tmp_path / "soup.safetensors"), load_file(path))


def test_the_order_of_ingredients_changes_not_one_bit(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 4)
    for path, huge in zip(paths, (1e20, 1.0, -1e20, 3.0), strict=True):  # a sum that shows the order it was made in
        save_file({**load_file(path), "huge": torch.tensor([huge])}, path)
    files = set()
    for number, order in enumerate(itertools.permutations(paths)):
        output = tmp_path / f"soup-{number}.safetensors"
        merge(order, output)
        files.add(output.read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("weights", [None, [1, 0, 2, 5]])
def test_in_memory_the_average_is_that_of_the_files(tmp_path: Path, weights: list[float] | None) -> None:
    paths = write_models(tmp_path, 4)
    extra = {
        "flag": torch.tensor(True),
        "none": torch.zeros(0),
        "half": torch.arange(9.0).bfloat16(),
        "n": torch.tensor(7),
    }
    for path, huge in zip(paths, (1e20, 1.0, -1e20, 3.0), strict=True):  # a sum that shows the order it was made in
        save_file({**load_file(path), **extra, "huge": torch.tensor([huge])}, path)
    states = [load_file(path) for path in paths]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    merge(paths, tmp_path / "soup.safetensors", weights)
    soup = average(states, weights)
    assert same_bits(soup, load_file(tmp_path / "soup.safetensors"))
    assert all(map(same_bits, states, before))
    soup["huge"].zero_()
    assert states[0]["huge"] != 0


def test_what_cannot_be_averaged_in_memory_is_named() -> None:
    one = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match=r"state 0 and state 1 .* differ in 1 tensors:\n.*a: F32\[2, 3\] against F32\[3\]"
    ):
        average([one, {**one, "a": torch.zeros(3)}])
    with pytest.raises(CheckpointError, match="2 checkpoints need 2 weights, none below 0"):
        average([one, one], weights=[1])
    with pytest.raises(CheckpointError, match=r"type torch.complex64, which cannot be averaged"):
        average([{"a": torch.zeros(1, dtype=torch.complex64)}])


def test_weights_follow_their_checkpoints(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 3)
    merge(paths, tmp_path / "a.safetensors", weights=[1, 2, 5])
    merge(paths[::-1], tmp_path / "b.safetensors", weights=[5, 2, 1])
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    merge(paths, tmp_path / "one.safetensors", weights=[0, 3, 0])
    assert same_bits(load_file(tmp_path / "one.safetensors"), load_file(paths[1]))


def test_the_soup_is_the_float64_mean_rounded_once(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 10)
    merge(paths, tmp_path / "soup.safetensors")
    soup, models = load_file(tmp_path / "soup.safetensors"), [load_file(path) for path in paths]
    for name, tensor in soup.items():
        if tensor.is_floating_point():
            exact = torch.stack([model[name].double() for model in models]).mean(0)
            assert torch.equal(tensor, exact.float()) or torch.allclose(tensor.double(), exact, rtol=1e-7, atol=0)


def test_integer_buffers_stay_integer(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 3)
    merge(paths, tmp_path / "soup.safetensors")
    counter = load_file(tmp_path / "soup.safetensors")["backbone.bn1.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert counter.item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    for number in range(2):
        save_file({"w": torch.full((3,), number, dtype=dtype), "none": torch.zeros(0)}, tmp_path / f"{number}")
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    merged = load_file(tmp_path / "out")
    assert merged["w"].dtype == dtype
    assert torch.equal(merged["w"], torch.full((3,), 0.5, dtype=dtype))
    assert merged["none"].shape == (0,)


def test_metadata_of_a_checkpoint_survives(tmp_path: Path) -> None:
    model = build_model("small_cnn", 3, channels=1)
    metadata = CheckpointMetadata(
        backbone="small_cnn", channels=1, size=8, mean=(0.3,), std=(0.4,), class_names=("a", "b", "c"),
        train_counts=(3, 2, 1), stage="finetune",
    )  # fmt: skip
    for name in ("a", "b"):
        save_checkpoint(model, tmp_path / name, metadata)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert read_metadata(tmp_path / "out") == metadata
    loaded, _ = load_checkpoint(tmp_path / "out")
    assert same_bits(loaded.state_dict(), model.state_dict())


def test_models_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file(build_model("resnet20", 10).state_dict(), tmp_path / "a")
    save_file(build_model("resnet32", 10).state_dict(), tmp_path / "b")
    with pytest.raises(CheckpointError, match="not of one architecture"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", [[1.0], [1, -1], [0, 0], [float("nan"), 1]])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, weights: list[float]) -> None:
    paths = write_models(tmp_path, 2)
    with pytest.raises(CheckpointError, match="weights"):
        merge(paths, tmp_path / "out", weights)


def test_an_input_may_be_the_output(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 2)
    merge(paths, tmp_path / "soup.safetensors")
    merge(paths, paths[0])
    assert paths[0].read_bytes() == (tmp_path / "soup.safetensors").read_bytes()
    with pytest.raises(CheckpointError):
        merge([*paths, tmp_path / "absent"], paths[0])
    assert paths[0].read_bytes() == (tmp_path / "soup.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_what_ingredients_say_alike_the_soup_says_too(tmp_path: Path) -> None:
    model = build_model("small_cnn", 3, channels=1)
    for number in range(2):
        metadata = CheckpointMetadata(
            backbone="small_cnn", channels=1, size=8, mean=(0.3,), std=(0.4,), class_names=("a", "b", "c"),
            train_counts=(3, 2, 1), stage="finetune", lineage={"subset": str(number)},
        )  # fmt: skip
        save_checkpoint(model, tmp_path / str(number), metadata)
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    _, found = load_checkpoint(tmp_path / "out")
    assert found.class_names == ("a", "b", "c")
    assert found.lineage == {}


@pytest.mark.parametrize(
    "header", ["[1]", '{"w": {}}', '{"w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 4]}}']
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"1234")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        merge([tmp_path / "a"], tmp_path / "out")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder, expected a safetensors file"):
        merge([tmp_path], tmp_path / "out")
    (tmp_path / "a").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        merge([tmp_path / "a"], tmp_path / "out")
    with pytest.raises(CheckpointError, match="does not exist"):
        merge([tmp_path / "absent"], tmp_path / "out")

"""Several processes train as one would. Two and three real processes on the CPU, joined by gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import ddp
import pytest
import torch
from conftest import write_digits
from safetensors.torch import load_file, save_file
from torch import nn

from btm_core.config import InputConfig, PretrainConfig
from btm_core.config.methods import check_processes
from btm_core.data.dataset import LabelledImages
from btm_core.data.images import ImageFiles
from btm_core.data.shares import Share
from btm_core.distributed import Group
from btm_core.errors import ConfigError
from btm_core.losses import mixup
from btm_core.methods import stage1_trainer
from btm_core.models import build_model, trainable_modules
from btm_core.seeding import torch_generator

CPU = torch.device("cpu")


def run_together(folder: Path, processes: int) -> Path:
    """Start the processes of ddp.py as torchrun would, and wait for them."""
    first = ddp.trainer(ddp.without_batchnorm(), None, batch_size=17)
    next(iter(first))
    save_file({name: tensor.clone() for name, tensor in first.state_dict().items()}, folder / "state-of-one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    root = str(Path(__file__).parents[2])
    shared |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    started = [
        subprocess.Popen([sys.executable, ddp.__file__, str(folder)], env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(processes)
    ]
    try:
        assert [process.wait(200) for process in started] == [0] * processes
    finally:
        for process in started:
            process.kill()
            process.wait()
    return folder


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("together")
    return run_together(folder, request.param), request.param


def facts(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"facts-{rank}").read_text())
    return found


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ddp.SCENARIOS)
def test_several_processes_train_as_one_would(together: tuple[Path, int], name: str) -> None:
    """24 steps and more; the last batch of an epoch is uneven, or too small to be shared."""
    folder, _ = together
    weights, losses = ddp.train(None, name)
    start = ddp.without_batchnorm().state_dict()
    assert any(not torch.allclose(start[key], weights[key], atol=1e-3) for key in start)
    assert_close(load_file(folder / f"{name}-0"), weights)
    assert facts(folder)[name] == pytest.approx(losses, abs=1e-6)


@pytest.mark.parametrize("name", [*ddp.SCENARIOS, "batchnorm"])
def test_all_processes_end_with_the_same_weights(together: tuple[Path, int], name: str) -> None:
    folder, processes = together
    first = load_file(folder / f"{name}-0")
    for rank in range(1, processes):
        other = load_file(folder / f"{name}-{rank}")
        parameters = [key for key in first if "running" not in key]  # BN's buffers are rank 0's
        assert parameters
        assert all(torch.equal(first[key], other[key]) for key in parameters)
        assert facts(folder, rank)[name] == facts(folder)[name]


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(together: tuple[Path, int]) -> None:
    folder, _ = together
    whole, resumed = load_file(folder / "batchnorm-0"), load_file(folder / "batchnorm-resumed-0")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_several_processes_take_over_from_one(together: tuple[Path, int]) -> None:
    folder, _ = together
    model = ddp.without_batchnorm()
    list(ddp.trainer(model, None, batch_size=17))
    assert_close(load_file(folder / "taken-over-0"), model.state_dict())


def test_processes_that_went_apart_notice(together: tuple[Path, int]) -> None:
    folder, processes = together
    ranks = list(range(processes))
    for rank in ranks:
        assert facts(folder, rank)["disagreement"] == f"the processes do not agree on their rank: {ranks}, by rank"


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("images", [1, 2, 3, 5, 16, 17, 128])
def test_shares_make_up_the_batch(processes: int, images: int) -> None:
    shares = [Share.of(rank, processes, images) for rank in range(processes)]
    assert sum(share.weight for share in shares) == pytest.approx(images)
    sizes = [share.stop - share.start for share in shares]
    assert min(sizes) >= min(2, images)
    assert max(sizes) - min(sizes) <= 1
    if images >= 2 * processes:
        assert [i for share in shares for i in range(share.start, share.stop)] == list(range(images))
    else:
        assert sizes == [images] * processes


@pytest.mark.parametrize("files", [False, True])
def test_an_image_is_augmented_as_by_one_process(tmp_path: Path, files: bool) -> None:
    data = ddp.digits()
    if files:
        root = write_digits(tmp_path)
        paths = tuple(str(path.relative_to(root)) for path in sorted(root.rglob("*.png")))
        view = InputConfig(size=16, channels=1, mean=(0.3,), std=(0.4,), augmentation="random-resized-crop")
        data = LabelledImages(ImageFiles(str(root), paths), torch.arange(len(paths)), view)
    order = torch.randperm(39, generator=torch_generator("order"))
    whole = list(data.train_batches(order, 13, CPU, "s", 0))
    parts = [list(data.train_batches(order, 13, CPU, "s", 0, share=Group(r, 3, False).share)) for r in range(3)]
    assert [len(y) for _, y in parts[0]] == [4, 4, 4]
    for number, ((x,), y) in enumerate(whole):
        assert torch.equal(x, torch.cat([part[number][0][0] for part in parts]))
        assert torch.equal(y, torch.cat([part[number][1] for part in parts]))


def test_mixup_of_a_share_has_the_lambda_of_the_batch() -> None:
    x = torch.arange(10.0)[:, None]
    generators = [torch_generator("m") for _ in range(3)]
    for _ in range(2):  # the generators stay in step
        _, _, lam = mixup(x, 0.4, generators[0])
        for rank in range(2):
            share = Share.of(rank, 2, 10)
            mine = share.rows(x)
            mixed, partner, own = mixup(mine, 0.4, generators[rank + 1], share)
            assert own == lam
            assert sorted(partner.tolist()) == list(range(5))
            assert torch.equal(mixed, lam * mine + (1 - lam) * mine[partner])


@pytest.mark.parametrize("method", ["paco", "gpaco", "otmix", "pascl"])
def test_a_method_of_one_gpu_is_refused(method: str) -> None:
    config = PretrainConfig.model_validate({"method": method})
    with pytest.raises(ConfigError, match=f"pretrain.method {method} trains on one GPU; set BTM_PRETRAIN_GPUS=1"):
        stage1_trainer(
            build_model("small_cnn", 4, 1),
            ddp.digits(),
            torch.tensor(ddp.COUNTS),
            config,
            seed=0,
            group=Group(0, 2, False),
        )
    check_processes(config.method, 1)


def test_synchronous_batchnorm_keeps_names_parts_and_values() -> None:
    """It does not run on the CPU; that it becomes part of the model does not need a GPU."""
    model = build_model("resnet20", 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = [len(trainable_modules(model, part)) for part in ("last_block_and_head", "last_block_head_and_norms")]
    Group(0, 2, sync_batchnorm=True).prepare(model)
    kinds = {type(module) for module in model.modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert parts == [
        len(trainable_modules(model, part)) for part in ("last_block_and_head", "last_block_head_and_norms")
    ]

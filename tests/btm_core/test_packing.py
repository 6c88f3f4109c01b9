"""Packs: what trains beside others ends where it would alone."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from btm_core.config import FinetuneConfig, InputConfig, PostTrainConfig, TrainConfig
from btm_core.data.dataset import LabelledImages
from btm_core.data.images import LooseImages, PackedPixels
from btm_core.errors import NonFiniteLossError
from btm_core.losses import BalancedSoftmax
from btm_core.models import build_model, trainable_modules
from btm_core.objectives import Supervised
from btm_core.packing import PackTrainer, can_pack, training_bytes
from btm_core.post_training import post_trainer
from btm_core.training import Trainer, part_trainer

VIEW = InputConfig(size=16, augmentation="crop-flip", crop_padding=2, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CONFIG = FinetuneConfig(epochs=3, batch_size=16, lr=0.02)
CLASSES = 4


def images(number: int, count: int = 40) -> LabelledImages:
    """Noise with a bright patch, whose place is the class: something to learn."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.arange(count) % CLASSES
    pixels = torch.randint(0, 100, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 150
    return LabelledImages(PackedPixels(pixels), labels, VIEW)


class Double(nn.Module):
    """A network in double precision, where rounding does not hide what is wrong."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.double())
        return logits


def trainer(number: int, part: str = "all", backbone: str = "small_cnn", count: int = 40, **config: Any) -> Trainer:
    model, own = build_model(backbone, CLASSES, 3, seed=7), CONFIG.model_copy(update=config)
    objective = Supervised(
        Double(model), nn.CrossEntropyLoss(), trainable_modules(model, part), mixup_alpha=own.mixup_alpha
    )
    return Trainer(objective, images(number, count), own, seed=("finetune", 0, number))


def weights(one: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in one.state_dict().items()}


def run(trainers: Sequence[Trainer]) -> list[list[float]]:
    return [[record.loss for record in records] for records in zip(*PackTrainer(trainers), strict=True)]


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet20"])
@pytest.mark.parametrize("config", [{}, {"mixup_alpha": 1.0}, {"optimizer": "adam", "lr": 1e-3}, {"nesterov": True}])
def test_a_member_ends_where_it_would_alone(backbone: str, config: dict[str, Any]) -> None:
    alone = [trainer(number, backbone=backbone, **config) for number in range(3)]
    start = weights(alone[0])
    losses = [[record.loss for record in one] for one in alone]
    packed = [trainer(number, backbone=backbone, **config) for number in range(3)]
    assert run(packed) == [pytest.approx(own, rel=1e-4) for own in losses]
    for found, expected in zip(packed, alone, strict=True):
        assert_near(weights(found), weights(expected))
    name = "module.network.network.head.weight"
    moved = (weights(packed[0])[name] - start[name]).abs().max()
    apart = (weights(packed[0])[name] - weights(packed[1])[name]).abs().max()
    assert min(moved, apart) > 1e-3  # they did train, each on its own images


@pytest.mark.parametrize("part", ["head", "last_block_and_head"])
def test_what_does_not_train_stays_as_it_is_to_the_last_bit(part: str) -> None:
    packed, alone = [trainer(number, part) for number in range(2)], trainer(1, part)
    before = weights(alone)
    list(alone)
    run(packed)
    assert_near(weights(packed[1]), weights(alone))
    frozen = [name for name, tensor in weights(alone).items() if name in before and torch.equal(before[name], tensor)]
    assert "module.network.network.backbone.conv1.1.running_mean" in frozen
    assert all(torch.equal(weights(packed[0])[name], before[name]) for name in frozen)


def layer_types(network: nn.Module, seen: dict[str, list[torch.dtype]]) -> None:
    """Note what type each layer puts out."""
    for name, module in network.named_modules():
        if name and not list(module.children()):

            def note(module: nn.Module, given: Any, out: Tensor, name: str = name) -> None:
                seen.setdefault(name, []).append(out.dtype)

            module.register_forward_hook(note)


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet20"])
def test_in_bfloat16_a_pack_computes_each_layer_as_a_member_would_alone(backbone: str) -> None:
    """Under vmap autocast leaves layers in float32, which would be another computation."""

    def one(number: int) -> Trainer:
        network = build_model(backbone, CLASSES, 3, seed=7)
        return part_trainer(network, "all", images(number), CONFIG, seed=("f", number), precision="bfloat16")

    alone, packed = one(0), [one(0), one(1)]
    types: list[dict[str, list[torch.dtype]]] = [{}, {}]
    start = weights(alone)
    layer_types(alone.objective.network, types[0])  # type: ignore[arg-type]
    pack = PackTrainer(packed)
    layer_types(pack._network, types[1])
    losses = [record.loss for record in alone]
    assert [records[0].loss for records in pack] == pytest.approx(losses, rel=0.02)
    assert types[0] == types[1]
    assert {dtype for seen in types[0].values() for dtype in seen} == {torch.bfloat16}
    found, expected = weights(packed[0]), weights(alone)
    assert all(tensor.dtype == expected[name].dtype for name, tensor in found.items())
    name = "module.network.head.weight"
    apart, moved = (found[name] - expected[name]).norm(), (expected[name] - start[name]).norm()
    assert apart < 0.3 * moved


def test_members_know_nothing_of_each_other() -> None:
    """Whoever else is in a pack of this size: not one bit of a member depends on it."""
    first = [trainer(number) for number in (0, 1)]
    second = [trainer(number) for number in (0, 2)]
    run(first)
    run(second)
    assert all(torch.equal(tensor, weights(second[0])[name]) for name, tensor in weights(first[0]).items())
    others = [weights(one)["module.network.network.head.weight"] for one in (first[1], second[1])]
    assert not torch.equal(*others)


@pytest.mark.parametrize("config", [{}, {"optimizer": "adam", "lr": 1e-3}])
def test_a_state_saved_in_a_pack_goes_on_alone_and_the_other_way_round(config: dict[str, Any]) -> None:
    expected = trainer(1, **config)
    list(expected)

    packed = [trainer(number, **config) for number in range(2)]
    epochs = iter(PackTrainer(packed))
    next(epochs)
    alone = trainer(1, **config)
    alone.load_state_dict(weights(packed[1]))
    assert alone.epoch == 1
    list(alone)
    assert_near(weights(alone), weights(expected))

    begun = [trainer(number, **config) for number in range(2)]
    for one in begun:
        next(iter(one))
    states = [weights(one) for one in begun]
    resumed = [trainer(number, **config) for number in range(2)]
    for one, state in zip(resumed, states, strict=True):
        one.load_state_dict(state)
    assert len(run(resumed)[0]) == 2
    assert_near(weights(resumed[1]), weights(expected))


def with_loss(number: int, loss: nn.Module) -> Trainer:
    network = Double(build_model("small_cnn", CLASSES, 3, seed=7))
    return Trainer(Supervised(network, loss), images(number), CONFIG, seed=("finetune", 0, number))


def further(number: int) -> Trainer:
    one = trainer(number)
    next(iter(one))
    return one


OTHERS: dict[str, Callable[[], Trainer]] = {
    "another recipe": lambda: trainer(1, lr=0.01),
    "more images": lambda: trainer(1, count=44),
    "another epoch": lambda: further(1),
    "a loss with state": lambda: with_loss(1, BalancedSoftmax([4, 3, 2, 1])),
    "another smoothing": lambda: with_loss(1, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "another loss": lambda: with_loss(1, nn.MultiMarginLoss()),
    "another part": lambda: trainer(1, part="head"),
    "another network": lambda: trainer(1, backbone="resnet20"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_only_what_is_alike_can_be_packed(other: str) -> None:
    assert can_pack([trainer(0), trainer(1)])
    assert not can_pack([trainer(0), OTHERS[other]()])


def test_losses_are_alike_by_all_their_settings() -> None:
    """Down to those of the losses that a loss is made of; what holds a tensor is never packed."""

    class Mean(nn.Module):
        def __init__(self, smoothing: float, held: object = None):
            super().__init__()
            self.parts = nn.ModuleList([nn.CrossEntropyLoss(label_smoothing=smoothing), nn.MultiMarginLoss(p=2)])
            self._held = held

    assert can_pack([with_loss(0, Mean(0.1)), with_loss(1, Mean(0.1))])
    assert not can_pack([with_loss(0, Mean(0.1)), with_loss(1, Mean(0.2))])
    assert not can_pack([with_loss(0, Mean(0.1, "a")), with_loss(1, Mean(0.1, "b"))])
    for loss in (Mean(0.1, torch.ones(CLASSES)), nn.CrossEntropyLoss(torch.ones(CLASSES))):
        assert not can_pack([with_loss(0, loss), with_loss(1, loss)])


def test_a_loss_that_is_no_number_is_refused() -> None:
    members = [trainer(0), trainer(1)]
    with torch.no_grad():
        next(iter(members[1].objective.parameters())).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="the loss became nan in epoch 1 of 3"):
        run(members)


class _NoWaiting(TorchDispatchMode):
    """Stand for a GPU with the device "meta", and refuse what would make the CPU wait for one.

    That is a number or a size that depends on values, and a copy that waits until it is there. What it cannot see is
    where a copy starts: from memory that is not pinned CUDA may wait all the same, above some 64 kB. For images,
    `test_a_gpu_takes_images_from_pinned_memory` looks at that.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_device = any(isinstance(value, Tensor) and value.is_meta for value in args)
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten._unique2):
            assert not on_device, f"{func} makes the CPU wait"
        if func.overloadpacket is torch.ops.aten._to_copy:
            target = kwargs.get("device") or args[0].device
            assert torch.device(target) == args[0].device or kwargs.get("non_blocking"), f"{func} waits for its copy"
        return func(*args, **kwargs)


META = torch.device("meta")


def on_meta(objective: Supervised, data: LabelledImages, config: TrainConfig, **more: Any) -> Trainer:
    return Trainer(objective, data, config, seed=("finetune", 0), device=META, **more)


@pytest.mark.parametrize("packed", [False, True])
def test_no_step_of_a_fine_tune_waits_for_the_gpu(packed: bool) -> None:
    config = CONFIG.model_copy(update={"mixup_alpha": 1.0})
    networks = [build_model("small_cnn", CLASSES, 3, seed=7) for _ in range(2)]
    members = [
        on_meta(Supervised(network, nn.CrossEntropyLoss(), mixup_alpha=1.0), images(number), config)
        for number, network in enumerate(networks)
    ]
    pack = PackTrainer(members)
    draws = [one.draws() for one in members]
    steps = 0
    with _NoWaiting():
        for first, second in zip(members[0].batches(), members[1].batches(), strict=True):
            assert first.x.is_meta
            if packed:
                pack._step([first, second], draws)
            else:
                members[0]._step(first, draws[0])
            steps += 1
    assert steps == 3


@pytest.mark.parametrize("method", ["mislas", "balanced_softmax", "gml", "h2t"])
def test_no_step_of_post_training_waits_for_the_gpu(method: str) -> None:
    config = PostTrainConfig.model_validate({"method": method, "batch_size": 16, "mixup_alpha": 0.5})
    network = build_model("small_cnn", CLASSES, 3, seed=7)
    _, one = post_trainer(network, images(0), [10] * CLASSES, config, seed=("p",), device=META)
    draws = one.draws()
    with _NoWaiting():
        for batch in one.batches():
            one._step(batch, draws)


def test_what_waits_is_noticed() -> None:
    there = torch.zeros(3, device=META)
    with pytest.raises(AssertionError, match="waits for its copy"), _NoWaiting():
        torch.zeros(3).to(META)
    with _NoWaiting():
        torch.zeros(3).to(META, non_blocking=True)
    with pytest.raises(AssertionError, match="makes the CPU wait"), _NoWaiting():
        torch.unique(there)


class _Pinned(TorchDispatchMode):
    """Note what is pinned. Without a GPU there is no pinned memory, and the copy to CUDA that follows is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten._pin_memory:
            self.shapes.append(args[0].shape)
            if not torch.cuda.is_available():
                return args[0]
        return func(*args, **(kwargs or {}))


def test_a_gpu_takes_images_from_pinned_memory() -> None:
    packed = PackedPixels(torch.zeros(5, 3, 16, 16, dtype=torch.uint8))
    loose = LooseImages(("a",), (np.zeros((16, 16, 3), np.uint8),))
    for source, count in ((packed, 5), (loose, 1)):
        refused = pytest.raises((RuntimeError, AssertionError), match=r"NVIDIA|CUDA")
        with _Pinned() as pinned, nullcontext() if torch.cuda.is_available() else refused:
            source.batch(VIEW, None, device=torch.device("cuda"))
        assert pinned.shapes == [(count, 3, 16, 16)]


def test_memory_is_estimated_by_batch_and_network() -> None:
    small, large = trainer(0, batch_size=10), trainer(0, batch_size=20)
    weights_alone = 4 * sum(p.nbytes for p in small.objective.parameters())
    assert training_bytes(large) - weights_alone == 2 * (training_bytes(small) - weights_alone)
    assert training_bytes(trainer(0, backbone="resnet20")) > training_bytes(trainer(0))
    # The first convolution of small_cnn puts out 32 maps of 16 x 16 numbers: 2 x 8 bytes each, for 10 images.
    assert training_bytes(small) > 2 * 8 * 10 * 32 * 16 * 16

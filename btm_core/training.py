"""The training loop: one generator that yields a record an epoch; the caller logs it and saves the state.

B images a batch, C classes.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from btm_core.config import TrainConfig
from btm_core.data.dataset import LabelledImages
from btm_core.errors import NonFiniteLossError
from btm_core.losses import mixup
from btm_core.models import Classifier, trainable_modules
from btm_core.optim import learning_rate, sgd
from btm_core.seeding import torch_generator

__all__ = ["EpochRecord", "Trainer", "part_trainer", "shuffled"]

Order = Callable[[int], Tensor]


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did: `epoch` counts from 1, `loss` is the mean over its images, `seconds` is wall time."""

    epoch: int
    epochs: int
    lr: float
    loss: float
    images: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def shuffled(count: int, *seed: int | str) -> Order:
    """Return the order of each epoch: a permutation of `count` positions, named by seed and epoch."""
    return lambda epoch: torch.randperm(count, generator=torch_generator(*seed, epoch, "order"))


class Trainer:
    """Trains parameters of a module; iterate over it for one record an epoch.

    Everything random in epoch e is named by (seed, e), so a trainer restored from `state_dict` after any epoch goes on
    as if it had never stopped, bit for bit on a CPU.

    Arguments:
    - module: maps inputs (B, K, S, S) to logits (B, C).
    - groups: (parameters, factor on the learning rate); what is not named gets no gradient.
    - data: training images; `order` gives the positions of each epoch.
    - loss: called as loss(logits, targets).
    - seed: names the randomness of this stage.
    - set_mode: puts the module into its training mode before each epoch; `module.train()` unless given.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Iterable[tuple[Iterable[nn.Parameter], float]],
        data: LabelledImages,
        config: TrainConfig,
        loss: nn.Module,
        *,
        seed: tuple[int | str, ...],
        order: Order | None = None,
        precision: str = "float32",
        device: torch.device | None = None,
        set_mode: Callable[[], Any] | None = None,
    ):
        self.device = device or torch.device("cpu")
        self.module, self.loss = module.to(self.device), loss.to(self.device)
        self.data, self.config, self.seed, self.precision = data, config, seed, precision
        self.order = order or shuffled(len(data), *seed)
        self.set_mode = set_mode or module.train
        if precision == "bfloat16":
            module.to(memory_format=torch.channels_last)
        named = [(list(parameters), factor) for parameters, factor in groups]
        module.requires_grad_(False)
        for parameters, _ in named:
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.optimizer = sgd(named, config)
        self.epoch = 0

    def __iter__(self) -> Iterator[EpochRecord]:
        while self.epoch < self.config.epochs:
            yield self._train_epoch()

    def _train_epoch(self) -> EpochRecord:
        start = time.perf_counter()
        lr = learning_rate(self.config, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.set_mode()
        mixing = torch_generator(*self.seed, self.epoch, "mixup")
        total, images = torch.zeros((), device=self.device, dtype=torch.float64), 0
        order = self.order(self.epoch)
        for x, y in self.data.train_batches(order, self.config.batch_size, self.device, *self.seed, self.epoch):
            loss = self._step(x, y, mixing)
            total += loss * len(y)
            images += len(y)
        mean = float(total) / images
        self.epoch += 1
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the loss became {mean} in epoch {self.epoch} of {self.config.epochs} at learning rate {lr:.3g}; "
                "lower lr, or check the images and mean/std of data.input"
            )
        return EpochRecord(self.epoch, self.config.epochs, lr, mean, images, time.perf_counter() - start)

    def _step(self, x: Tensor, y: Tensor, mixing: torch.Generator) -> Tensor:
        """One step of SGD on inputs (B, K, S, S) and targets (B,); returns the loss, a detached scalar."""
        low = self.precision == "bfloat16"
        if low:
            x = x.contiguous(memory_format=torch.channels_last)
        partner, lam = None, 1.0
        if self.config.mixup_alpha > 0:
            x, partner, lam = mixup(x, self.config.mixup_alpha, mixing)
        with torch.autocast(self.device.type, torch.bfloat16) if low else nullcontext():
            logits = self.module(x)
        logits = logits.float()
        loss: Tensor = self.loss(logits, y)
        if partner is not None:
            loss = lam * loss + (1 - lam) * self.loss(logits, y[partner])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a restart needs, as flat tensors: the module, the momentum, the epochs done."""
        state = {f"module.{name}": tensor.detach() for name, tensor in self.module.state_dict().items()}
        for number, slot in self.optimizer.state_dict()["state"].items():
            if slot.get("momentum_buffer") is not None:
                state[f"momentum.{number}"] = slot["momentum_buffer"]
        return state | {"epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises ValueError, and changes nothing, if it is of another module."""
        wanted = {f"module.{name}": tensor.shape for name, tensor in self.module.state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items() if name.startswith("module.")}
        if "epoch" not in state or found != wanted:
            raise ValueError("the saved state is of another module")
        self.module.load_state_dict({k.removeprefix("module."): v for k, v in state.items() if k.startswith("module.")})
        saved = self.optimizer.state_dict()
        saved["state"] = {
            int(name.removeprefix("momentum.")): {"momentum_buffer": tensor}
            for name, tensor in state.items()
            if name.startswith("momentum.")
        }
        self.optimizer.load_state_dict(saved)
        self.epoch = int(state["epoch"])


def part_trainer(
    model: Classifier,
    part: str,
    data: LabelledImages,
    config: TrainConfig,
    *,
    seed: tuple[int | str, ...],
    precision: str = "float32",
    device: torch.device | None = None,
) -> Trainer:
    """Return a cross-entropy trainer of one part of a classifier: all, backbone, head, or last_block_and_head.

    The rest is frozen, its BN in evaluation mode: not one bit of it changes.
    """
    modules = trainable_modules(model, part)

    def set_mode() -> None:
        model.eval()
        for module in modules:
            module.train()

    parameters = [parameter for module in modules for parameter in module.parameters()]
    return Trainer(
        model,
        [(parameters, 1.0)],
        data,
        config,
        nn.CrossEntropyLoss(),
        seed=seed,
        precision=precision,
        device=device,
        set_mode=set_mode,
    )

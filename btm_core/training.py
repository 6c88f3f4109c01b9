"""The training loop: one generator that yields a record an epoch; the caller logs it and saves the state.

B images a batch, C classes.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from btm_core.config import TrainConfig
from btm_core.data.dataset import LabelledImages, TrainingData, in_batches
from btm_core.distributed import Group
from btm_core.errors import NonFiniteLossError
from btm_core.models import Classifier
from btm_core.objectives import Batch, Objective, part_objective
from btm_core.optim import learning_rate, optimizer
from btm_core.seeding import torch_generator

__all__ = ["Clock", "EpochRecord", "Trainer", "part_trainer", "shuffled"]

Order = Callable[[int], Tensor]
Item = TypeVar("Item")


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did: `epoch` counts from 1, `loss` is the mean over its images.

    `seconds` is wall time, of which `waited` went by until the next images were there. Where several train together
    (`btm_core.packing`), each has its part of both.
    """

    epoch: int
    epochs: int
    lr: float
    loss: float
    images: int
    seconds: float
    waited: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


class Clock:
    """Wall time since it was made, and how much of that was spent waiting for data."""

    def __init__(self) -> None:
        self._start, self.waited = time.perf_counter(), 0.0

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, and count the time until each is there."""
        asked = time.perf_counter()
        for item in items:
            self.waited += time.perf_counter() - asked
            yield item
            asked = time.perf_counter()

    def seconds(self) -> float:
        """Return seconds since the start."""
        return time.perf_counter() - self._start


def shuffled(count: int, *seed: int | str) -> Order:
    """Return the order of each epoch: a permutation of `count` positions, named by seed and epoch."""
    return lambda epoch: torch.randperm(count, generator=torch_generator(*seed, epoch, "order"))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x  # features have no such layout


class Trainer:
    """Trains what an objective names; iterate over it for one record an epoch.

    Everything random in epoch e is named by (seed, e), so a trainer restored from `state_dict` after any epoch goes on
    as if it had never stopped, bit for bit on a CPU.

    Arguments:
    - objective: the networks and the loss.
    - data: training images, or features of them; `order` gives the positions of each epoch, (M,).
    - seed: names the randomness of this stage.
    - companion: the order of a second stream, as long as the first, for objectives that look at two at once.
    - group: the processes that train together, each with its share of every batch. The objective's loss must be a mean
      over images, of their standard views: `btm_core.config.methods` says which methods' are.
    """

    def __init__(
        self,
        objective: Objective,
        data: TrainingData,
        config: TrainConfig,
        *,
        seed: tuple[int | str, ...],
        order: Order | None = None,
        companion: Order | None = None,
        device: torch.device | None = None,
        group: Group | None = None,
    ):
        self.device, self.group = device or torch.device("cpu"), group
        self.objective = objective.to(self.device)
        # Stronger views are shown by the CPU, image by image.
        self.data = data.to(self.device) if set(objective.views) == {"standard"} else data
        self.config, self.seed = config, seed
        self.order, self.companion = order or shuffled(len(data), *seed), companion
        if objective.precision == "bfloat16":
            objective.to(memory_format=torch.channels_last)
        named = [(list(parameters), factor) for parameters, factor in objective.groups()]
        objective.requires_grad_(False)
        for parameters, _ in named:
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.optimizer = optimizer(named, config)
        self.loss_of: nn.Module = objective if group is None else group.wrap(objective)
        self.epoch = 0

    def __iter__(self) -> Iterator[EpochRecord]:
        if self.group is not None:
            self.group.check_equal("the epochs done", self.epoch)
        while self.epoch < self.config.epochs:
            yield self._train_epoch()

    def _train_epoch(self) -> EpochRecord:
        self.begin_epoch()
        draws = self.draws()
        total, images = torch.zeros((), device=self.device, dtype=torch.float64), 0
        clock = Clock()
        for batch in clock.waiting(self.batches()):
            loss = self._step(batch, draws)
            total += loss * (len(batch.y) if batch.share is None else batch.share.weight)
            images += len(batch.y) if batch.share is None else batch.share.whole
        mean = float(total if self.group is None else self.group.total(total)) / images
        return self.end_epoch(mean, images, clock.seconds(), clock.waited)

    def begin_epoch(self) -> None:
        """Set the epoch's learning rate, and the networks' mode."""
        lr = learning_rate(self.config, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.objective.set_mode()
        self.objective.begin_epoch(self.epoch, self.config.epochs)

    def draws(self) -> torch.Generator:
        """Return the randomness of the epoch's losses."""
        return torch_generator(*self.seed, self.epoch, "mixup")

    def end_epoch(self, mean: float, images: int, seconds: float, waited: float) -> EpochRecord:
        """Count the epoch, whose mean loss was this. Raises NonFiniteLossError if it is no number."""
        lr = learning_rate(self.config, self.epoch)
        self.epoch += 1
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the loss became {mean} in epoch {self.epoch} of {self.config.epochs} at learning rate {lr:.3g}; "
                "lower lr, or check the images and mean/std of data.input"
            )
        return EpochRecord(self.epoch, self.config.epochs, lr, mean, images, seconds, waited)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that is next, with those of the second stream beside them."""
        size, views = self.config.batch_size, self.objective.views
        seed = (*self.seed, self.epoch)
        if self.group is not None:
            yield from self._shares(self.group)
            return
        batches = self.data.train_batches(self.order(self.epoch), size, self.device, *seed, views=views)
        if self.companion is None:
            for (x, *others), y in batches:
                yield Batch(x, y, tuple(others))
            return
        seconds = self.data.train_batches(self.companion(self.epoch), size, self.device, *seed, "companion")
        for ((x, *others), y), ((second,), labels) in zip(batches, seconds, strict=True):
            yield Batch(x, y, tuple(others), Batch(second, labels))

    def _shares(self, group: Group) -> Iterator[Batch]:
        """Yield this process's share of each of the epoch's batches."""
        size, order = self.config.batch_size, self.order(self.epoch)
        seed = (*self.seed, self.epoch)
        batches = self.data.train_batches(order, size, self.device, *seed, share=group.share)
        for positions, ((x,), y) in zip(in_batches(order, size), batches, strict=True):
            yield Batch(x, y, share=group.share(len(positions)))

    def _step(self, batch: Batch, draws: torch.Generator) -> Tensor:
        """One step of the optimizer; returns the loss, a detached scalar."""
        if self.objective.precision == "bfloat16":
            batch = batch.map_inputs(_channels_last)
        loss: Tensor = self.loss_of(batch, draws)
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel takes the plain mean over processes: each counts by its images instead.
        share = batch.share
        weighed = loss if share is None or self.group is None else loss * (share.weight * self.group.size / share.whole)
        weighed.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a restart needs, as flat tensors: networks, buffers, the optimizer, the epochs done."""
        state = {f"module.{name}": tensor.detach() for name, tensor in self.objective.state_dict().items()}
        for number, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{name}": slot for name, slot in slots.items() if slot is not None}
        return state | {"epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises ValueError, and changes nothing, if it is of another module."""
        wanted = {f"module.{name}": tensor.shape for name, tensor in self.objective.state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items() if name.startswith("module.")}
        if "epoch" not in state or found != wanted:
            raise ValueError("the saved state is of another module")
        module = {name.removeprefix("module."): t for name, t in state.items() if name.startswith("module.")}
        self.objective.load_state_dict(module)
        saved = self.optimizer.state_dict()
        saved["state"] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, number, slot = name.split(".")
                saved["state"].setdefault(int(number), {})[slot] = tensor
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
    objective = part_objective(model, part, mixup_alpha=config.mixup_alpha, precision=precision)
    return Trainer(objective, data, config, seed=seed, device=device)

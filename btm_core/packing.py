"""Packs: several networks of one architecture trained at once, each on its own images, as if it were alone.

A small network leaves a GPU idle between its kernels. S of them, stacked, take the kernels of one (torch.func.vmap:
convolutions become grouped convolutions). Nothing passes between members: each has its own weights, BN statistics,
momentum, order of images and augmentation, and ends where it would alone, but for rounding, since sums run in another
order. So a pack is a way of running, and no part of what a result is (docs/log.md has the differences measured).

S networks, B images a batch, C classes.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from btm_core.objectives import Batch, Supervised, at_least_float32
from btm_core.optim import learning_rate, optimizer
from btm_core.training import Clock, EpochRecord, Trainer

__all__ = ["PackTrainer", "can_pack", "training_bytes"]


def can_pack(trainers: Sequence[Trainer]) -> bool:
    """Whether trainers can train together: one recipe, loss and architecture, the same epoch, as many images each."""
    for one in trainers:
        objective = one.objective
        if type(objective) is not Supervised or _settings(objective.loss) is None or one.companion or one.group:
            return False
    alike = [(_shape(one), one.config, one.epoch, len(one.data), one.device) for one in trainers]
    return alike.count(alike[0]) == len(trainers)


def _shape(trainer: Trainer) -> tuple[object, ...]:
    """Return what is stacked of a trainer, shapes of all tensors and which of them train, and how it computes."""
    objective = cast(Supervised, trainer.objective)
    tensors = {name: tensor.shape for name, tensor in objective.state_dict().items()}
    trained = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
    loss = _settings(objective.loss)
    return str(objective.network), tensors, trained, loss, objective.precision, objective.mixup_alpha


def _settings(loss: nn.Module) -> list[tuple[type, dict[str, object]]] | None:
    """Return type and settings of a loss and of what it is made of; None if it holds more than plain values.

    One loss computes for all members, so theirs have to be the same: a module's text does not tell all settings, and of
    tensors nobody could say so cheaply.
    """
    of_any_module = vars(nn.Module())
    found = [
        (type(part), {name: value for name, value in vars(part).items() if name not in of_any_module})
        for part in loss.modules()
    ]
    values = [value for _, settings in found for value in settings.values()]
    plain = all(isinstance(value, str | int | float | None) for value in values)
    return found if plain and not loss.state_dict() and not list(loss.buffers()) else None


class PackTrainer:
    """Trains S trainers at once; iterate over it for one list of S records an epoch.

    The trainers' weights, statistics and optimizer states become views of what is trained here. So after every epoch
    each of them is where it would be alone, and can be saved, restored, and go on by itself.

    Arguments:
    - members: trainers that `can_pack` accepts.
    """

    def __init__(self, members: Sequence[Trainer]):
        assert can_pack(members)
        self.members, self.config = list(members), members[0].config
        self.objectives = [cast(Supervised, one.objective) for one in members]
        self.template = self.objectives[0]
        self._network = copy.deepcopy(self.template.network)  # its code runs, with everybody's tensors
        self._lower = _in_bfloat16(self._network) if self.template.precision == "bfloat16" else frozenset()
        networks = [objective.network for objective in self.objectives]
        self._own = [dict(network.named_parameters()) | dict(network.named_buffers()) for network in networks]
        self._stacked = {name: _stacked([own[name] for own in self._own]) for name in self._own[0]}
        names = {id(tensor): name for name, tensor in self._own[0].items()}
        groups = [([names[id(p)] for p in parameters], factor) for parameters, factor in self.template.groups()]
        self._trained = [name for group, _ in groups for name in group]
        for name in self._trained:
            self._stacked[name].requires_grad_(True)
        self.optimizer = optimizer(
            [([self._stacked[n] for n in group], factor) for group, factor in groups], self.config
        )
        self._take_optimizer_states()

    def __iter__(self) -> Iterator[list[EpochRecord]]:
        while self.members[0].epoch < self.config.epochs:
            yield self._train_epoch()

    def _train_epoch(self) -> list[EpochRecord]:
        for member in self.members:
            member.begin_epoch()
        for module, like in zip(self._network.modules(), self.template.network.modules(), strict=True):
            module.training = like.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.members[0].epoch) * group["factor"]
        draws = [member.draws() for member in self.members]
        count = len(self.members)
        total, images = torch.zeros(count, device=self.members[0].device, dtype=torch.float64), 0
        clock = Clock()
        for batches in clock.waiting(zip(*(member.batches() for member in self.members), strict=True)):
            total += self._step(batches, draws) * len(batches[0].y)
            images += len(batches[0].y)
        self._give_optimizer_states()
        means = (total / images).tolist()
        share, waited = clock.seconds() / count, clock.waited / count
        return [one.end_epoch(mean, images, share, waited) for one, mean in zip(self.members, means, strict=True)]

    def _step(self, batches: Sequence[Batch], draws: Sequence[torch.Generator]) -> Tensor:
        """One step of every member's optimizer; returns their losses (S,), detached."""
        each = zip(self.objectives, batches, draws, strict=True)
        mixed = [objective.mixed(batch, generator) for objective, batch, generator in each]
        inputs, targets, partners, shares = zip(*mixed, strict=True)
        lam = torch.tensor(shares).to(inputs[0].device, non_blocking=True)
        x, y, others = torch.stack(inputs), torch.stack(targets), torch.stack(partners)
        losses: Tensor = vmap(self._loss)(self._stacked, x, y, others, lam)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]  # each reaches its own weights alone
        self.optimizer.step()
        return losses.detach()

    def _loss(self, tensors: dict[str, Tensor], x: Tensor, targets: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
        """Return one member's loss: x (B, K, S, S), targets and partners (B,)."""
        own = {name: tensor.bfloat16() if name in self._lower else tensor for name, tensor in tensors.items()}
        logits: Tensor = functional_call(self._network, own, (x,))
        return self.template.loss_of(at_least_float32(logits), targets, partners, lam)

    def _take_optimizer_states(self) -> None:
        """Stack what the members' optimizers know, after some epochs alone or from a saved state."""
        for name in self._trained:
            parameters = [own[name] for own in self._own]
            states = [one.optimizer.state.get(p, {}) for one, p in zip(self.members, parameters, strict=True)]
            self.optimizer.state[self._stacked[name]] = {
                # A counter of steps is the same for all of them.
                slot: torch.stack([state[slot] for state in states]) if value.shape == parameters[0].shape else value
                for slot, value in states[0].items()
                if value is not None
            }

    def _give_optimizer_states(self) -> None:
        for name in self._trained:
            whole = self._stacked[name]
            for number, (member, own) in enumerate(zip(self.members, self._own, strict=True)):
                member.optimizer.state[own[name]] = {
                    slot: value[number] if value.shape == whole.shape else value.clone()
                    for slot, value in self.optimizer.state[whole].items()
                    if value is not None
                }


def _in_bfloat16(network: nn.Module) -> frozenset[str]:
    """Have a network compute as autocast would have it: convolutions and linear layers in bfloat16, others as it comes.

    Autocast itself does not reach every layer under vmap. Returns the names of the tensors that are to be given in
    bfloat16; all others, and what is trained, stay float32.
    """
    lower = set()
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(lambda module, given: (given[0].bfloat16(),))
            lower |= {f"{name}.{tensor}" for tensor, _ in module.named_parameters(recurse=False)}
        elif isinstance(module, nn.BatchNorm2d):
            # Which sums in float32 in any case; under vmap it takes no statistics of another type than its input.
            module.register_forward_pre_hook(lambda module, given: (given[0].float(),))
            module.register_forward_hook(lambda module, given, out: out.bfloat16())
    return frozenset(lower)


def _stacked(own: Sequence[Tensor]) -> Tensor:
    """Return (S, ...), of which each of S tensors is from now on a view."""
    stacked = torch.stack([tensor.detach() for tensor in own])
    for tensor, row in zip(own, stacked, strict=True):
        tensor.data = row
    return stacked


def training_bytes(trainer: Trainer) -> int:
    """Estimate the memory that a trainer's network takes, in bytes: its layers' outputs twice, its weights four times.

    Each output has a gradient; each weight has one too, and a momentum, and is cast or copied now and then.
    """
    network, view = cast(Supervised, trainer.objective).network, trainer.data.config
    outputs: list[int] = []
    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(lambda module, given, out: outputs.append(out.nbytes)) for leaf in leaves]
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, view.channels, view.size, view.size, device=trainer.device))
    finally:
        for hook in hooks:
            hook.remove()
    images = min(len(trainer.data), trainer.config.batch_size)
    weights: int = sum(parameter.nbytes for parameter in network.parameters())
    return 2 * sum(outputs) * images + 4 * weights

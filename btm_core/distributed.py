"""One training by several processes, each with a share of every batch: DistributedDataParallel.

Batch size, learning rate, order and augmentation are those of one process; only sums are added in another order. What
differs besides:
- mixup: lambda is that of one process, but an image's partner comes from the same process's share.
- batch normalisation: on GPUs, SyncBatchNorm takes its statistics over the whole batch, as one process does. On the CPU
  there is none: each process normalises by its own share (a "ghost batch" of B / P images), and the buffers (running
  mean and variance) are those of process 0, sent to all before each step; they alone are saved.

P processes, B images a batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from btm_core.data.shares import Share

__all__ = ["Group", "joined"]


@dataclass(frozen=True)
class Group:
    """The processes that train together, as one of them sees it: `rank` counts from 0, `size` is P.

    - sync_batchnorm: whether BN statistics are those of the whole batch (GPUs only).
    """

    rank: int
    size: int
    sync_batchnorm: bool

    def share(self, images: int) -> Share:
        """Return this process's share of a batch."""
        return Share.of(self.rank, self.size, images)

    def prepare(self, model: nn.Module) -> None:
        """Convert the model's BN in place, if it is to be synchronous. Names and values of its state stay."""
        if self.sync_batchnorm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Return the objective with averaged gradients; process 0's parameters and buffers become everyone's."""
        on_cpu = next(objective.parameters()).device.type == "cpu"
        # DDP sorts gradients into buckets anew after the first step, and with three processes or more a sum's last bits
        # depend on its place in the bucket: a resumed training would differ. Looking for unused parameters keeps the
        # buckets as they are. On GPUs no bits are promised, and speed matters.
        return DistributedDataParallel(objective, find_unused_parameters=on_cpu)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, the same in each."""
        dist.all_reduce(values)
        return values

    def check_equal(self, what: str, value: int) -> None:
        """Raise RuntimeError in every process unless all have the same value."""
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        values = torch.zeros(self.size, dtype=torch.int64, device=device)
        values[self.rank] = value
        found = self.total(values).tolist()
        if len(set(found)) > 1:
            raise RuntimeError(f"the processes do not agree on {what}: {found}, by rank")


@contextmanager
def joined(device: torch.device, sync_batchnorm: bool | None = None) -> Iterator[Group]:
    """Join the processes that torchrun started with this one: by NCCL on GPUs, by gloo on the CPU.

    The group is left only if the block succeeds. After an error, leaving could wait for ever on a process that is gone:
    end this process, and torchrun ends the others.

    Arguments:
    - sync_batchnorm: None means on GPUs.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    yield Group(dist.get_rank(), dist.get_world_size(), on_gpu if sync_batchnorm is None else sync_batchnorm)
    dist.destroy_process_group()

"""What one of several processes has of a batch, so that P processes together see what one would.

P processes, B images a batch.
"""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Share"]


@dataclass(frozen=True)
class Share:
    """Images start .. stop - 1 of a batch of `whole`; `weight` is how many of them count as this process's own.

    Random numbers are drawn for the whole batch and each process keeps the rows of its images (`rows`): an image is
    augmented as it would be by one process, and the generators of all processes stay in step.
    """

    start: int
    stop: int
    whole: int
    weight: float

    @staticmethod
    def everything(images: int) -> "Share":
        """Return the share of one process that is alone: the batch."""
        return Share(0, images, images, images)

    @staticmethod
    def of(rank: int, processes: int, images: int) -> "Share":
        """Return a process's share: consecutive images, at most one more than any other process has.

        A batch of fewer than two images a process is done whole by each of them, and each counts for 1/P of it:
        batch normalisation needs two images, and a process without any could not take part in the step.
        """
        if images < 2 * processes:
            return Share(0, images, images, images / processes)
        start, stop = (images * r // processes for r in (rank, rank + 1))
        return Share(start, stop, images, stop - start)

    def rows(self, draws: Tensor, dim: int = 0) -> Tensor:
        """Return this share's rows of what was drawn for the whole batch."""
        return draws.narrow(dim, self.start, self.stop - self.start)

"""How much a worker keeps of what it has decoded."""

import shutil
import tempfile
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from btm_core.data.pixel_store import PixelStore

__all__ = ["pixel_store"]


@cache
def pixel_store(memory_gb: float | None, disk_gb: float | None, workers: int) -> "PixelStore":
    """Return this process's decoded images: the next order may be for the same.

    Arguments:
    - memory_gb, disk_gb: for all workers of this machine together; None is a quarter of what is free now.
    """
    import psutil

    from btm_core.data.pixel_store import PixelStore

    memory = psutil.virtual_memory().available / 4 if memory_gb is None else memory_gb * 1e9
    disk = shutil.disk_usage(tempfile.gettempdir()).free / 4 if disk_gb is None else disk_gb * 1e9
    return PixelStore(int(memory / workers), int(disk / workers))

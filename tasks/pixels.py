"""How much a worker keeps of what it has decoded."""

import shutil
import tempfile
from functools import cache
from pathlib import Path
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
    from btm_core.data.pixel_store import PixelStore
    from tasks.system import available_memory

    memory = available_memory() / 4 if memory_gb is None else memory_gb * 1e9
    disk = _free_disk() / 4 if disk_gb is None else disk_gb * 1e9
    return PixelStore(int(memory / workers), int(disk / workers))


def _free_disk() -> int:
    """Return the bytes that are free for temporary files; none where these are kept in memory (tmpfs)."""
    import psutil

    folder = Path(tempfile.gettempdir()).resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    nearest = next((mounts[parent] for parent in (folder, *folder.parents) if parent in mounts), "")
    return 0 if nearest in ("tmpfs", "ramfs") else shutil.disk_usage(folder).free

"""How busy the machine is: CPU, memory, and each GPU that this process may use.

Names and units are those of MLflow's own system metrics, so its pages show them as such. They are taken where the work
is done, which may be another machine than the flow's.
"""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Gpu", "SystemMonitor", "available_memory", "gpus"]

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 2.0
CONTROL_GROUP = Path("/sys/fs/cgroup")

Figures = dict[str, float]


class SystemMonitor:
    """Samples in a thread of its own; `read` returns the means since it was last called."""

    def __init__(self, seconds: float = SAMPLE_SECONDS):
        self._seconds = seconds
        self._gpus = gpu_readers()
        self._sums: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()
        psutil.cpu_percent()  # its first answer means nothing
        threading.Thread(target=self._run, name="system-metrics", daemon=True).start()

    def read(self) -> Figures:
        """Return mean percentages, megabytes and watts by name since the last call, or as they are now."""
        with self._lock:
            if not self._sums:
                self._sample()
            means = {name: round(total / count, 1) for name, (total, count) in self._sums.items()}
            self._sums.clear()
        return means

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._seconds):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        memory = psutil.virtual_memory()
        figures = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
        }
        for read in self._gpus:
            figures |= read()
        for name, value in figures.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1


def available_memory() -> int:
    """Return the bytes of memory that this process may still use: of the machine, or of a container with a limit.

    What a container uses counts files that the kernel keeps in memory until that is asked for, and reading a data set
    fills any container with them. Those that were not used lately are taken off, as Kubernetes does for a working set:
    https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/
    """
    free: int = psutil.virtual_memory().available
    for folder, limit, used, droppable in (  # the two versions of Linux's control groups, as a container sees them
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        group = CONTROL_GROUP / folder
        with suppress(OSError, ValueError):  # no such group, or no limit
            bound, taken = (int((group / name).read_text()) for name in (limit, used))
            free = min(free, max(bound - taken + _statistic(group / "memory.stat", droppable), 0))
    return free


def _statistic(file: Path, name: str) -> int:
    """Return a number from a file of lines `name number`; 0 if it is not there."""
    with suppress(OSError):  # some sandboxes show only limit and use
        for line in file.read_text().splitlines():
            key, _, number = line.partition(" ")
            if key == name:
                return int(number)
    return 0


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use: its name, and its memory in bytes."""

    name: str
    memory: int
    free: int


def gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs that this process may use, as the driver tells; none without a driver."""
    found = []
    for handle in _gpu_handles():
        import pynvml

        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        found.append(Gpu(str(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free)))
    return found


def gpu_readers() -> list[Callable[[], Figures]]:
    """Return a function for each NVIDIA GPU that CUDA_VISIBLE_DEVICES leaves to this process; none without a driver."""
    return [_gpu_reader(handle) for handle in _gpu_handles()]


def _gpu_handles() -> list[object]:
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except Exception:  # no such package, no driver, no GPU: each has an error of its own
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if visible is None else [name.strip() for name in visible.split(",")]
    handles = []
    for name in filter(None, names):
        try:
            by_number = name.isdigit()
            handles.append(
                pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_number else pynvml.nvmlDeviceGetHandleByUUID(name)
            )
        except pynvml.NVMLError as error:
            log.warning("GPU %s cannot be watched: %s", name, error)
    return handles


def _gpu_reader(handle: object) -> Callable[[], Figures]:
    import pynvml

    index = pynvml.nvmlDeviceGetIndex(handle)

    def read() -> Figures:
        figures: Figures = {}
        with suppress(pynvml.NVMLError):  # some GPUs do not tell all of it
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            figures[f"gpu_{index}_memory_usage_megabytes"] = memory.used / 1e6
            figures[f"gpu_{index}_memory_usage_percentage"] = 100 * memory.used / memory.total
        with suppress(pynvml.NVMLError):
            figures[f"gpu_{index}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
        with suppress(pynvml.NVMLError):
            figures[f"gpu_{index}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
        return figures

    return read

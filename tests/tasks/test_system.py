import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

from tasks import system
from tasks.pixels import pixel_store
from tasks.system import SystemMonitor, available_memory, gpu_readers


def test_figures_are_named_as_mlflow_names_its_own() -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    theirs = CPUMonitor()
    theirs.collect_metrics()
    monitor = SystemMonitor(seconds=0.01)
    for figures in (monitor.read(), monitor.read()):  # the second may come before there was a sample
        assert set(theirs.aggregate_metrics()) <= set(figures)
        assert 0 < figures["system_memory_usage_percentage"] <= 100


def test_a_machine_without_the_driver_has_no_gpus_to_watch() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    assert gpu_readers() == []


@pytest.mark.parametrize(
    "names", [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]
)
def test_a_container_has_the_memory_of_its_limit(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "CONTROL_GROUP", tmp_path)
    whole = available_memory()
    assert whole > 10**8
    (tmp_path / "memory").mkdir()
    for name, text in zip(names, ("max\n", "1000\n"), strict=True):
        (tmp_path / name).write_text(text)
    assert available_memory() > whole / 2  # no limit
    (tmp_path / names[0]).write_text("5000\n")
    assert available_memory() == 4000
    (tmp_path / names[1]).write_text("6000\n")
    assert available_memory() == 0


def test_decoded_images_have_a_quarter_of_what_is_free_or_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = pixel_store(0.5, 0.25, 2)
    assert (said.memory, said.disk) == (250_000_000, 125_000_000)
    assert pixel_store(0.5, 0.25, 2) is said  # one a process
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    free = pixel_store(None, None, 4)
    assert 0 < free.memory < psutil.virtual_memory().total / 16
    assert free.disk <= shutil.disk_usage(tmp_path).free / 15
    if Path("/dev/shm").is_dir():  # memory that looks like a disk
        monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
        assert pixel_store(None, None, 5).disk == 0

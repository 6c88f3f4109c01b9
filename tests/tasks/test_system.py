import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

from tasks import system
from tasks.pixels import pixel_store
from tasks.settings import RuntimeSettings, visible_gpus
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


@pytest.mark.parametrize(
    ("folder", "limit", "used", "droppable"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_files_that_the_kernel_may_drop_do_not_count_as_used(
    folder: str, limit: str, used: str, droppable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container of 5 kB holds 1000 bytes of its own, and files: 3000 bytes that nobody reads, 500 that are in use."""
    monkeypatch.setattr(system, "CONTROL_GROUP", tmp_path)
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    (group / limit).write_text("5000\n")
    (group / used).write_text("4500\n")
    (group / "memory.stat").write_text(f"anon 1000\nactive_file 500\n{droppable} 3000\nslab_reclaimable 7\n")
    assert available_memory() == 5000 - 1000 - 500
    (group / used).write_text("9000\n")
    assert available_memory() == 0


def test_the_driver_lists_gpus_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever shows others (a driver that is installed elsewhere, CUDA_VISIBLE_DEVICES) is listened to all the same."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for folder, gpus in (("two", 2), ("none", 0)):
        program = tmp_path / folder / "nvidia-smi"
        program.parent.mkdir()
        lines = "".join(f"echo 'GPU {i}: NVIDIA H100 (UUID: GPU-{i})'\n" for i in range(gpus))
        program.write_text(f"#!/bin/sh\necho asked >> {tmp_path / 'asked'}\n{lines}")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "two"))
    settings = RuntimeSettings()
    assert [settings.slots() for _ in range(3)] == [["0", "1"]] * 3 and visible_gpus() == 2
    assert (tmp_path / "asked").read_text() == "asked\n"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert settings.slots() == ["1"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert visible_gpus() == 0


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

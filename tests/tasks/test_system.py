from tasks.system import SystemMonitor, gpu_readers


def test_figures_are_named_as_mlflow_names_its_own() -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    theirs = CPUMonitor()
    theirs.collect_metrics()
    monitor = SystemMonitor(seconds=0.01)
    for figures in (monitor.read(), monitor.read()):  # the second may come before there was a sample
        assert set(theirs.aggregate_metrics()) <= set(figures)
        assert 0 < figures["system_memory_usage_percentage"] <= 100


def test_a_machine_without_the_driver_has_no_gpus_to_watch() -> None:
    import shutil

    import pytest

    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    assert gpu_readers() == []

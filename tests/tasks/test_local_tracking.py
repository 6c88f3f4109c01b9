"""MLflow's database below BTM_HOME: whole or absent, whoever is killed while it is made."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import clean_environment

from btm_core.errors import TrackingError
from tasks.named_models import evaluated
from tasks.settings import RuntimeSettings
from tasks.tracking import connect, mlflow_client

CONNECT = "from tasks.tracking import connect; from tasks.settings import RuntimeSettings; connect(RuntimeSettings())"


def test_a_database_whose_making_was_killed_is_made_by_the_next_run(tmp_path: Path) -> None:
    environment = {**clean_environment(), "BTM_HOME": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", CONNECT], env=environment) as first:
        while not any(path.stat().st_size for path in tmp_path.glob("mlflow.db.*.part")):
            assert first.poll() is None
        first.send_signal(signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    left = list(tmp_path.glob("mlflow.db.*.part*"))  # with its journal, perhaps
    assert not (tmp_path / "mlflow.db").exists()
    settings = RuntimeSettings(home=tmp_path)
    client, experiment = connect(settings)
    assert client.get_experiment(experiment).name == "btm"
    for path in left:  # which may be of one that is at work, so they stay for a while
        os.utime(path, (time.time() - 7200,) * 2)
    (tmp_path / "mlflow.db").unlink()
    connect(settings)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("mlflow.db")) == ["mlflow.db"]


def test_a_damaged_database_is_told_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    with pytest.raises(
        TrackingError, match=r"mlflow\.db is damaged or of another MLflow, move it aside, and a new one is made"
    ):
        connect(RuntimeSettings(home=tmp_path))


@pytest.mark.parametrize("name", ["plain", "it's", 'the "other\'s"'])
def test_versions_of_a_model_are_named_whatever_it_is_called(name: str, tmp_path: Path, databases: Path) -> None:
    shutil.copy(databases / "mlflow.db", tmp_path)
    settings = RuntimeSettings(home=tmp_path)
    client = mlflow_client(settings.mlflow_uri)
    for one in (name, "its"):
        client.create_registered_model(one)
        client.create_model_version(one, f"file://{tmp_path}/nothing")
    with pytest.raises(TrackingError, match=f"{name} has no version 7; it has 1$"):
        evaluated([f"{name}/7"], settings, None)

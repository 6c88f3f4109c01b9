"""The served model as its users have it: in MLflow's registry, behind `mlflow models serve`, asked over HTTP."""

import base64
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import clean_environment
from PIL import Image
from serving_processes import serve_model, tracking_server

from btm_core.errors import TrackingError
from btm_core.storage import Store
from tasks.serving.logged import LoggedPackage, log_package
from tasks.serving.package import package_run
from tasks.tracking import mlflow_client

Undisturbed = tuple[Path, dict[str, Any]]
NAME = "digits-lt"


@pytest.fixture(scope="module")
def package(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "model"
    package_run(Store(str(undisturbed[0] / ".btm/store")), undisturbed[1]["run_id"], folder)
    return folder


@pytest.fixture
def tracked(undisturbed: Undisturbed, tmp_path: Path) -> tuple[str, str]:
    """A copy of MLflow's database with the run, for what is registered to be nobody else's; and the run's id there."""
    found = undisturbed[1]["tracking"]
    database = Path(found["uri"].removeprefix("sqlite:///"))
    return f"sqlite:///{shutil.copyfile(database, tmp_path / database.name)}", found["run_id"]


def champion(client: Any, logged: LoggedPackage, mlflow_run_id: str) -> None:
    """Register it, as `btm register` and `btm promote` do."""
    client.create_registered_model(NAME)
    version = client.create_model_version(NAME, logged.source, run_id=mlflow_run_id, model_id=logged.model_id)
    client.set_registered_model_alias(NAME, "champion", version.version)


def ask(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real test digits as PNG files, by their position."""
    from btm_core.config import load_experiment
    from btm_core.data import scan

    pixels = scan(load_experiment("digits-lt").data).test.pixels
    assert pixels is not None
    folder = tmp_path_factory.mktemp("pictures")
    for position in range(0, len(pixels), 50):
        Image.fromarray(pixels[position][0]).save(folder / f"{position}.png")
    return folder


@pytest.fixture
def web(pictures: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(pictures))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def expected(undisturbed: Undisturbed, pictures: Path) -> dict[str, tuple[str, float]]:
    """Label and probability of each picture, as the run's evaluation stored them."""
    from btm_core.tensor_files import load_arrays

    evaluation = undisturbed[1]["models"][-1]["evaluation"]
    [path] = (undisturbed[0] / ".btm/store/artifacts" / evaluation).glob("predictions.safetensors")
    found = load_arrays(path)
    positions = [int(picture.stem) for picture in pictures.iterdir()]
    return {f"{i}.png": (str(found["predicted"][i]), float(found["confidence"][i])) for i in positions}


def test_from_a_server_with_passwords_to_answers_over_http(
    package: Path, pictures: Path, expected: dict[str, tuple[str, float]], web: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Logged to a run that has ended, through the server to its artifacts; registered; served; asked."""
    with tracking_server(tmp_path / "mlflow") as environment:
        uri = environment["MLFLOW_TRACKING_URI"]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")  # what the process is set to does not matter
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, environment[name])
        client = mlflow_client(uri)
        run = client.create_run(client.create_experiment("btm"))
        client.set_terminated(run.info.run_id)
        logged = log_package(uri, run.info.run_id, NAME, package)
        assert client.get_logged_model(logged.model_id).status == "READY"
        assert client.get_logged_model(logged.model_id).source_run_id == run.info.run_id
        [output] = client.get_run(run.info.run_id).outputs.model_outputs
        assert output.model_id == logged.model_id
        assert client.get_run(run.info.run_id).info.status == "FINISHED"
        champion(client, logged, run.info.run_id)
        where = f"models:/{NAME}@champion"
        names = sorted(expected)
        images = [base64.b64encode((pictures / name).read_bytes()).decode() for name in names]
        with serve_model(where, tmp_path, **environment) as url:
            _answers(url, names, images, expected)
            _refusals(url, images, f"{web}/{names[0]}")
        switched_on = {"BTM_SERVE_URLS": "1", "BTM_SERVE_URL_PRIVATE": "1"}
        with serve_model(where, tmp_path, **environment, **switched_on) as url:
            status, answer = ask(url, {"dataframe_records": [{"image": f"{web}/{name}"} for name in names]})
            assert status == 200
            assert [row["label"] for row in answer["predictions"]] == [expected[name][0] for name in names]
            status, answer = ask(url, {"dataframe_records": [{"image": f"{web}/none.png"}]})
            assert status == 400 and f"row 0: {web}/none.png: the server answers 404" in answer["message"]


def _answers(url: str, names: list[str], images: list[str], expected: dict[str, tuple[str, float]]) -> None:
    bodies: list[dict[str, Any]] = [
        {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}},
        {"dataframe_records": [{"image": image} for image in images]},
        {"inputs": {"image": images}},
        {"inputs": [{"image": image} for image in images]},
        {"instances": [{"image": image} for image in images]},
    ]
    for body in bodies:
        status, answer = ask(url, {**body, "params": {"top_k": 3}})
        assert status == 200, answer
        rows = answer["predictions"]
        assert [row["label"] for row in rows] == [expected[name][0] for name in names]
        np.testing.assert_allclose([row["probability"] for row in rows], [expected[n][1] for n in names], rtol=1e-6)
        assert {len(row["top_k"]) for row in rows} == {3}
        assert {tuple(row["probabilities"]) for row in rows} == {tuple("0123456789")}
    status, answer = ask(url, bodies[0])
    assert len(answer["predictions"][0]["top_k"]) == 5


def _refusals(url: str, images: list[str], address: str) -> None:
    half = images[1][:80]
    for image, words in (
        (half, "row 1: "),
        (address, "row 1: URLs are not taken: send the image itself in base64"),
        ("", "row 1: no image"),
    ):
        status, answer = ask(url, {"dataframe_records": [{"image": images[0]}, {"image": image}]})
        assert status == 400
        assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
        assert "1 of 2 images cannot be used" in answer["message"] and words in answer["message"]
        assert "Traceback" not in json.dumps(answer) and "stack_trace" not in answer
    status, answer = ask(url, {"dataframe_records": [{"image": images[0]}], "params": {"top_k": 11}})
    assert status == 400 and "it must be 1 to 10" in answer["message"]
    status, answer = ask(url, {"dataframe_records": [{"picture": images[0]}]})
    assert status == 400 and "missing inputs ['image']" in answer["message"]


def test_a_local_database_and_the_code_of_the_card(tracked: tuple[str, str], package: Path, tmp_path: Path) -> None:
    """The card's example runs as it is written, once the model is registered under the name of the experiment."""
    uri, run_id = tracked
    before = (package / "MLmodel").read_text()
    logged = log_package(uri, run_id, NAME, package)
    champion(mlflow_client(uri), logged, run_id)
    [code] = re.findall(r"```python\n(.*?)```", (package / "model_card.md").read_text(), re.DOTALL)
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((30, 40)).save(buffer, "JPEG")
    (tmp_path / "image.jpg").write_bytes(buffer.getvalue())
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**clean_environment(), "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.split()
    with warnings.catch_warnings(action="ignore"):
        import mlflow.pyfunc
        import pandas as pd

        model = mlflow.pyfunc.load_model(str(package))
    [row] = model.predict(pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]}))
    assert (label, float(probability)) == (row["label"], pytest.approx(row["probability"], rel=1e-6))
    assert (package / "MLmodel").read_text() != before  # it knows its run now
    assert model.metadata.run_id == run_id


def test_what_cannot_be_sent_is_no_model(tracked: tuple[str, str], package: Path, tmp_path: Path) -> None:
    uri, run_id = tracked
    client = mlflow_client(uri)
    experiment = client.get_run(run_id).info.experiment_id
    before = {model.model_id for model in client.search_logged_models([experiment])}
    with pytest.raises(TrackingError, match="did not take the model"):
        log_package(uri, "0" * 32, NAME, package)
    with pytest.raises(TrackingError, match="did not take the model"):
        log_package(uri, run_id, NAME, tmp_path)  # no model
    after = {model.model_id: model for model in client.search_logged_models([experiment])}
    assert set(after) == before
    broken = shutil.copytree(package, tmp_path / "broken")
    (broken / "artifacts/gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TrackingError, match="did not take the model"):
        log_package(uri, run_id, NAME, broken)
    [half] = [m for m in client.search_logged_models([experiment]) if m.model_id not in before]
    assert half.status == "FAILED"

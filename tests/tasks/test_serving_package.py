"""The served model: packaged from a real run, it predicts what the run's own evaluation predicted."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Btm, clean_environment
from PIL import Image
from promotable import finish_run

from btm_core.checkpoints import read_metadata
from btm_core.errors import CheckpointError, ConfigError, StoreError
from btm_core.storage import Store
from tasks.evaluate import PREDICTIONS
from tasks.serving.card import render_card
from tasks.serving.facts import ModelFacts, facts_of, sample_images
from tasks.serving.package import package_run, save_package

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:mlflow.*")
Undisturbed = tuple[Path, dict[str, Any]]
Expected = tuple[list[str], dict[str, "np.ndarray[Any, Any]"]]
"""Test images in base64, and what the run's evaluation stored of them."""


def encoded(image: Image.Image, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


def stored(store: Store, facts: ModelFacts, folder: Path) -> dict[str, "np.ndarray[Any, Any]"]:
    from btm_core.tensor_files import load_arrays

    evaluation = store.find(facts.evaluation)
    assert evaluation is not None
    return load_arrays(store.fetch(evaluation, PREDICTIONS, folder))


def load(folder: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):  # MLflow warns of its own types
        import mlflow.pyfunc

        return mlflow.pyfunc.load_model(str(folder))


def predict(model: Any, images: list[str], **params: Any) -> list[dict[str, Any]]:
    import pandas as pd

    answer: list[dict[str, Any]] = model.predict(pd.DataFrame({"image": images}), params=params or None)
    return answer


@pytest.fixture(scope="module")
def digits(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelFacts]:
    """The package of a whole run on digits, with both exports."""
    folder, answer = undisturbed
    package = tmp_path_factory.mktemp("package") / "model"
    facts = package_run(Store(str(folder / ".btm/store")), answer["run_id"], package, ("torch_export", "onnx"))
    return package, facts


@pytest.fixture(scope="module")
def expected(
    undisturbed: Undisturbed, digits: tuple[Path, ModelFacts], tmp_path_factory: pytest.TempPathFactory
) -> Expected:
    from btm_core.config import load_experiment
    from btm_core.data import scan

    pixels = scan(load_experiment("digits-lt").data).test.pixels
    assert pixels is not None
    images = [encoded(Image.fromarray(image[0])) for image in pixels]
    store = Store(str(undisturbed[0] / ".btm/store"))
    return images, stored(store, digits[1], tmp_path_factory.mktemp("stored"))


def agree(answers: list[dict[str, Any]], expected: "dict[str, np.ndarray[Any, Any]]", names: list[str]) -> None:
    """Labels are those of the evaluation, and probabilities to the last bits."""
    assert [answer["label"] for answer in answers] == [names[c] for c in expected["predicted"]]
    probabilities = [answer["probability"] for answer in answers]
    np.testing.assert_allclose(probabilities, expected["confidence"], rtol=1e-6)


def test_it_predicts_what_the_evaluation_did(digits: tuple[Path, ModelFacts], expected: Expected) -> None:
    import btm_core

    before = sys.modules["btm_core"]
    model = load(digits[0])
    answers = predict(model, expected[0])
    agree(answers, expected[1], [str(c) for c in range(10)])
    for answer in answers:
        assert list(answer["probabilities"]) == [str(c) for c in range(10)]
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert len(answer["top_k"]) == 5
        ranked = sorted(answer["probabilities"].values(), reverse=True)[:5]
        assert [top["probability"] for top in answer["top_k"]] == ranked
        assert answer["top_k"][0] == {"label": answer["label"], "probability": answer["probability"]}
    assert sys.modules["btm_core"] is before is btm_core  # its own copy did not come in


def test_it_crops_and_scales_files_as_the_evaluation_did(btm: Btm, tmp_path: Path) -> None:
    """Three channels, JPEG and PNG of many sizes, resize and centre crop: images that are decoded at each use."""
    from sklearn.datasets import load_digits

    source = load_digits()
    random = np.random.default_rng(0)
    for c, count in enumerate((14, 8, 6)):
        for number, position in enumerate(np.flatnonzero(source.target == c)[: count + 6]):
            folder = tmp_path / "images" / ("train" if number < count else "test") / f"digit-{c}"
            folder.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((source.images[position] * 255 / 16).astype(np.uint8))
            size = tuple(int(side) for side in random.integers(18, 60, 2))
            tinted = Image.merge("RGB", [grey.point(lambda v, k=k: v * k // 3) for k in (3, 2, 1)])
            name = f"{position:04d}.{'jpg' if number % 2 else 'png'}"
            tinted.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    (tmp_path / "own.yaml").write_text(
        json.dumps(
            {
                "name": "own",
                "licence": "CC0, as *scikit-learn*'s",
                "data": {
                    "format": "image_folder",
                    "root": str(tmp_path / "images"),
                    "input": {"size": 16, "channels": 3, "resize": 20},
                },
                "model": {"backbone": "resnet20"},
                "pretrain": {"epochs": 2, "batch_size": 16, "lr": 0.05},
                "sampling": {"num_subsets": 2, "shots": 5},
                "finetune": {"epochs": 1, "batch_size": 8, "lr": 0.05},
                "post_train": {"epochs": 1, "batch_size": 16},
            }
        )
    )
    done = btm("run", "own.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    store = Store(str(tmp_path / ".btm/store"))
    facts = package_run(store, json.loads(done.stdout)["run_id"], tmp_path / "model", ("torch_export",))
    files = sorted((tmp_path / "images/test").rglob("*.*"))
    images = [base64.b64encode(path.read_bytes()).decode() for path in files]
    answers = predict(load(tmp_path / "model"), images)
    agree(answers, stored(store, facts, tmp_path), [f"digit-{c}" for c in range(3)])
    assert len({answer["probability"] for answer in answers}) > len(files) / 2  # it does look at the images
    assert len(answers[0]["top_k"]) == 3
    samples = sample_images(store, facts, 4)
    assert len(samples) == 4 and set(samples) <= {path.read_bytes() for path in files}
    card = (tmp_path / "model/model_card.md").read_text()
    assert r"| Licence | CC0, as \*scikit-learn\*'s |" in card
    assert "scaled to 20 pixels on the shorter side (bilinear) and cut\nto the central 16" in card


def test_requests_that_are_wrong_are_told_so(digits: tuple[Path, ModelFacts], expected: Expected) -> None:
    from mlflow.exceptions import MlflowException

    model = load(digits[0])
    good = expected[0][0]
    half = base64.b64encode(base64.b64decode(good)[:60]).decode()
    with pytest.raises(MlflowException) as error:
        predict(model, [good, half, "no base64", "https://example.org/a.png", good])
    assert error.value.get_http_status_code() == 400
    lines = str(error.value).splitlines()
    assert lines[0] == "3 of 5 images cannot be used:"
    assert [line.split(":")[0] for line in lines[1:]] == ["  row 1", "  row 2", "  row 3"]
    assert "truncated" in lines[1].lower() or "damaged" in lines[1].lower(), lines[1]
    assert "BTM_SERVE_URLS=1" in lines[3]
    for top_k in (0, 11):
        with pytest.raises(MlflowException, match=f"top_k is {top_k}; this model knows 10 classes"):
            predict(model, [good], top_k=top_k)
    wrapped = "data:image/png;base64," + re.sub("(.{20})", "\\1\n", good)  # as browsers and base64(1) make them
    assert predict(model, [wrapped], top_k=1) == predict(model, [good], top_k=1)


def pickles(name: str, data: bytes) -> Iterator[str]:
    """Yield the names of what is a pickle: a file, or something in the archive that it is, or in an archive in that."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from pickles(f"{name}/{member}", archive.read(member))
    elif (data[:1] == b"\x80" and data[1:2] in b"\2\3\4\5" and data.endswith(b".")) or name.endswith(".pkl"):
        yield name


def test_nothing_in_it_is_a_pickle(digits: tuple[Path, ModelFacts], tmp_path: Path) -> None:
    import torch

    torch.save(torch.ones(2), tmp_path / "pickle.pt")
    assert list(pickles("pickle.pt", (tmp_path / "pickle.pt").read_bytes()))  # so they would be found
    files = [path for path in digits[0].rglob("*") if path.is_file()]
    assert {"model.safetensors", "evidence.safetensors", "serving.json", "model.pt2", "model.onnx"} <= {
        path.name for path in files
    }
    assert [name for path in files for name in pickles(path.name, path.read_bytes())] == []
    script = "import json, sys, mlflow; print(mlflow.pyfunc.load_model(sys.argv[1]).predict([{'image': sys.argv[2]}]))"
    image = encoded(Image.new("L", (8, 8)))
    done = subprocess.run(
        [sys.executable, "-c", script, str(digits[0]), image],
        env={**clean_environment(), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "probabilities" in done.stdout, done.stderr


def test_its_description(digits: tuple[Path, ModelFacts], undisturbed: Undisturbed) -> None:
    from mlflow.models import Model

    from btm_core.evidence import Evidence

    package, facts = digits
    description = Model.load(str(package))
    assert description.metadata["btm.run_id"] == undisturbed[1]["run_id"]
    assert description.metadata["btm.figures"] == undisturbed[1]["models"][-1]
    assert description.metadata["btm.artifact"] == facts.artifact
    assert [column.name for column in description.signature.inputs.inputs] == ["image"]
    assert len(description.load_input_example(str(package))) == 2
    requirements = (package / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == [
        *("mlflow", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors", "torch")
    ]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in requirements)
    evidence = Evidence.load(package / "artifacts/evidence.safetensors")
    assert evidence.report.h_mean == pytest.approx(facts.figures["h_mean"])
    assert "/tmp" not in re.sub(r"file://\S+", "", (package / "MLmodel").read_text())


def test_torchvision_is_required_where_it_builds_the_backbone() -> None:
    from btm_core.config import BACKBONES
    from btm_core.models import needs_torchvision

    without = [name for name in BACKBONES if not needs_torchvision(name)]
    assert without == ["small_cnn", "resnet20", "resnet32", "resnet44", "resnet56"]


def test_exports_give_the_networks_logits(digits: tuple[Path, ModelFacts], expected: Expected) -> None:
    import onnxruntime
    import torch

    from btm_core.checkpoints import load_checkpoint
    from btm_core.data.transforms import normalise
    from btm_core.serving.predictor import pixels_of

    package, facts = digits
    images = [pixels_of(base64.b64decode(image), facts.input) for image in expected[0][:33]]
    pixels = normalise(torch.from_numpy(np.stack(images)), facts.input)
    model, _ = load_checkpoint(package / "artifacts/model.safetensors")
    extra = {"btm.json": ""}
    program = torch.export.load(package / "artifacts/model.pt2", extra_files=extra).module()
    session = onnxruntime.InferenceSession(package / "artifacts/model.onnx", providers=["CPUExecutionProvider"])
    for batch in (pixels[:1], pixels):
        with torch.inference_mode():
            logits = model.eval()(batch)
            torch.testing.assert_close(program(batch), logits, rtol=1e-5, atol=1e-5)
        found = session.run(["logits"], {"pixels": batch.numpy()})[0]
        np.testing.assert_allclose(found, logits.numpy(), rtol=1e-4, atol=1e-4)
    for text in (extra["btm.json"], session.get_modelmeta().custom_metadata_map["btm.json"]):
        assert json.loads(text)["labels"] == [str(c) for c in range(10)]
        assert json.loads(text)["input"]["mean"] == list(facts.input.mean)


def test_an_export_that_differs_is_not_kept(digits: tuple[Path, ModelFacts], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from btm_core.checkpoints import load_checkpoint
    from tasks.serving import exports

    model, _ = load_checkpoint(digits[0] / "artifacts/model.safetensors")
    monkeypatch.setattr(exports, "_load_torch_export", lambda path: lambda pixels: model(pixels) + 0.01)
    with pytest.raises(CheckpointError, match=r"torch_export export gives logits that differ by up to 0\.01"):
        exports.export("torch_export", model, torch.rand(4, 1, 8, 8), {}, digits[0].parent)


def test_a_missing_package_is_named(
    digits: tuple[Path, ModelFacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    files = digits[0] / "artifacts"
    given = {"checkpoint": files / "model.safetensors", "evidence": files / "evidence.safetensors", "facts": digits[1]}
    with pytest.raises(ConfigError, match=r'onnx needs onnxscript: pip install "btm\[onnx\]"'):
        save_package(tmp_path / "model", **given, extras=("onnx",))
    with pytest.raises(ConfigError, match="unknown export 'tensorrt'"):
        save_package(tmp_path / "model", **given, extras=("tensorrt",))


def test_files_that_do_not_fit_are_refused(digits: tuple[Path, ModelFacts], tmp_path: Path) -> None:
    from dataclasses import replace

    from safetensors.torch import load_file, save_file

    from btm_core.evidence import Evidence

    package, facts = digits
    files = package / "artifacts"
    checkpoint, evidence = files / "model.safetensors", files / "evidence.safetensors"
    with pytest.raises(ConfigError, match="is not empty: give the model a folder of its own"):
        save_package(package, checkpoint=checkpoint, evidence=evidence, facts=facts)
    loaded = Evidence.load(evidence)
    replace(loaded, class_names=loaded.class_names[::-1]).save(tmp_path / "other.safetensors")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(checkpoint), bare)
    with pytest.raises(CheckpointError, match=r"bare\.safetensors carries no BTM metadata, .*is unknown; run it again"):
        save_package(tmp_path / "model", checkpoint=bare, evidence=evidence, facts=facts)
    with pytest.raises(CheckpointError, match=r"is of other classes than .*, or in another order"):
        save_package(tmp_path / "model", checkpoint=checkpoint, evidence=tmp_path / "other.safetensors", facts=facts)
    config = facts.input.model_copy(update={"mean": (0.5,)})
    moved = {**facts.experiment, "data": {**facts.experiment["data"], "input": config.model_dump(mode="json")}}
    with pytest.raises(CheckpointError, match=r"images of mean \(0\.305,\), not \(0\.5,\): they would not"):
        save_package(
            tmp_path / "model",
            checkpoint=checkpoint,
            evidence=evidence,
            facts=facts.model_copy(update={"experiment": moved}),
        )


def test_a_checkpoint_that_changed_in_the_package_is_not_served(
    digits: tuple[Path, ModelFacts], tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(digits[0], tmp_path / "model")
    weights = copy / "artifacts/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="not the checkpoint that was packaged"):
        load(copy)


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run nobody has no report"):
        facts_of(Store(str(tmp_path)), "nobody")


def test_the_card(digits: tuple[Path, ModelFacts]) -> None:
    package, facts = digits
    card = (package / "model_card.md").read_text()
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == [
        *("Model details", "Intended use", "Training data", "Evaluation", "Limitations", "How to use it", "Lineage")
    ]
    assert (
        f"| H-mean of the recalls | {100 * facts.before['h_mean']:.1f} | **{100 * facts.figures['h_mean']:.1f}** |"
        in card
    )
    for row in facts.lowest_classes:
        assert f"| {row['name']} | {row['train_images']} | {row['test_images']} | {100 * row['recall']:.1f} |" in card
    for split in facts.data["splits"].values():
        assert split["hash"] in card
    assert all(f"- `{row['address']}`" in card for row in facts.lineage)
    assert "none was stated" in card
    assert not re.search(r"\n\n\n|None|\{\{|\}\}", card)


def test_the_card_tells_what_was_lost(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    finish_run(store, tmp_path, "r", [0.9] * 8)
    whole = facts_of(store, "r")
    report = json.loads(store.read("runs", "r", "report.json") or b"")
    report["lost_ingredients"] = [{"subset": 1, "reason": "it died"}, {"subset": 4, "reason": "so did it"}]
    report["lineage"].append({"address": "finetune/subset-01-x", "parents": [], "state": "lost"})
    store.write(json.dumps(report).encode(), "runs", "r", "report.json")
    facts = facts_of(store, "r")
    artifact = store.find(facts.artifact)
    assert artifact is not None
    checkpoint = read_metadata(store.fetch(artifact, "model.safetensors", tmp_path))
    assert checkpoint is not None
    card = render_card(facts, checkpoint)
    assert "fine-tuned (less 2 that were lost: subset 1, 4), merged" in card
    assert "- `finetune/subset-01-x`, lost\n" in card
    assert facts.metadata()["btm.lost_subsets"] == [1, 4]
    assert "lost" not in render_card(whole, checkpoint)


CLEAN = """
import json, sys, mlflow, pandas as pd
folder, requests, answers = sys.argv[1:]
model = mlflow.pyfunc.load_model(folder)
answer = model.predict(pd.DataFrame({"image": json.load(open(requests))}))
import btm_core
json.dump({"answer": answer, "btm_core": btm_core.__file__, "path": sys.path}, open(answers, "w"))
"""


@pytest.mark.slow
def test_it_predicts_the_same_in_a_clean_environment(
    digits: tuple[Path, ModelFacts], expected: Expected, tmp_path: Path
) -> None:
    """With what it lists and nothing else, as on another machine. PyTorch takes minutes to install."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv/bin/python")
    environment = {k: v for k, v in clean_environment().items() if not k.startswith("PYTHON")}
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "-r", str(digits[0] / "requirements.txt")]
    done = subprocess.run(install, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "requests.json").write_text(json.dumps(expected[0]))
    script = [python, "-c", CLEAN, str(digits[0]), str(tmp_path / "requests.json"), str(tmp_path / "answers.json")]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["btm_core"].startswith(str(digits[0]) + os.sep)
    agree(answers["answer"], expected[1], [str(c) for c in range(10)])

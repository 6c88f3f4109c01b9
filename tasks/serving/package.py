"""The folder of an MLflow model: checkpoint, evidence, code, signature, example, requirements, card, exports."""

import base64
import hashlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import btm_core
from btm_core.config import InputConfig
from btm_core.errors import CheckpointError, ConfigError, StoreError
from btm_core.storage import Store
from tasks.serving.card import render_card
from tasks.serving.facts import ModelFacts, facts_of, sample_images
from tasks.stages import WEIGHTS

if TYPE_CHECKING:
    from btm_core.checkpoints import CheckpointMetadata

__all__ = ["CARD", "EVIDENCE", "REQUIREMENTS", "package_run", "save_package"]

EVIDENCE, SERVING, CARD = "evidence.safetensors", "serving.json", "model_card.md"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors", "torch")
"""What a served model imports, MLflow included; torchvision comes in where it builds the backbone."""
CLASSIFIER = Path(__file__).with_name("classifier.py")


def package_run(store: Store, run_id: str, folder: Path, extras: Sequence[str] = ()) -> ModelFacts:
    """Write the final model of a run as an MLflow model folder, and return the facts on it.

    `extras` are verified on images of the run's test split. Raises StoreError if something of the run is gone, and as
    `save_package` does.
    """
    from tasks.evaluate import evidence_of

    facts = facts_of(store, run_id)
    artifact, evaluation = store.find(facts.artifact), store.find(facts.evaluation)
    if artifact is None or evaluation is None:
        gone = facts.artifact if artifact is None else facts.evaluation
        raise StoreError(f"{gone} of run {run_id} is no longer in the store {store.url}; run it again")
    with tempfile.TemporaryDirectory(prefix="btm-") as name:
        checkpoint = store.fetch(artifact, WEIGHTS, Path(name))
        evidence = Path(name, EVIDENCE)
        evidence_of(store, evaluation).save(evidence)
        samples = sample_images(store, facts) if extras else ()
        save_package(folder, checkpoint=checkpoint, evidence=evidence, facts=facts, extras=extras, samples=samples)
    return facts


def save_package(
    folder: Path,
    *,
    checkpoint: Path,
    evidence: Path,
    facts: ModelFacts,
    extras: Sequence[str] = (),
    samples: Sequence[bytes] = (),
) -> None:
    """Write an MLflow model folder.

    Arguments:
    - checkpoint, evidence: safetensors files of the model and of what it predicted.
    - extras: exports to add, of `tasks.serving.exports.EXPORTS`.
    - samples: image files that exports are verified on; they are not kept. Default: generated ones.

    Raises ConfigError if the folder is not empty or a package is missing, CheckpointError if files do not fit.
    """
    from btm_core.models import needs_torchvision

    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: give the model a folder of its own")
    metadata = _checked(checkpoint, evidence, facts)
    examples = _examples(facts.input)
    needed = sorted([*REQUIREMENTS, *(["torchvision"] if needs_torchvision(metadata.backbone) else [])])
    with tempfile.TemporaryDirectory(prefix="btm-") as name:
        stage = Path(name)
        artifacts = {"checkpoint": stage / WEIGHTS, "evidence": stage / EVIDENCE, "serving": stage / SERVING}
        shutil.copyfile(checkpoint, artifacts["checkpoint"])
        shutil.copyfile(evidence, artifacts["evidence"])
        artifacts["serving"].write_text(_serving_facts(checkpoint, facts.input))
        artifacts |= _exports(extras, checkpoint, facts.input, samples or examples, stage)
        _save(
            path=str(folder),
            python_model=str(CLASSIFIER),
            artifacts={key: str(path) for key, path in artifacts.items()},
            code_paths=[str(Path(btm_core.__file__).parent)],
            signature=_signature(len(metadata.class_names)),
            input_example=_table(examples),
            # A local suffix (+cpu, +cu130) names a build that no registry has.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in needed],
            metadata=facts.metadata(),
        )
    (folder / CARD).write_text(render_card(facts, metadata, extras), encoding="utf-8")


def _save(**arguments: Any) -> None:
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # it would take the lock file of whatever folder this is
    with warnings.catch_warnings(action="ignore"):  # MLflow warns of its own types, and pandas of MLflow
        import mlflow.pyfunc
        from mlflow.models import Model

        mlflow.pyfunc.save_model(**arguments)
    description = Model.load(arguments["path"])
    flavor = description.flavors["python_function"]
    # MLflow notes where each file came from, which is this machine's business; it looks at the last part alone.
    flavor["model_code_path"] = CLASSIFIER.name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = Path(artifact["path"]).name
    description.save(str(Path(arguments["path"], "MLmodel")))


def _checked(checkpoint: Path, evidence: Path, facts: ModelFacts) -> "CheckpointMetadata":
    from btm_core.checkpoints import read_metadata
    from btm_core.evidence import Evidence
    from btm_core.serving.predictor import require_same_view

    metadata = read_metadata(checkpoint)
    if metadata is None:
        raise CheckpointError(f"{checkpoint} carries no BTM metadata, so its architecture is unknown; run it again")
    require_same_view(metadata, facts.input)
    if Evidence.load(evidence).class_names != metadata.class_names:
        raise CheckpointError(f"{evidence} is of other classes than {checkpoint}, or in another order")
    return metadata


def _serving_facts(checkpoint: Path, config: InputConfig) -> str:
    from btm_core.serving.predictor import ServingFacts

    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = ServingFacts(input=config, checkpoint_sha256=digest, btm_version=btm_core.__version__)
    return facts.model_dump_json(indent=1)


def _exports(
    extras: Sequence[str], checkpoint: Path, config: InputConfig, images: Sequence[bytes], folder: Path
) -> dict[str, Path]:
    if not extras:
        return {}
    import numpy as np
    import torch

    from btm_core.checkpoints import load_checkpoint
    from btm_core.data.transforms import normalise
    from btm_core.serving.predictor import labels_of, pixels_of
    from tasks.serving.exports import export

    model, metadata = load_checkpoint(checkpoint)
    pixels = normalise(torch.from_numpy(np.stack([pixels_of(image, config) for image in images])), config)
    view = {**config.model_dump(mode="json"), "resize": config.test_resize}
    facts = {"labels": labels_of(metadata.class_names), "input": view}
    return {kind: export(kind, model, pixels, facts, folder) for kind in extras}


def _examples(config: InputConfig) -> list[bytes]:
    """Return two image files for users to try: generated, since those of a data set may not be anybody's to show."""
    import numpy as np
    from PIL import Image

    side = min(config.size, 32)
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    files = []
    for picture in (np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side))):
        buffer = io.BytesIO()
        Image.fromarray(picture).convert("L" if config.channels == 1 else "RGB").save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def _table(images: Sequence[bytes]) -> Any:
    import pandas as pd

    return pd.DataFrame({"image": [base64.b64encode(image).decode() for image in images]})


def _signature(classes: int) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Map, Object, Property

    from btm_core.serving.predictor import TOP

    text, number = DataType.string, DataType.double
    top = Array(Object([Property("label", text), Property("probability", number)]))
    return ModelSignature(
        inputs=Schema([ColSpec(text, "image")]),
        outputs=Schema(
            [
                ColSpec(text, "label"),
                ColSpec(number, "probability"),
                ColSpec(top, "top_k"),
                ColSpec(Map(number), "probabilities"),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.long, min(TOP, classes))]),
    )

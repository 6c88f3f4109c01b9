"""The network in forms that need neither this project nor MLflow: a torch.export program, and ONNX.

Both take `pixels` (B, K, S, S) float32, normalised, any B, and give `logits` (B, C). Each is loaded again and compared
with the network before it is kept. Neither holds a pickle.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from btm_core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from btm_core.models import Classifier

__all__ = ["EXPORTS", "Export", "export"]

Export = Literal["torch_export", "onnx"]
EXPORTS: tuple[str, ...] = get_args(Export)
FACTS = "btm.json"
"""Class names and normalisation, inside of both files."""
TOLERANCE = 1e-4
"""Of the largest logit; other kernels add in another order."""

Loaded = Callable[["Tensor"], "Tensor"]


def export(kind: str, model: "Classifier", pixels: "Tensor", facts: dict[str, Any], folder: Path) -> Path:
    """Write the network into a folder in one form, compare its logits, and return the file.

    Arguments:
    - model: on the CPU, so that the program loads on any machine.
    - pixels: (B, K, S, S) images to compare on, normalised; B at least 2.
    - facts: what users of the file need to know; JSON-ready.

    Raises ConfigError if a package is missing or the form unknown, CheckpointError if the logits differ.
    """
    import torch

    if kind not in EXPORTS:
        raise ConfigError(f"unknown export {kind!r}; known are {', '.join(EXPORTS)}")
    model = model.cpu().eval()
    write, load = (_torch_export, _load_torch_export) if kind == "torch_export" else (_onnx, _load_onnx)
    try:
        # Exporters warn of their own deprecated parts.
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            path = write(model, pixels[:2], facts, folder)
            loaded = load(path)
            for batch in (pixels[:1], pixels):
                _compare(kind, loaded(batch), model(batch))
    except ImportError as error:
        raise ConfigError(f'the export {kind} needs {error.name}: pip install "btm[onnx]"') from None
    return path


def _torch_export(model: "Classifier", pixels: "Tensor", facts: dict[str, Any], folder: Path) -> Path:
    import torch

    program = torch.export.export(model, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program.example_inputs = None  # they alone would be pickled
    path = folder / "model.pt2"
    torch.export.save(program, path, extra_files={FACTS: json.dumps(facts)})
    return path


def _load_torch_export(path: Path) -> Loaded:
    import torch

    loaded: Loaded = torch.export.load(path).module()
    return loaded


def _onnx(model: "Classifier", pixels: "Tensor", facts: dict[str, Any], folder: Path) -> Path:
    import onnxscript  # noqa: F401
    import torch

    program = torch.onnx.export(
        model,
        (pixels,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["pixels"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[FACTS] = json.dumps(facts)
    path = folder / "model.onnx"
    program.save(str(path), external_data=False)
    return path


def _load_onnx(path: Path) -> Loaded:
    import onnxruntime
    from torch import from_numpy

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


def _compare(kind: str, found: "Tensor", expected: "Tensor") -> None:
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise CheckpointError(
            f"the {kind} export gives logits that differ by up to {difference:.2g} from the network's; leave it out"
        )

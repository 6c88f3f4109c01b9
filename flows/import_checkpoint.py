"""`btm import-checkpoint`: a checkpoint of another system becomes a file that `pretrain.checkpoint` takes."""

import json
import os
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from btm_core.errors import BTMError, CheckpointError
from flows.options import Json, Overrides

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from btm_core.checkpoints import CheckpointMetadata
    from btm_core.config import ExperimentConfig
    from btm_core.data import Catalog
    from btm_core.importing import Imported, Probe
    from btm_core.models import Classifier

__all__ = ["import_checkpoint"]


def import_checkpoint(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth, .pt, .tar or .safetensors file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the safetensors file.")],
    family: Annotated[
        str | None, typer.Option(help="mislas, decoupling, paco, otmix, ...; recognised by default.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="The architecture; recognised by default.")] = None,
    backbone_only: Annotated[bool, typer.Option(help="Leave the head aside, for pretrain.initial.")] = False,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights beside the others.")] = False,
    drop: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Leave tensors aside by name.")] = None,
    classes: Annotated[Path | None, typer.Option(help="One class name a line, in the checkpoint's order.")] = None,
    sorted_by_count: Annotated[
        bool, typer.Option(help="Its classes are sorted by training count, as in reference code.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(metavar="PRESET|FILE", help="An experiment on whose data to prove it.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Take a checkpoint of MiSLAS, BTM, H2T, PaCo, GPaCo, OTmix, PASCL, cRT, LWS, BSCE, torchvision or timm.

    No code in it is run, and a part that does not fit is an error. With --data it is evaluated on some test images.
    """
    from btm_core import importing
    from btm_core.data import scan
    from flows.start import named_by_data

    experiment = named_by_data(data, overrides or ())
    imported = importing.import_checkpoint(
        source, family=family, backbone=backbone, backbone_only=backbone_only, ema=ema, drop=drop or ()
    )
    catalog = scan(experiment.data) if experiment is not None else None
    order = _order(imported, catalog, classes, sorted_by_count)
    notes = [*imported.notes]
    if order is not None:
        notes.append("the head's rows were put into the data set's order")
    if sorted_by_count and experiment is not None and catalog is not None:
        order, note = _settled(imported, experiment, catalog, order)
        notes += note
    tensors = _reordered(imported.tensors, order)
    metadata = _metadata(imported, experiment, catalog, order, source)

    def proof(file: Path) -> "Probe | None":
        if experiment is None or catalog is None or imported.num_classes is None:
            return None
        return importing.probe(_model(imported, experiment, catalog, file), catalog, experiment.data.input)

    result = _write(tensors, metadata, output, proof)
    if as_json:
        print(json.dumps(_document(imported, output, notes, result), indent=1))
    else:
        _print(imported, output, notes, result)


def _reordered(tensors: "dict[str, Tensor]", order: list[int] | None) -> "dict[str, Tensor]":
    heads = ("head.weight", "head.bias") if order is not None else ()
    return {name: tensor[order] if name in heads else tensor for name, tensor in tensors.items()}


def _settled(
    imported: "Imported", experiment: "ExperimentConfig", catalog: "Catalog", order: list[int] | None
) -> tuple[list[int] | None, list[str]]:
    """Return the order (C,) with the classes of equal counts told apart, and what to say of it."""
    from btm_core.checkpoints import save_tensors
    from btm_core.importing import settle_ties

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sorted.safetensors"
        save_tensors(_reordered(imported.tensors, order), file)
        rows = settle_ties(_model(imported, experiment, catalog, file), catalog, experiment.data.input).tolist()
    moved = sum(row != c for c, row in enumerate(rows))
    if not moved:
        return order, []
    note = f"{moved} classes whose counts others share changed places, by what the network says of training images"
    return [order[row] if order is not None else row for row in rows], [note]


def _write(
    tensors: "dict[str, Tensor]",
    metadata: "CheckpointMetadata | None",
    output: Path,
    proof: "Callable[[Path], Probe | None]",
) -> "Probe | None":
    """Write the file and return its proof; under its own name only after the proof went through."""
    from btm_core.checkpoints import METADATA_KEY, save_tensors
    from btm_core.storage import refuse_special

    partial = output.parent / f".{output.name}.{os.getpid()}.partial"
    header = {METADATA_KEY: metadata.model_dump_json()} if metadata is not None else None
    try:
        with _as_checkpoint_error(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            refuse_special(output)
            save_tensors(tensors, partial, header)
        result = proof(partial)
        with _as_checkpoint_error(output):
            partial.replace(output)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return result


@contextmanager
def _as_checkpoint_error(output: Path) -> "Iterator[None]":
    from safetensors import SafetensorError

    try:
        yield
    except BTMError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{output} cannot be written: {error}; choose another with --output") from None


def _order(imported: "Imported", catalog: "Catalog | None", classes: Path | None, by_count: bool) -> list[int] | None:
    """Return for each class of the data its row of the head, None if they are in the same order already.

    A checkpoint of this project names its classes itself.
    """
    own = imported.metadata.class_names if imported.metadata is not None else None
    if classes is None and not by_count and (own is None or catalog is None):
        return None
    if catalog is None or imported.num_classes is None:
        raise CheckpointError(
            "--classes and --sorted-by-count need a head, and --data to know the classes of the data set"
        )
    if by_count:
        from btm_core.importing.class_order import sorted_by_count

        theirs = sorted_by_count(catalog.uncarved_counts).tolist()
    else:
        names = own if classes is None else _lines(classes)
        unknown = sorted(set(names or ()) ^ set(catalog.class_names))
        if names is None or unknown or len(names) != catalog.num_classes:
            raise CheckpointError(
                f"{classes or 'the checkpoint'} and the data set do not have the same classes: {', '.join(unknown[:5])}"
            )
        theirs = [catalog.class_names.index(name) for name in names]
    if len(theirs) != imported.num_classes:
        raise CheckpointError(f"the checkpoint has {imported.num_classes} classes, the data set {len(theirs)}")
    rows = [0] * len(theirs)
    for row, c in enumerate(theirs):
        rows[c] = row
    return None if rows == sorted(rows) else rows


def _lines(file: Path) -> list[str]:
    from btm_core.data.sources import read_text

    return [line.strip() for line in read_text(str(file), "--classes").splitlines() if line.strip()]


def _metadata(
    imported: "Imported",
    experiment: "ExperimentConfig | None",
    catalog: "Catalog | None",
    order: list[int] | None,
    source: Path,
) -> "CheckpointMetadata | None":
    """Return what the new file says of itself: what a checkpoint of ours said, else what the experiment's data say."""
    from btm_core.checkpoints import CheckpointMetadata
    from btm_core.storage import file_digest

    if imported.num_classes is None:
        return None
    if catalog is not None and experiment is not None and imported.num_classes != catalog.num_classes:
        raise CheckpointError(
            f"the checkpoint has {imported.num_classes} classes, the data set of {experiment.name} "
            f"{catalog.num_classes}: name the experiment that it was trained on with --data"
        )
    made: dict[str, Any] = {
        "stage": "import",
        "lineage": {"checkpoint": file_digest(source)[0], "family": imported.family},
    }
    own = imported.metadata
    if own is not None:
        rows = order if order is not None else range(len(own.class_names))
        counts = tuple(own.train_counts[row] for row in rows)
        names = catalog.class_names if order is not None and catalog is not None else own.class_names
        return own.model_copy(update={**made, "class_names": names, "train_counts": counts})
    if catalog is None or experiment is None:
        return None
    view = experiment.data.input
    return CheckpointMetadata(
        backbone=imported.backbone,
        channels=view.channels,
        size=view.size,
        mean=view.mean,
        std=view.std,
        class_names=catalog.class_names,
        train_counts=tuple(catalog.train_counts.tolist()),
        **made,
    )


def _model(imported: "Imported", experiment: "ExperimentConfig", catalog: "Catalog", file: Path) -> "Classifier":
    from btm_core.checkpoints import load_into
    from btm_core.models import build_model

    model = build_model(imported.backbone, catalog.num_classes, experiment.data.input.channels)
    load_into(model, file)
    return model


def _document(imported: "Imported", output: Path, notes: list[str], result: "Probe | None") -> dict[str, Any]:
    named = {name: getattr(imported, name) for name in ("family", "backbone", "num_classes", "mapped", "dropped")}
    proof = None if result is None else asdict(result)
    return {"output": str(output), **named, "notes": notes, "missing": [], "probe": proof}


def _print(imported: "Imported", output: Path, notes: list[str], result: "Probe | None") -> None:
    from flows.terminal import say

    kind = f"{imported.num_classes} classes" if imported.num_classes is not None else "no head"
    say(f"{imported.family}: {imported.backbone}, {kind}")
    for group, count in imported.groups().items():
        say(f"  mapped   {group}.*  {count} tensors")
    reasons: dict[str, int] = {}
    for reason in imported.dropped.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        say(f"  dropped  {count} tensors: {reason}")
    say("  missing  nothing")
    for note in notes:
        say(f"  note     {note}")
    if result is not None:
        say(
            f"  probe    {result.images} test images: accuracy {100 * result.accuracy:.1f} %, "
            f"H-mean {100 * result.h_mean:.1f} %"
        )
        for warning in result.warnings:
            say(f"  WARNING  {warning}")
    elif imported.num_classes is not None:
        say("  probe    none: give --data to prove it on test images")
    key = "pretrain.checkpoint" if imported.num_classes is not None else "pretrain.initial"
    say(f"{output}\nUse it: btm run ... --set {key}={output}")

"""`btm import-checkpoint`: a checkpoint of another system becomes a file that `pretrain.checkpoint` takes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from btm_core.errors import CheckpointError

if TYPE_CHECKING:
    from btm_core.config import ExperimentConfig
    from btm_core.data import Catalog
    from btm_core.importing import Imported, Probe

__all__ = ["import_checkpoint"]


def import_checkpoint(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth, .pt, .tar or .safetensors file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the safetensors file.")],
    family: Annotated[
        str | None, typer.Option(help="mislas, decoupling, paco, otmix, ...; recognised by default.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="The architecture; recognised by default.")] = None,
    backbone_only: Annotated[bool, typer.Option(help="Leave the head aside, for pretrain.initial.")] = False,
    drop: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Leave tensors aside by name.")] = None,
    classes: Annotated[Path | None, typer.Option(help="One class name a line, in the checkpoint's order.")] = None,
    sorted_by_count: Annotated[
        bool, typer.Option(help="Its classes are sorted by training count, as in reference code.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(metavar="PRESET|FILE", help="An experiment on whose data to prove it.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override that.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Take a checkpoint of MiSLAS, BTM, H2T, PaCo, GPaCo, OTmix, PASCL, cRT, LWS, BSCE, torchvision or timm.

    No code in it is run, and a part that does not fit is an error. With --data it is evaluated on some test images.
    """
    from btm_core import importing
    from btm_core.checkpoints import METADATA_KEY, save_tensors
    from btm_core.config import load_experiment
    from btm_core.data import scan

    imported = importing.import_checkpoint(
        source, family=family, backbone=backbone, backbone_only=backbone_only, drop=drop or ()
    )
    experiment = load_experiment(data, overrides or ()) if data is not None else None
    catalog = scan(experiment.data) if experiment is not None else None
    order = _order(imported, catalog, classes, sorted_by_count)
    tensors = dict(imported.tensors)
    if order is not None:
        for name in ("head.weight", "head.bias"):
            tensors[name] = tensors[name][order]
    metadata = (
        {}
        if catalog is None or experiment is None or imported.num_classes is None
        else {METADATA_KEY: _metadata(imported, experiment, catalog, source)}
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, output, metadata)
    result = None
    if experiment is not None and catalog is not None and imported.num_classes is not None:
        result = _probe(imported, experiment, catalog, output)
    if as_json:
        print(json.dumps(_document(imported, output, result), indent=1))
    else:
        _print(imported, output, result, order is not None)


def _order(imported: "Imported", catalog: "Catalog | None", classes: Path | None, by_count: bool) -> list[int] | None:
    """Return for each class of the data its row of the head, None if they are in the same order already."""
    if classes is None and not by_count:
        return None
    if catalog is None or imported.num_classes is None:
        raise CheckpointError(
            "--classes and --sorted-by-count need a head, and --data to know the classes of the data set"
        )
    if by_count:
        from btm_core.importing.probe import sorted_by_count

        theirs = sorted_by_count(catalog.train_counts).tolist()
    else:
        assert classes is not None
        names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines() if line.strip()]
        unknown = sorted(set(names) ^ set(catalog.class_names))
        if unknown or len(names) != catalog.num_classes:
            raise CheckpointError(f"{classes} and the data set do not have the same classes: {', '.join(unknown[:5])}")
        theirs = [catalog.class_names.index(name) for name in names]
    if len(theirs) != imported.num_classes:
        raise CheckpointError(f"the checkpoint has {imported.num_classes} classes, the data set {len(theirs)}")
    rows = [0] * len(theirs)
    for row, c in enumerate(theirs):
        rows[c] = row
    return rows


def _metadata(imported: "Imported", experiment: "ExperimentConfig", catalog: "Catalog", source: Path) -> str:
    from btm_core.checkpoints import CheckpointMetadata
    from btm_core.storage import file_digest

    if imported.num_classes != catalog.num_classes:
        raise CheckpointError(
            f"the checkpoint has {imported.num_classes} classes, that of {experiment.name} {catalog.num_classes}"
        )
    view = experiment.data.input
    return CheckpointMetadata(
        backbone=imported.backbone,
        channels=view.channels,
        size=view.size,
        mean=view.mean,
        std=view.std,
        class_names=catalog.class_names,
        train_counts=tuple(catalog.train_counts.tolist()),
        stage="import",
        lineage={"checkpoint": file_digest(source)[0], "family": imported.family},
    ).model_dump_json()


def _probe(imported: "Imported", experiment: "ExperimentConfig", catalog: "Catalog", output: Path) -> "Probe":
    from btm_core.checkpoints import load_into
    from btm_core.importing import probe
    from btm_core.models import build_model

    model = build_model(imported.backbone, catalog.num_classes, experiment.data.input.channels)
    load_into(model, output)
    return probe(model, catalog, experiment.data.input)


def _document(imported: "Imported", output: Path, result: "Probe | None") -> dict[str, Any]:
    facts = ("family", "backbone", "num_classes", "mapped", "dropped", "notes")
    named = {name: getattr(imported, name) for name in facts}
    return {"output": str(output), **named, "missing": [], "probe": None if result is None else asdict(result)}


def _print(imported: "Imported", output: Path, result: "Probe | None", reordered: bool) -> None:
    kind = f"{imported.num_classes} classes" if imported.num_classes is not None else "no head"
    print(f"{imported.family}: {imported.backbone}, {kind}")
    for group, count in imported.groups().items():
        print(f"  mapped   {group}.*  {count} tensors")
    reasons: dict[str, int] = {}
    for reason in imported.dropped.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        print(f"  dropped  {count} tensors: {reason}")
    print("  missing  nothing")
    for note in [*imported.notes, *(["the head's rows were put into the data set's order"] if reordered else [])]:
        print(f"  note     {note}")
    if result is not None:
        print(
            f"  probe    {result.images} test images: accuracy {100 * result.accuracy:.1f} %, "
            f"H-mean {100 * result.h_mean:.1f} %"
        )
        for warning in result.warnings:
            print(f"  WARNING  {warning}")
    elif imported.num_classes is not None:
        print("  probe    none: give --data to prove it on test images")
    key = "pretrain.checkpoint" if imported.num_classes is not None else "pretrain.initial"
    print(f"{output}\nUse it: btm run ... --set {key}={output}")

"""Arguments and options that several commands have, said once."""

from typing import Annotated

import typer

__all__ = ["DataOf", "Device", "Engine", "Experiment", "Json", "Overrides", "StoreUrl", "Verbose", "Workers"]


def _presets(incomplete: str) -> list[str]:
    """Return what a shell may complete."""
    from btm_core.config import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


Experiment = Annotated[
    str, typer.Argument(metavar="PRESET|FILE", help="A preset's name, or a YAML file.", autocompletion=_presets)
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the configuration; may be repeated.")
]
DataOf = Annotated[
    str | None, typer.Option("--data", metavar="PRESET|FILE", help="Evaluate on the test split of this experiment.")
]
StoreUrl = Annotated[str | None, typer.Option("--store", help="Artifact store: a folder, file:// or s3:// URL.")]
Engine = Annotated[str | None, typer.Option(help="Where stages run: local, ray or workpool.")]
Workers = Annotated[int | None, typer.Option(help="Fine-tunes at a time; default: GPUs, or cores.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's own log.")]

"""`btm merge`: the average of checkpoint files."""

from typing import Annotated

import typer

__all__ = ["merge"]


def merge(
    inputs: Annotated[list[str], typer.Argument(help="safetensors checkpoints of one architecture; paths or URLs.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Where to write the average.")],
    weights: Annotated[
        list[float] | None, typer.Option("--weight", "-w", help="One a checkpoint, in order; default: equal.")
    ] = None,
) -> None:
    """Average checkpoints into one, streaming, in float64."""
    from btm_core.merging import merge as merge_checkpoints

    merge_checkpoints(inputs, output, weights)
    print(output)

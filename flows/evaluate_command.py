"""`btm evaluate`: one model's figures and its worst classes, of what it predicted or on other data."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import DataOf, Device, Json, Overrides, StoreUrl

if TYPE_CHECKING:
    from btm_core.side_by_side import Evaluated

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run (RUN_ID, its beginning, RUN_ID:soup), a registered version (NAME/3, NAME@champion) or a "
            "checkpoint (.safetensors).",
        ),
    ],
    data: DataOf = None,
    overrides: Overrides = None,
    lowest: Annotated[int, typer.Option(min=0, help="So many of the lowest classes are told.")] = 10,
    store: StoreUrl = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Tell H-mean, G-mean, lowest recall and the worst classes of one model, and what those are taken for.

    What a run or a registered version predicted is known; a checkpoint is evaluated, on the data of --data.
    """
    from flows.progress import show_progress
    from flows.start import log_to_stderr, named_by_data, results_alone_on_stdout, settings_of
    from tasks.named_models import evaluated

    experiment = named_by_data(data, overrides or ())
    log_to_stderr(verbose=False)
    settings = settings_of({"store": store, "device": device})
    with show_progress("look up the model"), results_alone_on_stdout():
        [found] = evaluated([model], settings, experiment)
    document = _document(found, lowest)
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        from flows.printing import print_evaluation

        print_evaluation(document)


def _document(model: "Evaluated", lowest: int) -> dict[str, Any]:
    """Return the figures of a model, the recall of each class, and its lowest classes."""
    one = model.evidence
    counts = {"train_images": one.train_counts.tolist(), "test_images": one.test_counts.tolist()}
    return {
        **model.facts(one.group_counts),
        "images": len(one.targets),
        "lowest_classes": one.lowest(lowest),
        "classes": {"name": list(one.class_names), **counts, "recall": one.report.recall.tolist()},
    }

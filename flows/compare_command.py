"""`btm compare`: models side by side on the same images. `flows/ablations.py` compares ways of training."""

import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from btm_core.errors import ConfigError, DataError
from flows.options import DataOf, Device, Json, Overrides, StoreUrl

if TYPE_CHECKING:
    from btm_core.storage.folder import Folder
    from tasks.settings import RuntimeSettings

__all__ = ["compare"]

LOST = 10
"""Of the classes that lost most, so many are printed."""


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C]...",
            help="Runs (RUN_ID, its beginning, RUN_ID:soup), registered versions (NAME/3, NAME@champion) or "
            "checkpoints (.safetensors).",
        ),
    ],
    data: DataOf = None,
    overrides: Overrides = None,
    store: StoreUrl = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; default: .btm/comparisons.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare models with the first: figures and classes with intervals, and which classes got worse.

    What a run or a registered version predicted is known; a checkpoint is evaluated, on the data of --data or else of
    the first run named.
    """
    from btm_core.side_by_side import side_by_side
    from flows.progress import show_progress
    from flows.start import log_to_stderr, named_by_data, results_alone_on_stdout, settings_of
    from tasks.named_models import evaluated

    if len(models) < 2:
        raise ConfigError("name at least two models to compare")
    experiment = named_by_data(data, overrides or ())
    log_to_stderr(verbose=False)
    settings = settings_of({"store": store, "device": device})
    with show_progress("look up the models"), results_alone_on_stdout():
        found = evaluated(models, settings, experiment)
        try:
            document = side_by_side(found)
        except DataError as error:
            cure = "" if data else "\nTo evaluate all of them on one test split, give --data PRESET|FILE"
            raise DataError(f"{error}{cure}") from None
        document |= _write(document, _folder(output, settings, document))
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        from flows.printing import print_side_by_side

        print_side_by_side(document, LOST)


def _folder(output: str | None, settings: "RuntimeSettings", document: dict[str, Any]) -> "Folder":
    """Return where to write: the same comparison again goes to the same place."""
    from btm_core.storage.folder import Folder

    if output is not None:
        return Folder(output)
    models = [document["a"], document["b"], *(pair["b"] for pair in document["others"])]
    key = json.dumps([document["a"]["split_hash"], *(model["name"] for model in models)])
    names = [re.sub(r"[^A-Za-z0-9.]+", "-", model["name"])[:60].strip("-.") for model in models[:2]]
    name = "-vs-".join(names) + f"-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return Folder(str(settings.home / "comparisons" / name))


def _write(document: dict[str, Any], folder: "Folder") -> dict[str, str]:
    """Write the comparison as HTML, Markdown and JSON; return where the page and the Markdown are."""
    from btm_core.pages.pairs import side_by_side_html
    from btm_core.side_by_side import lettered, pair_markdown

    urls = {"report": folder.locate("compare.html"), "markdown": folder.locate("compare.md")}
    texts = {
        "compare.json": json.dumps(document | urls, indent=1),
        "compare.md": "\n".join(pair_markdown(pair, letter) for letter, pair in lettered(document).items()),
        "compare.html": side_by_side_html(document),
    }
    for name, text in texts.items():
        folder.write(text.encode(), name)
    return urls

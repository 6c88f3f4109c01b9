"""`btm data inspect | prepare`: the commands. What they need is imported when they are called."""

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from btm_core.errors import ConfigError, DataError
from flows.options import Experiment, Json, Overrides
from flows.terminal import say_error

if TYPE_CHECKING:
    from btm_core.config import ExperimentConfig

__all__ = ["data_app"]

data_app = typer.Typer(name="data", no_args_is_help=True, help="Look at a data set, and check that it is complete.")


@data_app.command()
def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE|DATA",
            help="An experiment; or the data: a folder, list, CSV, Parquet or iNaturalist JSON file, a path or URL.",
        ),
    ],
    overrides: Overrides = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw the profile into a .png or .svg file.")] = None,
    images: Annotated[
        bool, typer.Option(help="Read and decode every image; otherwise only labels are counted.")
    ] = True,
    most: Annotated[int, typer.Option(min=0, help="Print so many items of a finding; --json has all.")] = 5,
    write_clean: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write lists without what is certainly wrong.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if anything marked ! was found.")] = False,
    as_json: Json = False,
) -> None:
    """Show the long tail, image sizes, unreadable images, copies within and across splits, and suspicious labels.

    It reports what a run would refuse, and ends with 0; only data that cannot be read at all are refused.
    """
    from btm_core.data.inspection import inspect as look
    from flows.data.counting import counting
    from flows.data.printing import print_inspection
    from flows.start import log_to_stderr

    if plot is not None and not plot.lower().endswith((".png", ".svg")):
        raise ConfigError(f"--plot {plot}: name a .png or .svg file")
    log_to_stderr(verbose=False)
    experiment, unsplit = _experiment(target, overrides or [])
    with counting("looking at images") as tell:
        inspection = look(experiment.data, experiment.sampling.shots, tell, images=images, unsplit=unsplit)
    document: dict[str, Any] = {"name": experiment.name, **inspection.document()}
    if plot is not None:
        document["plot"] = _draw(document, plot)
    if write_clean is not None:
        from btm_core.data.cleaning import write_clean_lists

        document["clean"] = {"folder": str(write_clean), "left_out": write_clean_lists(inspection, write_clean)}
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        print_inspection(document, most)
    if strict and any(finding["serious"] for finding in document["findings"]):
        raise typer.Exit(1)


@data_app.command()
def prepare(
    experiment: Experiment,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The manifest; default: prepared/NAME.json in BTM_HOME."),
    ] = None,
    accept: Annotated[bool, typer.Option("--accept", help="Take data that changed as they are now.")] = False,
    as_json: Json = False,
) -> None:
    """Check that a data set is complete, fetch what can be fetched (CIFAR-100), and write its manifest.

    Says what is missing, and where published sets are to be had. Called again, it says what changed.
    """
    from btm_core.config import load_experiment
    from flows.data.printing import print_prepared
    from flows.progress import show_progress
    from flows.start import log_to_stderr, settings_of
    from tasks.prepared import keep_manifest, manifest_of

    log_to_stderr(verbose=False)
    settings = settings_of({})
    config = load_experiment(experiment, overrides or ())
    with show_progress("read the images"):
        manifest = manifest_of(config, settings)
    file = output or settings.home / "prepared" / f"{config.name}.json"
    document = keep_manifest(file, manifest, accept=accept) | {"manifest": str(file)}
    if as_json:
        print(json.dumps({key: value for key, value in document.items() if key != "files"}, indent=1))
    else:
        print_prepared(document)


def _experiment(target: str, overrides: list[str]) -> tuple["ExperimentConfig", bool]:
    """Return an experiment, or one around data that are named themselves; and whether these have no test split."""
    from btm_core.config import load_experiment, preset_names, with_overrides
    from btm_core.data.recognising import recognised_experiment

    if target in preset_names() or target.lower().endswith((".yaml", ".yml")):
        return load_experiment(target, overrides), False
    try:
        experiment, found = recognised_experiment(target)
    except DataError as error:
        close = difflib.get_close_matches(target, preset_names(), n=1)
        raise DataError(f"{error}\nDid you mean the preset {close[0]!r}?" if close else str(error)) from None
    say_error(f"{target} is {found.saw}")
    return with_overrides(experiment, overrides) if overrides else experiment, found.unsplit


def _draw(document: dict[str, Any], file: str) -> str:
    import numpy as np

    from btm_core.data.long_tail import FEW_BELOW, MANY_ABOVE
    from btm_core.plots import long_tail_profile

    train, test = (np.asarray([row[split] for row in document["per_class"]]) for split in ("train", "test"))
    try:
        long_tail_profile(train, test, MANY_ABOVE, FEW_BELOW).savefig(file, dpi=150)
    except OSError as error:
        raise ConfigError(f"--plot {file} cannot be written: {error.strerror}") from None
    return file

"""`btm init`: a look at the data, three questions at most, and a commented experiment that runs."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from btm_core.errors import ConfigError
from flows.options import Json

if TYPE_CHECKING:
    from btm_core.advice import Goal

__all__ = ["init"]

WHERE = "Where are the images? (a folder, a list, CSV, Parquet or JSON file; a path or s3:// URL)"
START = "Start from a trained network? (its .safetensors file, a path or URL; nothing: train from the beginning)"
GOALS_ASKED = "What for? (try: minutes; normal; best: as long as the paper trained)"


def init(
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Folder, list, CSV, Parquet or iNaturalist JSON file; a path or URL."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The experiment.")] = Path("my.yaml"),
    data_option: Annotated[str | None, typer.Option("--data", metavar="DATA", help="The same as DATA.")] = None,
    test: Annotated[
        str | None, typer.Option(metavar="FILE", help="File of the test split, if its name does not tell.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Without a test split: share of each class that becomes it.")
    ] = 0.2,
    start: Annotated[
        str | None, typer.Option(metavar="FILE", help="A stage 1, or a trained backbone (.safetensors); a path or URL.")
    ] = None,
    goal: Annotated[str | None, typer.Option(help="try, normal or best: how long to train.")] = None,
    backbone: Annotated[str | None, typer.Option(help="The network; default: by the size of the images.")] = None,
    size: Annotated[int | None, typer.Option(min=8, max=1024, help="Input size, pixels; default: likewise.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Look at your data and write an experiment for them, with every choice explained.

    Asks at most three questions, and none if standard input is no terminal. Data without a test split get one: lists
    beside the experiment.
    """
    from btm_core.first_experiment import Wishes, first_experiment
    from flows.start import log_to_stderr, settings_of

    log_to_stderr(verbose=False)
    asking = sys.stdin.isatty() and not yes
    data = data or data_option or (_ask(WHERE) if asking else None)
    if not data:
        raise ConfigError("no data are named, and there is nobody to ask: btm init DATA")
    if start is None and asking:
        start = _ask(START, "") or None
    if goal is None and asking:
        goal = _ask(GOALS_ASKED, "normal")
    goal = _checked(output, goal or "normal", backbone, force)
    settings = settings_of({})
    wishes = Wishes(goal, test, test_share, start, backbone, size, settings.gpu_count())
    made = first_experiment(data, output, wishes, settings.cache)
    made.write(force=force)
    document = made.document()
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        _print(document)


def _ask(question: str, default: str | None = None) -> str:
    answer: str = typer.prompt(question, default=default, show_default=bool(default), err=True)
    return answer.strip()


def _checked(output: Path, goal: str, backbone: str | None, force: bool) -> "Goal":
    """Return the goal. Raises ConfigError for what can be told without a look at the data."""
    from btm_core.advice import GOALS
    from btm_core.config import BACKBONES

    if goal not in GOALS:
        raise ConfigError(f"--goal {goal!r}: expected {', '.join(GOALS)}")
    if backbone is not None and backbone not in BACKBONES:
        raise ConfigError(f"--backbone {backbone!r}: expected one of {', '.join(BACKBONES)}")
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{output}: an experiment is a .yaml file")
    if output.exists() and not force:
        raise ConfigError(f"{output} is there already; choose another with -o, or overwrite it with --force")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output.parent} is no folder; make it first")
    return goal


def _print(document: dict[str, Any]) -> None:
    from flows.terminal import say, say_next
    from flows.typed import as_typed

    say(
        f"{document['train_images']:,} training and {document['test_images']:,} test images in "
        f"{document['classes']:,} classes, {document['largest']:,} to {document['smallest']:,} training images a class."
    )
    for key in ("model.backbone", "data.input.size", "pretrain.epochs", "sampling.num_subsets", "sampling.shots"):
        if key in document["choices"]:
            say(f"  {key:<22} {document['choices'][key]}")
    if document["unreadable_in_sample"]:
        say(f"{document['unreadable_in_sample']} of the images looked at cannot be decoded: btm data inspect tells.")
    for file in [*document["lists"], document["file"]]:
        say(f"Wrote {file}")
    say()
    btm, file = as_typed("btm"), shlex.quote(document["file"])
    say_next(
        [
            (f"{btm} data inspect {file}", "copies, unreadable images, suspicious labels"),
            (f"{btm} plan {file}", "what a run will do, and how long it takes"),
            (f"{btm} run {file}", ""),
        ]
    )

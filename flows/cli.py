"""The command line. torch, Prefect and MLflow are imported only by the commands that need them.

Results go to standard output, progress and logs to standard error. Exit codes: 0 done, 2 bad input or configuration,
1 anything else.
"""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from btm_core.errors import BTMError

if TYPE_CHECKING:
    from btm_core.config import ExperimentConfig
    from tasks.settings import RuntimeSettings

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train image classifiers whose worst classes work: Balanced Training and Merging (BTM).",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the configuration; may be repeated.")
]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from btm_core import __version__

        print(f"btm {__version__}")
        raise typer.Exit


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(metavar="PRESET|FILE", help="A preset's name, or a YAML file.")],
    overrides: Overrides = None,
    store: Annotated[str | None, typer.Option(help="Artifact store: a folder, file:// or s3:// URL.")] = None,
    engine: Annotated[str | None, typer.Option(help="Where fine-tunes run: local.")] = None,
    workers: Annotated[int | None, typer.Option(help="Fine-tunes at a time; default: GPUs, or cores.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    as_json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's own log.")] = False,
) -> None:
    """Run BTM: stage 1, balanced fine-tunes, soup, post-training, evaluation, report.

    What the store already holds is not done again; an interrupted run goes on where it stopped.
    """
    from btm_core.config import load_experiment
    from flows.environment import prepare_prefect, stop_at_once_on_signals
    from flows.progress import show_progress

    _log_to_stderr()
    config = load_experiment(experiment, overrides or ())
    flags = {"store": store, "engine": engine, "workers": workers, "device": device}
    settings = _settings({name: value for name, value in flags.items() if value is not None})
    _preflight(config, settings)
    if settings.tracking_uri is not None:
        # Handed on by MLflow's own variable: it may hold a secret, and Prefect shows the parameters of a flow.
        os.environ["MLFLOW_TRACKING_URI"] = settings.tracking_uri
        settings = settings.model_copy(update={"tracking_uri": None})
    prepare_prefect(settings.home, verbose)
    with show_progress():
        from flows.btm import btm

        stop_at_once_on_signals()
        result: dict[str, Any] = btm(config, settings, _new_run_id(config.name))
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        options = [*(f"--set={override}" for override in overrides or ())]
        options += [f"--{name}={value}" for name, value in flags.items() if value is not None]
        _print_result(result, shlex.join([_as_typed("btm"), "run", experiment, *options]))


@app.command()
def presets(as_json: Json = False) -> None:
    """List the experiments that ship with BTM."""
    from btm_core.config import load_experiment, preset_names

    rows = []
    for name in preset_names():
        config = load_experiment(name)
        rows.append({"name": name, "source": config.source, "published": config.published})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']:<18} {row['source']}")
    print("\nRun one with: btm run NAME")


@app.command()
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


def main() -> NoReturn:
    """Run the command line: errors that the user can mend become one message and exit code 2."""
    try:
        app(standalone_mode=True)
    except BTMError as error:
        print(f"btm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("btm: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from tasks.execution import WorkerError

        if not isinstance(error, WorkerError):
            raise
        print(f"btm: {error}\nThe same command goes on where it stopped.", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _log_to_stderr() -> None:
    """Show what the library and the steps have to say."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("btm: %(message)s"))
    for name in ("btm_core", "tasks"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _settings(flags: dict[str, Any]) -> "RuntimeSettings":
    from pydantic import ValidationError

    from btm_core.errors import ConfigError
    from tasks.settings import RuntimeSettings

    try:
        return RuntimeSettings(**flags)
    except ValidationError as error:
        problems = "; ".join(
            f"{problem['loc'][0]}: {problem['msg']}, found {problem['input']!r}" for problem in error.errors()
        )
        raise ConfigError(f"runtime settings (flags, or environment variables BTM_*): {problems}") from None


def _preflight(config: "ExperimentConfig", settings: "RuntimeSettings") -> None:
    """Find what is wrong with data, checkpoint, device and store before a server is started or a network trained."""
    from btm_core.data import scan
    from btm_core.errors import ConfigError
    from btm_core.storage import Store
    from tasks.sample import short_classes

    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"BTM_HOME {settings.home} cannot be used as a folder: {error}") from None
    Store(settings.store_url).check_writable()
    if not settings.slots() or (settings.device == "cuda" and settings.gpu_count() == 0):
        raise ConfigError("device cuda was asked for, but no NVIDIA GPU is visible; use --device auto or cpu")
    catalog = scan(config.data)
    sampling = config.sampling
    short_classes(catalog.train_counts.tolist(), catalog.class_names, sampling.shots, sampling.when_short)
    checkpoint = config.pretrain.checkpoint
    if checkpoint is not None and "://" not in checkpoint:
        from btm_core.checkpoints import check_classes, load_into
        from btm_core.models import build_model

        path = Path(checkpoint).expanduser()
        load_into(build_model(config.model.backbone, catalog.num_classes, config.data.input.channels), path)
        check_classes(path, catalog.class_names)


def _new_run_id(name: str) -> str:
    """Return an id that sorts by time and cannot collide."""
    import datetime
    import secrets

    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{name}-{secrets.token_hex(3)}"


def _print_result(result: dict[str, Any], command: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"{result['name']}, seed {result['seed']}: every model on the way"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("H-mean", "G-mean", "lowest", "acc.", "many", "medium", "few", "zero"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["models"]:
        figures = [row[key] for key in ("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium", "few")]
        cells = ["n/a" if value is None else f"{100 * value:.1f}" for value in figures]
        style = "bold" if row["stage"] == "post_train" else ""
        table.add_row(row["name"], *cells, str(row["zero_recall_classes"]), style=style)
    Console(width=max(80, Console().width)).print(table)
    print("Test split, percent. lowest: lowest recall; zero: classes with zero recall.\n")
    trained = ", ".join(result["trained_stages"])
    print(f"Trained: {trained}." if trained else "Nothing was trained: every model was found in the store.")
    print(f"Took {result['seconds']:.0f} s.\n")
    print(f"Report       {result['report']}")
    print(f"Final model  {result['final_model']}")
    print(f"MLflow       {result['tracking']['uri']} (run {result['tracking']['run_id']})\n")
    print("What to type next:")
    print(f"  {command} --set seed={result['seed'] + 1}                # another seed; the data are not prepared again")
    print(f"  {command} --set post_train.epochs=20  # only what follows the change is done again")
    if result["tracking"]["uri"].startswith("sqlite"):
        print(f"  {_as_typed('mlflow')} ui --backend-store-uri {result['tracking']['uri']}")
    print(f"  {_as_typed('btm')} presets   # other experiments; README.md tells how to run your own data")


def _as_typed(command: str) -> str:
    """Return what a user has to type for a command of this environment: its name alone if the environment is active."""
    own = Path(sys.executable).with_name(command)
    found = shutil.which(command)
    if found and Path(found) == own:
        return command
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)


if __name__ == "__main__":
    main()

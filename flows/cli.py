"""The command line. torch, Prefect and MLflow are imported only by the commands that need them.

Results go to standard output, progress and logs to standard error. Exit codes: 0 done, 2 bad input or configuration,
1 anything else.
"""

import json
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from btm_core.errors import BTMError
from btm_core.urls import without_credentials
from flows.compare_command import compare
from flows.data.commands import data_app
from flows.deploy_command import deploy
from flows.doctor.commands import doctor
from flows.evaluate_command import evaluate
from flows.import_checkpoint import import_checkpoint
from flows.init_command import init
from flows.plan.commands import plan
from flows.promote_command import promote, register
from flows.stack.commands import down, status, up
from flows.store.commands import store_app

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

Experiment = Annotated[str, typer.Argument(metavar="PRESET|FILE", help="A preset's name, or a YAML file.")]
StoreUrl = Annotated[str | None, typer.Option("--store", help="Artifact store: a folder, file:// or s3:// URL.")]
Engine = Annotated[str | None, typer.Option(help="Where stages run: local, ray or workpool.")]
Workers = Annotated[int | None, typer.Option(help="Fine-tunes at a time; default: GPUs, or cores.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's own log.")]

ABLATION_NAMES = ("merging", "subsets", "training", "gml", "models", "interpolation")

app.command(name="import-checkpoint")(import_checkpoint)
for _command in (plan, evaluate, compare, register, promote, up, down, status, deploy, doctor):
    app.command()(_command)
app.add_typer(store_app, name="store")
app.add_typer(data_app, name="data")
app.command()(init)


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
    experiment: Experiment,
    overrides: Overrides = None,
    repeats: Annotated[int, typer.Option(min=1, help="Seeds to run: seed, seed + 1, ...; reports mean and std.")] = 1,
    store: StoreUrl = None,
    engine: Engine = None,
    workers: Workers = None,
    device: Device = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run BTM: stage 1, balanced fine-tunes, soup, post-training, evaluation, report.

    What the store already holds is not done again; an interrupted run goes on where it stopped.
    """
    from flows.printing import as_typed, print_comparison, print_result
    from flows.start import run_flow

    flags = {"store": store, "engine": engine, "workers": workers, "device": device}

    def call(config: "ExperimentConfig", settings: "RuntimeSettings", run_id: str) -> dict[str, Any]:
        from flows.ablations import repeat
        from flows.btm import btm

        return btm(config, settings, run_id) if repeats == 1 else repeat(config, settings, run_id, repeats)

    result = run_flow("" if repeats == 1 else "repeat", experiment, overrides or (), flags, verbose, call)
    if as_json:
        print(json.dumps(result, indent=1))
    elif repeats > 1:
        print_comparison(result)
    else:
        options = [*(f"--set={override}" for override in overrides or ())]
        options += [f"--{name}={value}" for name, value in flags.items() if value is not None]
        print_result(result, shlex.join([as_typed("btm"), "run", experiment, *options]))


@app.command()
def ablate(
    name: Annotated[str, typer.Argument(metavar="ABLATION", help="One of: " + ", ".join(ABLATION_NAMES) + ".")],
    experiment: Experiment,
    overrides: Overrides = None,
    repeats: Annotated[int, typer.Option(min=1, help="Seeds to run each variant with.")] = 1,
    store: StoreUrl = None,
    engine: Engine = None,
    workers: Workers = None,
    device: Device = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run one of the paper's ablations on an experiment. What its variants share is computed once."""
    from btm_core.errors import ConfigError
    from flows.printing import print_comparison
    from flows.start import run_flow

    if name not in ABLATION_NAMES:
        raise ConfigError(f"{name!r} is no ablation; known are {', '.join(ABLATION_NAMES)}")
    if name == "interpolation" and repeats > 1:
        raise ConfigError("interpolation draws one run's curves; choose another with --set seed=N, not --repeats")
    flags = {"store": store, "engine": engine, "workers": workers, "device": device}

    def call(config: "ExperimentConfig", settings: "RuntimeSettings", run_id: str) -> dict[str, Any]:
        from flows import ablations

        if name == "interpolation":
            return ablations.interpolate(config, settings, run_id)
        return ablations.ablate(config, settings, run_id, name, repeats)

    result = run_flow(name, experiment, overrides or (), flags, verbose, call)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print_comparison(result)


@app.command()
def presets(as_json: Json = False) -> None:
    """List the experiments that ship with BTM."""
    from btm_core.config import load_experiment, preset_names

    rows = []
    for name in preset_names():
        config = load_experiment(name)
        command = f"btm run {name}" + " --set pretrain.initial=FILE" * config.pretrain.needs_trained_backbone
        facts = {"hardware": config.hardware, "published": config.published, "command": command}
        rows.append({"name": name, "source": config.source, **facts})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']:<24} {row['source']}")
    print("\nRun one with: btm run NAME; --json tells hardware, hours, published figures and what else a command needs")


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
        print(f"btm: {without_credentials(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("btm: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from tasks.engines.pool import WorkerError

        if not isinstance(error, WorkerError):
            raise
        print(f"btm: {without_credentials(str(error))}\nThe same command goes on where it stopped.", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()

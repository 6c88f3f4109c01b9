"""`btm run` and `btm ablate`: a run of the algorithm, or many of them."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from btm_core.errors import ConfigError
from btm_core.text import did_you_mean
from flows.options import Device, Engine, Experiment, Json, Overrides, StoreUrl, Verbose, Workers

if TYPE_CHECKING:
    from btm_core.config import ExperimentConfig
    from tasks.settings import RuntimeSettings

__all__ = ["ablate", "run"]

ABLATION_NAMES = ("merging", "subsets", "training", "gml", "models", "interpolation")


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
    from flows.printing import print_comparison, print_result
    from flows.start import run_flow
    from flows.typed import Typed

    flags = {"store": store, "engine": engine, "workers": workers, "device": device}
    floors: list[float | None] = []

    def call(config: "ExperimentConfig", settings: "RuntimeSettings", run_id: str) -> dict[str, Any]:
        from flows.ablations import repeat
        from flows.btm import btm

        floors.append(config.promotion.lowest_recall)
        return btm(config, settings, run_id) if repeats == 1 else repeat(config, settings, run_id, repeats)

    result = run_flow("" if repeats == 1 else "repeat", experiment, overrides or (), flags, verbose, call)
    if as_json:
        print(json.dumps(result, indent=1))
    elif repeats > 1:
        print_comparison(result)
    else:
        print_result(result, Typed(experiment, overrides or (), flags), floors[0])


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
    from flows.printing import print_comparison
    from flows.start import run_flow

    if name not in ABLATION_NAMES:
        near = did_you_mean(name, ABLATION_NAMES)
        raise ConfigError(f"{name!r} is no ablation; known are {', '.join(ABLATION_NAMES)}{near}")
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

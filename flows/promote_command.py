"""`btm promote` and `btm register`: what a run made becomes a version of a registered model, and the gate decides."""

import importlib
import json
from typing import Annotated, Any

import typer

from btm_core.errors import ConfigError
from btm_core.urls import without_credentials
from flows.options import Json, StoreUrl, Verbose

__all__ = ["promote", "register"]

Model = Annotated[str | None, typer.Option(help="Registered model; default: the name of the run's experiment.")]
Extras = Annotated[
    list[str] | None,
    typer.Option("--extra", metavar="EXTRA", help="Also export: torch_export or onnx; may be repeated."),
]


def promote(
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN_ID]", help="A run that is done, the beginning of its id, or latest (of experiment --model)."
        ),
    ] = None,
    model: Model = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a rule, as promotion.lowest_recall=0.1."),
    ] = None,
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="Promote it whatever the gate says, for this reason.")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Make the previous champion of --model it again.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why it is rolled back.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Only tell which versions of --model are in use.")] = False,
    fail: Annotated[bool, typer.Option("--fail-if-refused", help="End with exit code 1 if the gate refuses.")] = False,
    store: StoreUrl = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Register the final model of a run, and make it the champion if its worst classes are good.

    The rules are those of the run's configuration, section promotion. The gate judges against the champion on the same
    images; the first model of all needs a floor: --set promotion.lowest_recall=0.1.
    """
    from flows.printing import print_decision, print_standing
    from flows.start import log_to_stderr, prefect_ready, settings_of

    if (run_id is None) != (rollback or show) or (rollback and show):
        raise ConfigError("give a RUN_ID to promote, or --rollback or --show with --model NAME")
    if (rollback or show) and (model is None or overrides or force is not None):
        raise ConfigError("--rollback and --show need --model NAME, and neither --set nor --force")
    wrong = [override for override in overrides or () if not override.startswith("promotion.")]
    if wrong:
        raise ConfigError(f"--set {wrong[0]}: only the rules can be overridden, as --set promotion.lowest_recall=0.1")
    if force is not None and not force.strip():
        raise ConfigError("--force needs the reason, which is written down with the decision")
    log_to_stderr(verbose)
    settings = settings_of({"store": store})
    if show:
        from tasks.registry.registry import Registry

        document = Registry(settings, str(model)).summary()
        _answer(document, as_json, print_standing)
        return
    with prefect_ready(settings, verbose, lambda: importlib.import_module("flows.promote")):
        from flows import promote as flows

        if rollback:
            document = flows.take_back(str(model), reason, settings)
        else:
            document = flows.promote(str(run_id), model, overrides or (), force, settings)
    _answer(document, as_json, print_decision)
    raise typer.Exit(1 if fail and document["decision"] == "refused" else 0)


def register(
    run_id: Annotated[
        str, typer.Argument(help="A run that is done, the beginning of its id, or latest (of experiment --model).")
    ],
    model: Model = None,
    extras: Extras = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Register the final model of a run in MLflow, to be served; no alias is moved but challenger."""
    from btm_core.storage import Store
    from flows.printing import print_version
    from flows.start import log_to_stderr, settings_of
    from tasks.finished import FinishedRun
    from tasks.registry import registering
    from tasks.registry.registry import Registry

    log_to_stderr(False)
    settings = settings_of({"store": store})
    run = FinishedRun.find(Store(settings.store_url), run_id, model)
    registry = Registry(settings, run.experiment.name if model is None else model)
    version = registering.register(registry, run, extras or ())
    document = {"model": registry.name, **version.to_json(), "uri": f"models:/{registry.name}/{version.number}"}
    document["mlflow"] = without_credentials(registry.uri)
    floor = run.experiment.promotion.lowest_recall
    _answer(document, as_json, lambda told: print_version(told, run.final["lowest_recall"], floor))


def _answer(document: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        show(document)

"""`btm plan`: what a run will do. It starts no server, trains nothing, and writes nothing into the store."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import Device, Engine, Experiment, Json, Overrides, StoreUrl, Workers

if TYPE_CHECKING:
    from tasks.settings import RuntimeSettings

__all__ = ["plan"]


def plan(
    experiment: Experiment,
    overrides: Overrides = None,
    store: StoreUrl = None,
    engine: Engine = None,
    workers: Workers = None,
    device: Device = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure a few steps of the real network, where no past run tells.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell what `btm run` would do: what is trained, what the store has, time, storage, and what looks odd."""
    from flows.start import log_to_stderr, settings_of

    log_to_stderr(verbose=False)
    flags = {"store": store, "engine": engine, "workers": workers, "device": device}
    document = _planned(experiment, overrides or [], settings_of(flags), probe)
    if as_json:
        print(json.dumps(document, indent=1))
        return
    from flows.plan.printing import print_plan
    from flows.typed import Typed

    print_plan(document, Typed(experiment, overrides or (), flags))


def _planned(experiment: str, overrides: list[str], settings: "RuntimeSettings", probe: bool) -> dict[str, Any]:
    from btm_core.config import load_experiment, preset_behind, with_absolute_paths
    from btm_core.storage import Store
    from flows.environment import prepare_prefect
    from flows.preflight import preflight
    from flows.start import results_alone_on_stdout
    from tasks.past import Past

    config = load_experiment(experiment, overrides)
    preset = preset_behind(experiment)
    # What was tuned together: a preset's values, or those of the file before it was changed on the way.
    base = load_experiment(preset) if preset is not None else load_experiment(experiment) if overrides else None
    with results_alone_on_stdout(), tempfile.TemporaryDirectory(prefix="btm-") as folder:
        catalog = preflight(config, settings, writing=False)
        if settings.engine != "local":
            config = with_absolute_paths(config)
        prepare_prefect(Path(folder))  # its import makes its folder
        os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")  # nothing is a flow run here
        from flows.plan.document import plan_document
        from flows.plan.walk import walk

        past = Past(Store(settings.store_url))
        found = walk(config, settings, catalog)
        return plan_document(config, settings, catalog, found, past.of, base, probing=probe)

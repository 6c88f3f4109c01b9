"""`btm deploy`: an experiment becomes a deployment, to be run by a schedule, by an event, or by a click."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from btm_core.errors import ConfigError
from btm_core.urls import refuse_credentials, without_credentials
from flows.options import Json, Overrides

if TYPE_CHECKING:
    from btm_core.config import ExperimentConfig

__all__ = ["deploy"]

SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|AUTH_STRING|API_KEY|PRIVATE_KEY|ACCESS_KEY_ID", re.IGNORECASE)


def deploy(
    experiment: Annotated[
        str | None, typer.Argument(metavar="[PRESET|FILE]", help="None: only what engine workpool needs.")
    ] = None,
    overrides: Overrides = None,
    pool: Annotated[str, typer.Option(help="Work pool of the steps; whole runs go to POOL-flows.")] = "btm",
    kind: Annotated[str, typer.Option("--type", help="process or kubernetes.")] = "process",
    limit: Annotated[int | None, typer.Option(min=1, help="Steps at a time, over all workers.")] = None,
    cron: Annotated[str | None, typer.Option(help='When to run, such as "0 3 * * *"; without it: no schedule.')] = None,
    timezone: Annotated[str | None, typer.Option(help="Of the schedule, such as Europe/Berlin; default: UTC.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The deployment becomes btm/NAME; default: the experiment's.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Artifact store; default: BTM_STORE where workers start.")] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Have the gate judge the final model of each run that is done.")
    ] = False,
    alert: Annotated[
        str | None, typer.Option(metavar="TYPE/NAME", help="Prefect block to tell of refusals, as webhook/ops.")
    ] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option(
            "--job-variable", metavar="KEY=VALUE", help="image=..., gpu=..., env.NAME=..., as the pool has it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Register work pools, deployments, a schedule and automations on the Prefect server of PREFECT_API_URL.

    The same command again changes nothing; another one brings what is there up to date.
    """
    if kind not in ("process", "kubernetes"):
        raise ConfigError(f"--type {kind} is unknown: process or kubernetes")
    if timezone is not None and cron is None:
        raise ConfigError("--timezone is that of a schedule: give --cron as well")
    alone = [flag for flag, value in (("--cron", cron), ("--name", name), ("--store", store)) if value is not None]
    if experiment is None and (alone or overrides):
        raise ConfigError(f"{' '.join(alone or ['--set'])} belongs to an experiment: name a preset or a file")
    if promote and experiment is None:
        raise ConfigError("--promote belongs to an experiment: name a preset or a file")
    if alert is not None and (not promote or not all(alert.partition("/"))):
        raise ConfigError("--alert tells of what --promote refuses: give both, and the block as TYPE/NAME")
    config = None if experiment is None else _config(experiment, overrides or [])
    given = dict(_variable(text) for text in variables or ())
    try:
        refuse_credentials(store or "")
    except ValueError as error:
        raise ConfigError(f"--store: {error}") from None
    if store is not None and "://" not in store:
        store = str(Path(store).expanduser().absolute())

    os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect reads it when it is imported
    from flows.deploy import Gate, Pools, register

    gate = Gate(alert=alert) if promote else None
    document = register(Pools(pool, kind, limit, given), config, name, cron, timezone, store, gate)
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        _print(document)


def _config(experiment: str, overrides: list[str]) -> "ExperimentConfig":
    """Read an experiment; its local paths become absolute, for workers start runs in folders of their own."""
    from btm_core.config import load_experiment, with_absolute_paths

    config = load_experiment(experiment, overrides)
    if config.data.format == "cifar100" and config.data.root is None:
        raise ConfigError(
            "data.root has to say where CIFAR-100 lies, or is to be downloaded to, on the workers: they start runs in "
            "folders of their own; add --set data.root=/data/cifar100"
        )
    return with_absolute_paths(config)


def _variable(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE; the value is YAML, but a variable of the environment is text."""
    import yaml

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"--job-variable {key!r} is not of the form KEY=VALUE, such as image=registry/btm:1")
    block = value.strip().startswith("{{ prefect.blocks.")
    if not block and (SECRET.search(key) or without_credentials(value) != value):
        raise ConfigError(
            f"--job-variable {key}: whoever sees the deployment would see this secret; set it where workers start, or "
            "put it into a block of Prefect's: --job-variable 'KEY={{ prefect.blocks.secret.NAME }}'"
        )
    if key.startswith("env."):
        return key, value
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"--job-variable {key}: {value!r} is not valid YAML: {problem}; put it in quotes") from None


def _print(document: dict[str, Any]) -> None:
    pool, flow_pool = document["pool"], document.get("flow_pool")
    limit = "no limit" if pool["limit"] is None else f"{pool['limit']} at a time"
    print(f"Prefect      {document['server']}")
    print(f"Work pool    {pool['name']} ({pool['type']}, {limit}): training stages")
    if flow_pool is not None:
        print(f"Work pool    {flow_pool['name']} ({flow_pool['type']}): whole runs, which wait for their stages")
    for name in document["deployments"]:
        print(f"Deployment   {name}")
    if flow_pool is not None:
        schedule = document["schedule"]
        print(f"Schedule     {schedule['cron']} ({schedule['timezone']})" if schedule else "Schedule     none")
    for name in document["automations"]:
        print(f"Automation   {name}")
    print("\nWhat to type next:")
    print(f"  {_worker(pool)}   # one a GPU")
    if flow_pool is not None:
        started = [name for name in document["deployments"] if name.startswith("btm/")]
        event = document["event"]
        print(f"  {_worker(flow_pool)}")
        print(f"  prefect deployment run {started[0]}")
        print(f"  prefect event emit {event['event']} --resource-id {event['resource']}")


def _worker(pool: dict[str, Any]) -> str:
    limit = " --limit 1" if pool["type"] == "process" and "limit" in pool else ""
    return f"prefect worker start --pool {pool['name']} --type {pool['type']}{limit}"

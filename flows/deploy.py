"""Registering BTM with a Prefect server: work pools, deployments, a schedule, automations. Twice is the same as once.

What is registered is written in `deployments/`, which Prefect's own tools read as well. The steps of all experiments go
to one pool; the runs of whole experiments, which wait for their steps, have a pool of their own: a pool limited to one
run would otherwise wait for itself for ever.
"""

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import yaml
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import AutomationCore, DeploymentEventTrigger
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from btm_core.config import ExperimentConfig
from btm_core.errors import ConfigError

__all__ = ["Gate", "Pools", "declared", "register", "register_steps"]

STEP, EXPERIMENT, GATE = "flows.step.step", "flows.btm.btm", "flows.promote.promote"
"""Entrypoints: workers import a flow by its module's name, for BTM is installed where they run."""


@dataclass(frozen=True)
class Gate:
    """The final model of each run is judged, by the rules of its configuration.

    - alert: block document that is told of refusals, as TYPE/NAME.
    """

    alert: str | None = None


@dataclass(frozen=True)
class Pools:
    """The two work pools: who executes steps, and who executes the runs that wait for them."""

    steps: str = "btm"
    kind: str = "process"
    limit: int | None = None
    """Steps at a time; None leaves a limit that is there."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Job variables, for the runs of both."""

    @property
    def flows(self) -> str:
        """The pool of the runs of whole experiments."""
        return f"{self.steps}-flows"


def register_steps(pool: str) -> None:
    """Create the process pools `pool` and `<pool>-flows` if they are not there, and the deployment `btm-step/<pool>`.

    Prefect reads its address from the environment when it is imported: set it before.
    """
    _on_server(_register_steps(Pools(pool)))


def register(
    pools: Pools,
    experiment: ExperimentConfig | None = None,
    name: str | None = None,
    cron: str | None = None,
    timezone: str | None = None,
    store: str | None = None,
    gate: Gate | None = None,
) -> dict[str, Any]:
    """Register the pool of steps, and with an experiment the deployment `btm/<name>`; returns what there is then.

    With a gate there is `btm-promote/<name>` too, which each run of `btm/<name>` that is done starts.
    """
    schedule = None if cron is None else _schedule(cron, timezone)
    return _on_server(_register(pools, experiment, name, schedule, store, gate))


def declared(entrypoint: str) -> dict[str, Any]:
    """Return the deployment of a flow as `deployments/prefect.yaml` has it."""
    document = yaml.safe_load(_file("prefect.yaml").read_text(encoding="utf-8"))
    return next(entry for entry in document["deployments"] if entry["entrypoint"] == entrypoint)


def _file(name: str) -> Path:
    """Return a file of `deployments/`: beside this package in a checkout, inside it where it is installed."""
    here = Path(__file__).parent
    return next(path for folder in (here, here.parent) if (path := folder / "deployments" / name).is_file())


def _on_server(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Do something on the Prefect server; what is wrong with it is one error."""
    url = get_current_settings().api.url
    try:
        if not url:
            raise ConfigError(
                "deployments live on a Prefect server, and PREFECT_API_URL names none; start one (prefect server "
                "start) and set it: export PREFECT_API_URL=http://HOST:4200/api"
            )
        return asyncio.run(_checked(work))
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"the Prefect server at {url} (PREFECT_API_URL) cannot be reached: {error}; is it up, and is its "
            "URL of the form http://HOST:4200/api?"
        ) from None
    except PrefectHTTPStatusError as error:
        reason = f"{error.response.status_code} {error.response.text[:500]}"
        raise ConfigError(f"the Prefect server at {url} (PREFECT_API_URL) refused: {reason}") from None
    finally:
        work.close()


async def _checked(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    async with get_client() as client:
        if (problem := await client.api_healthcheck()) is not None:  # at once, where the client itself would retry
            raise httpx.ConnectError(str(problem) or repr(problem))
    return await work


async def _register_steps(pools: Pools) -> dict[str, Any]:
    from flows.step import step

    async with get_client() as client:
        await _ensure_pool(client, pools.steps, pools.kind, pools.limit)
        await _ensure_pool(client, pools.flows, pools.kind)  # its worker may come before its first deployment
        deployment = await _deploy(client, step, pools.steps, pools.steps, STEP, pools.variables)
        watch = AutomationCore.model_validate(yaml.safe_load(_file("heartbeats.yaml").read_text(encoding="utf-8")))
        automation = await _ensure_automation(client, watch)
        pool = await client.read_work_pool(pools.steps)
    return {
        "server": str(get_current_settings().api.url),
        "pool": {"name": pool.name, "type": pool.type, "limit": pool.concurrency_limit},
        "deployments": {f"btm-step/{pools.steps}": str(deployment)},
        "automations": {watch.name: str(automation)},
        "schedule": None,
        "event": None,
    }


async def _register(
    pools: Pools,
    experiment: ExperimentConfig | None,
    name: str | None,
    schedule: CronSchedule | None,
    store: str | None,
    gate: Gate | None,
) -> dict[str, Any]:
    from flows.btm import btm

    document = await _register_steps(pools)
    if experiment is None:
        return document
    name = name or experiment.name
    entry = declared(EXPERIMENT)
    own = {**entry["work_pool"]["job_variables"], "env.BTM_WORK_POOL": pools.steps}
    own.pop("env")
    given = pools.variables | ({} if store is None else {"env.BTM_STORE": store})
    async with get_client() as client:
        limit = entry["concurrency_limit"]
        deployment = await _deploy(
            client,
            btm,
            name,
            pools.flows,
            EXPERIMENT,
            given | own,
            description=f"The experiment {experiment.name} of BTM, end to end.",
            parameters={"experiment": experiment.model_dump(mode="json")},
            schedules=[] if schedule is None else [await _scheduled(client, f"btm/{name}", schedule)],
            concurrency_limit=limit["limit"],
            concurrency_options=ConcurrencyOptions(collision_strategy=limit["collision_strategy"]),
        )
        [arrived] = entry["triggers"]
        resource = f"btm.data.{experiment.name}"
        trigger = DeploymentEventTrigger.model_validate(
            {**arrived, "name": f"btm/{name}: new data", "match": {"prefect.resource.id": resource}}
        )
        trigger.set_deployment_id(deployment)
        automation = await _ensure_automation(client, trigger.as_automation())
        if gate is not None:
            added = await _register_gate(client, gate, experiment.name, name, deployment, pools.flows, given)
            document["deployments"][f"btm-promote/{name}"] = str(added.pop("deployment"))
            document["automations"] |= {key: str(value) for key, value in added.items()}
    document["flow_pool"] = {"name": pools.flows, "type": pools.kind}
    document["deployments"][f"btm/{name}"] = str(deployment)
    document["automations"][str(trigger.name)] = str(automation)
    document["schedule"] = None if schedule is None else schedule.model_dump(mode="json", include={"cron", "timezone"})
    document["event"] = {"event": arrived["expect"][0], "resource": resource}
    return document


async def _register_gate(
    client: PrefectClient, gate: Gate, model: str, name: str, runs_of: UUID, pool: str, variables: dict[str, Any]
) -> dict[str, UUID]:
    """Register `btm-promote/<name>`, what starts it after runs of a deployment, and the alert; returns all by name."""
    from flows.promote import promote

    entry = declared(GATE)
    gate_id = await _deploy(
        client,
        promote,
        name,
        pool,
        GATE,
        {"gpu": entry["work_pool"]["job_variables"]["gpu"], **variables},
        description=f"Registers the final model of a run of {model}, and promotes it if its worst classes are good.",
        parameters={"run_id": "latest", "model": model},
        concurrency_limit=entry["concurrency_limit"]["limit"],
        concurrency_options=ConcurrencyOptions(collision_strategy=entry["concurrency_limit"]["collision_strategy"]),
    )
    [after] = entry["triggers"]
    related = {"prefect.resource.id": f"prefect.deployment.{runs_of}", "prefect.resource.role": "deployment"}
    trigger = DeploymentEventTrigger.model_validate(
        {**after, "name": f"btm-promote/{name}: after a run", "match_related": related}
    )
    trigger.set_deployment_id(gate_id)
    found = {"deployment": gate_id, str(trigger.name): await _ensure_automation(client, trigger.as_automation())}
    if gate.alert is not None:
        alert = await _alert(client, gate.alert, model, name)
        found[alert.name] = await _ensure_automation(client, alert)
    return found


async def _alert(client: PrefectClient, block: str, model: str, name: str) -> AutomationCore:
    """Return the automation that tells a block of refusals. Raises ConfigError if there is no such block."""
    from prefect.exceptions import ObjectNotFound

    kind, _, title = block.partition("/")
    try:
        document = await client.read_block_document_by_name(title, kind)
    except ObjectNotFound:
        raise ConfigError(
            f"--alert {block}: the Prefect server has no block {title!r} of type {kind!r}; make it in its UI, or see "
            "prefect block ls"
        ) from None
    declared_alert = yaml.safe_load(_file("alert.yaml").read_text(encoding="utf-8"))
    [action] = declared_alert["actions"]
    action["block_document_id"] = str(document.id)
    if kind != "webhook":
        subject = "{{ event.resource.name }} version {{ event.payload.version }} was refused"
        action |= {"type": "send-notification", "subject": subject, "body": action.pop("payload")}
    declared_alert["trigger"]["match"] = {"prefect.resource.id": f"btm.model.{model}"}
    return AutomationCore.model_validate({**declared_alert, "name": f"btm-promote/{name}: alert when refused"})


async def _ensure_pool(client: PrefectClient, name: str, kind: str, limit: int | None = None) -> None:
    """Create a work pool, unless there is one of its name: that one keeps its template, which people edit."""
    template = json.loads(_file(f"{kind}-base-job-template.json").read_text(encoding="utf-8"))
    try:
        await client.create_work_pool(
            WorkPoolCreate(name=name, type=kind, base_job_template=template, concurrency_limit=limit)
        )
        return
    except ObjectAlreadyExists:
        pool = await client.read_work_pool(name)
    if pool.type != kind:
        raise ConfigError(
            f"work pool {name} is of type {pool.type}, not {kind}; give --type {pool.type} or another --pool"
        )
    if limit is not None:
        await client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


async def _deploy(
    client: PrefectClient,
    flow: Any,
    name: str,
    pool: str,
    entrypoint: str,
    variables: dict[str, Any],
    description: str | None = None,
    **options: Any,
) -> UUID:
    """Create the deployment `<flow>/<name>` on a pool, or bring it up to date.

    Variables called `env.NAME` are set on top of the declared environment.
    """
    entry = declared(entrypoint)
    return await client.create_deployment(
        flow_id=await client.create_flow(flow),
        name=name,
        work_pool_name=pool,
        entrypoint=entrypoint,
        description=description or entry["description"],
        tags=entry["tags"],
        job_variables=_nested(entry["work_pool"]["job_variables"]["env"], variables),
        parameter_openapi_schema=parameter_schema(flow).model_dump(),
        enforce_parameter_schema=True,
        pull_steps=[],
        **options,
    )


def _nested(environment: dict[str, str], variables: dict[str, Any]) -> dict[str, Any]:
    """Return job variables with all `env.NAME` in their `env`."""
    own = {key.removeprefix("env."): value for key, value in variables.items() if key.startswith("env.")}
    return {key: value for key, value in variables.items() if not key.startswith("env.")} | {"env": environment | own}


def _schedule(cron: str, timezone: str | None) -> CronSchedule:
    try:
        return CronSchedule(cron=cron, timezone=timezone or "UTC")
    except ValidationError as error:
        reasons = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise ConfigError(
            f"--cron {cron!r} in --timezone {timezone or 'UTC'} is no schedule: {reasons}; "
            'expected five fields, such as "0 3 * * *", and a name such as Europe/Berlin'
        ) from None


async def _scheduled(client: PrefectClient, deployment: str, schedule: CronSchedule) -> DeploymentScheduleCreate:
    """Return what to create: the server replaces schedules, and would start those anew that somebody had paused."""
    from prefect.exceptions import ObjectNotFound

    try:
        there = (await client.read_deployment_by_name(deployment)).schedules
    except ObjectNotFound:
        there = []
    paused = any(not one.active and one.schedule == schedule for one in there)
    return DeploymentScheduleCreate(schedule=schedule, active=not paused, slug="btm")


async def _ensure_automation(client: PrefectClient, automation: AutomationCore) -> UUID:
    """Create an automation, or bring the one of its name up to date; it is never away meanwhile."""
    there = await client.read_automations_by_name(automation.name)
    if not there:
        return await client.create_automation(automation)
    for more in there[1:]:
        await client.delete_automation(more.id)
    # The server takes an owner when it creates one, and refuses it in an update; one that was disabled stays so.
    values = automation.model_dump(exclude={"owner_resource"}) | {"enabled": there[0].enabled}
    await client.update_automation(there[0].id, AutomationCore.model_validate(values))
    return there[0].id

"""`btm store ls | show | verify | gc | rm`: the commands. What they need is imported when they are called."""

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import Json, StoreUrl
from flows.terminal import say_error

if TYPE_CHECKING:
    from btm_core.storage import Store
    from tasks.housekeeping.garbage import Registered
    from tasks.housekeeping.inventory import Inventory
    from tasks.settings import RuntimeSettings

__all__ = ["store_app"]

store_app = typer.Typer(name="store", no_args_is_help=True, help="List, verify and clean up what runs have made.")

Delete = Annotated[bool, typer.Option("--delete", help="Do it; otherwise it is only told what would be deleted.")]
IgnoreRegistry = Annotated[
    bool, typer.Option("--ignore-registry", help="Do not ask MLflow what its registered models need.")
]
MOST_HOURS = 1e6
NAME = "A run id, an address or a URL; the beginning is enough if it is unambiguous."


def _number(value: float) -> float:
    """Refuse nan, which is neither too small nor too large."""
    if math.isnan(value):
        raise typer.BadParameter("nan is no number of hours")
    return value


Grace = Annotated[
    float,
    typer.Option(min=0, max=MOST_HOURS, metavar="HOURS", help="Nothing younger is deleted.", callback=_number),
]


@store_app.command()
def ls(
    runs: Annotated[bool, typer.Option("--runs", help="Only the runs.")] = False,
    artifacts: Annotated[bool, typer.Option("--artifacts", help="Only the artifacts.")] = False,
    as_json: Json = False,
    store: StoreUrl = None,
) -> None:
    """List runs and artifacts with their sizes; marks what is half, damaged or referred to by no run."""
    from flows.store import documents, printing

    _, _, inventory = _open(store)
    document = documents.listing(inventory, runs or not artifacts, artifacts or not runs)
    _answer(document, as_json, printing.print_listing)


@store_app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="RUN_ID|ADDRESS", help=NAME)],
    as_json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Show a run with its artifacts, figures and report, or an artifact with its manifest, parents and users."""
    from flows.store import documents, printing

    opened, _, inventory = _open(store)
    kind, found = inventory.resolve(name)
    if kind == "artifact":
        _answer(documents.artifact_document(inventory, found), as_json, printing.print_artifact)
    else:
        _answer(documents.run_document(inventory, found, opened), as_json, printing.print_run)


@store_app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[RUN_ID|ADDRESS]...", help=NAME)] = None,
    mark: Annotated[
        bool, typer.Option("--mark", help="Mark what is damaged: the next run that needs it makes it again.")
    ] = False,
    as_json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Read every file of all artifacts, or of those named, and compare sha256 and size with the manifests.

    The exit code is 0 if all is well, else 1.
    """
    from dataclasses import asdict

    from flows.store import printing
    from tasks.housekeeping.verifying import verify as read_all

    opened, _, inventory = _open(store)
    addresses: set[str] = set()
    for name in names or ():
        kind, found = inventory.resolve(name)
        addresses |= inventory.needed_by(inventory.runs[found]) if kind == "run" else {found}

    def tell(done: int, of: int, count: int, seconds: float) -> None:
        rate = count / max(seconds, 1e-9)
        _say(f"{done} of {of} artifacts, {printing.size(count)} read, {printing.size(rate)}/s")

    verdict = read_all(opened, inventory, addresses if names else None, mark=mark, tell=tell)
    _answer({"store": inventory.url, "marked": mark, **asdict(verdict)}, as_json, printing.print_verdict)
    raise typer.Exit(1 if verdict.damaged else 0)


@store_app.command()
def gc(
    delete: Delete = False,
    grace: Grace = 168,
    ignore_registry: IgnoreRegistry = False,
    as_json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Tell, or delete, what no run, no registered model and no flow under way needs."""
    from datetime import timedelta

    from flows.store import documents, printing
    from tasks.housekeeping.garbage import garbage
    from tasks.housekeeping.sweep import sweep

    opened, settings, inventory = _open(store, deleting=delete)
    hours = timedelta(hours=grace)
    registered = _registered(settings, inventory, ignore_registry, needed=delete)
    found = garbage(inventory, hours, registered)
    spared = []
    if delete:
        swept = sweep(opened, inventory, found, hours, registered, lambda n: _say(f"{n} of {len(found)} done"))
        found, spared = swept.deleted, swept.spared
    document = documents.garbage_document(inventory, grace, registered, found, spared, deleted=delete)
    _answer(document, as_json, printing.print_garbage)


@store_app.command()
def rm(
    runs: Annotated[list[str], typer.Argument(metavar="RUN_ID...", help=NAME)],
    delete: Delete = False,
    ignore_registry: IgnoreRegistry = False,
    as_json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Forget runs: delete their reports, so that `btm store gc` takes what only they referred to."""
    from flows.store import documents, printing

    opened, settings, inventory = _open(store, deleting=delete)
    registered = _registered(settings, inventory, ignore_registry, needed=delete)
    chosen = [_forgettable(inventory, name, registered) for name in runs]
    document = documents.forgotten_document(inventory, chosen, deleted=delete)
    for run_id in chosen if delete else ():
        opened.remove("runs", run_id)
    _answer(document, as_json, printing.print_forgotten)


def _forgettable(inventory: "Inventory", name: str, registered: "Registered") -> str:
    """Return the id of a run that may be forgotten. Raises StoreError if it may not."""
    from datetime import timedelta

    from btm_core.errors import StoreError
    from tasks.housekeeping.garbage import is_live

    kind, run_id = inventory.resolve(name)
    if kind != "run":
        raise StoreError(f"{name!r} is an artifact: `btm store gc` deletes those, when no run refers to them")
    if run_id in registered.runs:
        raise StoreError(f"run {run_id} is needed by registered model {registered.runs[run_id]}; delete that first")
    if is_live(inventory.runs[run_id], inventory.now, timedelta(0)):
        raise StoreError(f"run {run_id} is under way; stop it first (one that was killed counts as dead after an hour)")
    return run_id


def _open(url: str | None, *, deleting: bool = False) -> "tuple[Store, RuntimeSettings, Inventory]":
    from btm_core.errors import StoreError
    from btm_core.storage import Store
    from tasks.housekeeping.backend import Backend
    from tasks.housekeeping.inventory import read_inventory
    from tasks.settings import runtime_settings

    settings = runtime_settings({} if url is None else {"store": url})
    store = Store(settings.store_url)
    if not Backend(store.url).exists():
        raise StoreError(f"there is no store at {store.url}; choose another with --store")
    return store, settings, read_inventory(store, deleting=deleting)


def _registered(settings: "RuntimeSettings", inventory: "Inventory", ignore: bool, *, needed: bool) -> "Registered":
    """Ask MLflow what its models need. Raises TrackingError if it cannot be asked, unless nothing is to be deleted."""
    from btm_core.errors import TrackingError
    from tasks.housekeeping.garbage import Registered

    if ignore:
        return Registered("nobody was asked (--ignore-registry)")
    from tasks.housekeeping.registered import registered_models

    try:
        return registered_models(settings, inventory.url, inventory.runs)
    except TrackingError as error:
        if needed:
            raise
        _say(f"with --delete this would be refused: {error}")
        return Registered("nobody could be asked")


def _answer(document: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        print(json.dumps(document, indent=1, default=str))
    else:
        show(document)


def _say(message: str) -> None:
    say_error(message)

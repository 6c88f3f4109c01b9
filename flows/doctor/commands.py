"""`btm doctor`: one screen on this machine and its settings."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from flows.options import Engine, Json, StoreUrl
from flows.terminal import Cell, say, table

if TYPE_CHECKING:
    from flows.doctor.checks import Check

__all__ = ["doctor"]


def doctor(
    store: StoreUrl = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """Look at this machine and its settings: what is well, what is not, and what to do. Exit code 1 if anything fails.

    It starts nothing, and leaves nothing behind.
    """
    from flows.doctor.checks import examine
    from flows.start import results_alone_on_stdout, settings_of

    flags = {"store": store, "engine": engine}
    with results_alone_on_stdout():
        checks = examine(settings_of(flags))
    failed = [check.name for check in checks if check.state == "fail"]
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        _print(checks)
        say(f"Failed: {', '.join(failed)}." if failed else "Nothing failed.")
    raise typer.Exit(1 if failed else 0)


def _print(checks: "list[Check]") -> None:
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    rows: list[list[Cell]] = []
    for check in checks:
        rows.append([(check.state, colours[check.state]), check.name, check.found])
        if check.todo:
            rows.append(["", "", f"-> {check.todo}"])
    table("", ("", "what", "found"), rows)

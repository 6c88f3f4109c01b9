"""`btm doctor`: one screen on this machine and its settings."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from flows.options import Engine, Json, StoreUrl

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
        print(f"Failed: {', '.join(failed)}." if failed else "Nothing failed.")
    raise typer.Exit(1 if failed else 0)


def _print(checks: "list[Check]") -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "what", "found"):
        table.add_column(column, no_wrap=column != "found", overflow="fold")
    for check in checks:
        words = escape(check.found) + (f"\n-> {escape(check.todo)}" if check.todo else "")
        table.add_row(f"[{colours[check.state]}]{check.state}[/]", escape(check.name), words)
    Console(width=max(100, Console().width)).print(table)

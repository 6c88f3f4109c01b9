"""`btm up`, `btm down`, `btm status`: the real stack on one machine, without Docker."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.options import Json
from flows.terminal import say_error, table

__all__ = ["down", "status", "up"]


def up(
    workers: Annotated[
        int | None, typer.Option(min=0, help="Workers that execute fine-tunes for the engine workpool.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start Prefect, MLflow and S3 (SeaweedFS) servers on this machine; what runs already is left alone."""
    from flows.stack import lifecycle

    home = _home()
    report = lifecycle.up(home, workers, _say)
    if as_json:
        print(json.dumps(report, indent=1))
        return
    from flows.typed import as_typed

    _print(report)
    file = home / "stack" / "env"
    file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    print("What to type next:")
    print(f"  . {file}   # this shell then uses them; the file holds the passwords, those of the pages too")
    print(f"  {as_typed('btm')} run digits-lt")
    print(f"  {as_typed('btm')} down             # stops them; their data stay")


def down(
    delete: Annotated[bool, typer.Option("--delete", help="Remove their data too: runs, buckets, passwords.")] = False,
) -> None:
    """Stop what `btm up` started."""
    from flows.stack import lifecycle

    stopped = lifecycle.down(_home(), delete, _say)
    print(f"Stopped {', '.join(stopped)}." if stopped else "Nothing was running.")


def status(as_json: Json = False) -> None:
    """Show what runs of the stack. The exit code is 0 if all of it does, else 1."""
    from flows.stack import lifecycle

    report = lifecycle.status(_home())
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _print(report)
    raise typer.Exit(0 if all(row["state"] == "running" for row in report["services"]) else 1)


def _home() -> Path:
    from tasks.settings import runtime_settings

    return runtime_settings({}).home.absolute()


def _say(message: str) -> None:
    say_error(message)


def _print(report: dict[str, Any]) -> None:
    rows, styles = [], []
    for row in report["services"]:
        log = Path(row["log"])
        log = log.relative_to(Path.cwd()) if log.is_relative_to(Path.cwd()) else log
        rows.append([row["name"], row["state"], row["url"] or "", str(row["pid"] or ""), str(log)])
        styles.append("" if row["state"] == "running" else "red")
    # As wide as it is: a port that is cut off helps nobody.
    table("", ("service", "state", "url", "pid", "log"), rows, styles=styles, whole=True)

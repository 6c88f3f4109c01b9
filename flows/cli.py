"""The command line. torch, Prefect and MLflow are imported only by the commands that need them.

Results go to standard output, progress and logs to standard error. Exit codes: 0 done, 2 bad input or configuration,
1 anything else.
"""

import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

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
from flows.merge_command import merge
from flows.plan.commands import plan
from flows.presets_command import presets
from flows.promote_command import promote, register
from flows.run_command import ablate, run
from flows.stack.commands import down, status, up
from flows.store.commands import store_app
from flows.terminal import ready, say_error

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train image classifiers whose worst classes work: Balanced Training and Merging (BTM).",
)

COMMANDS: dict[str, tuple[Callable[..., None] | typer.Typer, ...]] = {
    "Begin": (doctor, presets, init, plan),
    "Train": (run, ablate, import_checkpoint, merge),
    "Judge and use": (evaluate, compare, register, promote),
    "Servers and clusters": (up, status, down, deploy),
    "Data and artifacts": (data_app, store_app),
}
"""As `btm --help` shows them: in the order in which one needs them."""

for _panel, _commands in COMMANDS.items():
    for _command in _commands:
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, rich_help_panel=_panel)
        else:
            app.command(rich_help_panel=_panel)(_command)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from btm_core import __version__

        print(f"btm {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line: errors that the user can mend become one message and exit code 2."""
    ready()
    try:
        app(standalone_mode=True)
    except BTMError as error:
        say_error(without_credentials(str(error)))
        sys.exit(2)
    except KeyboardInterrupt:
        say_error("interrupted; the same command goes on where it stopped")
        sys.exit(130)
    except Exception as error:
        from tasks.engines.pool import WorkerError

        if not isinstance(error, WorkerError):
            raise
        say_error(f"{without_credentials(str(error))}\nThe same command goes on where it stopped.")
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()

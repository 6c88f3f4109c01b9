"""Write the pages of docs/reference/ from the code: commands, configuration, settings, recipes, functions.

`python docs/tools/generate.py` writes them, `make docs` runs it, and tests/test_docs.py fails where one is not what
this would write. They are committed, so that they read well where nothing is built.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml
from markdown_parts import anchor, paragraph, table
from pydantic import BaseModel
from settings_pages import config, settings

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"

API = {
    "btm_core.metrics": "Figures of what a model predicts",
    "btm_core.statistics": "Repetitions and intervals",
    "btm_core.sampling": "Balanced subsets",
    "btm_core.data": "Data",
    "btm_core.merging": "Merging",
    "btm_core.soups": "Which ingredients a soup gets",
    "btm_core.losses": "Losses",
    "btm_core.models": "Networks",
    "btm_core.training": "Training",
    "btm_core.post_training": "Post-training",
    "btm_core.evaluation": "Predictions",
    "btm_core.checkpoints": "Checkpoints",
    "btm_core.importing": "Other people's checkpoints",
    "btm_core.config": "Experiments",
    "btm_core.side_by_side": "Two models side by side",
    "btm_core.storage": "The store",
    "btm_core.errors": "Errors",
}
"""The modules that people import from, with what each is for."""


def pages() -> dict[str, str]:
    """Return the text of every generated page, by its path below docs/."""
    made = {"commands": commands, "config": config, "settings": settings, "recipes": recipes, "api": api}
    return {f"reference/{name}.md": page().rstrip() + "\n" for name, page in made.items()}


# Commands


def commands() -> str:
    """Return the page of every command, from the typer app."""
    from flows.cli import app

    root = typer.main.get_command(app)
    parts = [
        "# Commands",
        paragraph("""
            What `btm COMMAND --help` says, of all commands. Results go to standard output, progress and logs to
            standard error. Exit codes: 0 done, 2 bad input or configuration (one message that says what to mend), 1
            anything else.
        """),
        table(("command", "what it does"), [(f"[`{name}`](#{anchor(name)})", _first(c)) for name, c in _walk(root)]),
        *(_command(name, command) for name, command in _walk(root)),
    ]
    return "\n\n".join(parts)


def _walk(command: Any, name: str = "btm") -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with how it is typed."""
    for own, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _walk(child, f"{name} {own}")
        else:
            yield f"{name} {own}", child


def _first(command: Any) -> str:
    return inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ")


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p not in arguments]
    usage = " ".join([name, "[OPTIONS]" if options else "", *(_metavar(p) for p in arguments)])
    parts = [f"## {name}", inspect.cleandoc(command.help or ""), f"```text\n{' '.join(usage.split())}\n```"]
    if arguments:
        rows = [(f"`{_metavar(p)}`", _help(p)) for p in arguments]
        parts.append(table(("argument", "meaning"), rows))
    if options:
        parts.append(table(("option", "default", "meaning"), [_option(p) for p in options]))
    return "\n\n".join(parts)


def _metavar(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    if parameter.nargs != 1 and "..." not in name:
        name += "..."
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _option(option: Any) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    value = "" if option.is_flag else f" `{option.metavar or option.name.upper()}`"
    default = "" if option.default in (None, False, ()) or callable(option.default) else f"`{option.default}`"
    repeated = "; may be repeated" if option.multiple and "repeated" not in (option.help or "") else ""
    needed = "needed" if option.required else default
    return names + value, needed, _help(option).rstrip(".") + repeated + "."


def _help(parameter: Any) -> str:
    return " ".join((parameter.help or "").split())


# Recipes

SHOWN = ("h_mean", "g_mean", "lowest_recall", "accuracy")


def recipes() -> str:
    """Return the page of the presets: where each is from, what it takes, what was published, how to run it."""
    from btm_core.config import load_experiment, preset_names, preset_text

    rows, details = [], []
    for name in preset_names():
        experiment = load_experiment(name)
        published = experiment.published or {}
        command = f"btm run {name}" + " --set pretrain.initial=FILE" * experiment.pretrain.needs_trained_backbone
        figures = " / ".join(str(published.get(figure, "-")) for figure in SHOWN) if published else "-"
        rows.append(
            (f"[`{name}`](#{anchor(name)})", experiment.model.backbone, experiment.pretrain.method.name, figures)
        )
        comments, body = _split(preset_text(name))
        facts = [f"- Source: {experiment.source}", f"- Hardware: {experiment.hardware}"]
        facts += [f"- Published, percent: {', '.join(f'{_word(k)} {v}' for k, v in published.items())}"] * bool(
            published
        )
        notes = [line for line in comments if not re.match(r"(Run\b|Source:|Hardware:)", line)]
        yaml_block = (
            f"<details markdown>\n<summary>The file {name}.yaml</summary>\n\n```yaml\n{body}\n```\n\n</details>"
        )
        details.append(
            "\n\n".join([f"## {name}", " ".join(notes), f"```sh\n{command}\n```", "\n".join(facts), yaml_block])
        )
    parts = [
        "# Recipes",
        paragraph("""
            The experiments that ship with BTM, as `btm presets --json` tells them: one for every row of the paper that
            BTM touches, and two that run on any CPU. Published figures are the paper's, H-mean / G-mean / lowest recall
            / accuracy in percent, those of the row with BTM; what was measured here is in
            [concepts](../concepts.md#does-it-help) and in the [log](../log.md). Hours marked "estimated" were not
            measured: [methods](../methods.md#hours) says how they were estimated.
        """),
        paragraph("""
            A recipe is where to start: `--set KEY=VALUE` changes any key of the [configuration](config.md), and
            `preset: NAME` at the top of [your own file](../own-data.md) starts from one.
        """),
        table(("preset", "network", "stage 1", "published"), rows),
        *details,
    ]
    return "\n\n".join(parts)


def _split(text: str) -> tuple[list[str], str]:
    """Return the comment lines at the top of a preset, and what comes after them."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    yaml.safe_load(text)
    return [line.removeprefix("#").strip() for line in lines[:first]], "\n".join(lines[first:]).strip()


def _word(figure: str) -> str:
    return {"h_mean": "H-mean", "g_mean": "G-mean"}.get(figure, figure.replace("_", " "))


# Functions


def api() -> str:
    """Return the page of the public functions and classes that people import."""
    parts = [
        "# Functions",
        paragraph("""
            `btm_core` is a library by itself: it knows neither Prefect nor MLflow. These are the functions and classes
            that [people import](../library.md), with the first sentence of what Python's `help()` says of them: shapes,
            units and errors are there. Names that are not in a module's `__all__` may change.
        """),
    ]
    for name, title in API.items():
        module = importlib.import_module(name)
        found = [(public, getattr(module, public)) for public in module.__all__]
        rows = [
            (_shown(public, value), _sentence(value))
            for public, value in found
            if inspect.isroutine(value) or inspect.isclass(value)
        ]
        parts += [f"## {title}", f"`{name}`: {_sentence(module)}", table(("name", "what it is"), rows)]
    return "\n\n".join(parts)


def _shown(name: str, value: Any) -> str:
    """Return a name with the names of its parameters."""
    if inspect.isclass(value) and issubclass(value, BaseModel | Exception):
        return f"`{name}`"
    try:
        signature = inspect.signature(value)
    except ValueError:
        return f"`{name}`"
    shown = []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            shown.append(f"*{parameter.name}")
            continue
        has_default = parameter.default is not inspect.Parameter.empty
        short = has_default and isinstance(parameter.default, int | float | str | None)
        shown.append(
            f"{parameter.name}={parameter.default!r}" if short else f"{parameter.name}{'=...' if has_default else ''}"
        )
    return f"`{name}({', '.join(shown)})`"


def _sentence(value: Any) -> str:
    return " ".join(inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].split())


def main() -> None:
    """Write the pages that changed."""
    os.chdir(ROOT)
    for name, text in pages().items():
        path = ROOT / "docs" / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()

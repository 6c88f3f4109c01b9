"""Write the pages of docs/reference/ from the code: commands, configuration, settings, recipes, functions.

`python docs/tools/generate.py` writes them, `make docs` runs it, and tests/test_docs.py fails where one is not what
this would write. They are committed, so that they read well where nothing is built.
"""

import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

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


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    cells = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in cells)


def _cell(text: str) -> str:
    """Return text for a cell: `<home>` outside of code would be taken for HTML."""
    parts = re.split(r"(`[^`]*`)", text.replace("\n", " ").replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def paragraph(text: str) -> str:
    """Return text as one line."""
    return " ".join(text.split())


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
        table(("command", "what it does"), [(f"[`{name}`](#{_anchor(name)})", _first(c)) for name, c in _walk(root)]),
        *(_command(name, command) for name, command in _walk(root)),
    ]
    return "\n\n".join(parts)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


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


# Configuration and settings


def config() -> str:
    """Return the page of every key of an experiment, from the pydantic models."""
    from btm_core.config import ExperimentConfig

    sections: list[tuple[str, type[BaseModel], str]] = [("experiment", ExperimentConfig, "")]
    sections += [(f"`{key}`", model, f"{key}.") for key, model in _sections(ExperimentConfig)]
    parts = [
        "# Configuration",
        paragraph("""
            Every key of an experiment, by section. In a YAML file sections are nested; on the command line a key is
            written with dots: `--set finetune.lr=0.01`. A key that does not exist is an error that names the nearest
            one.
        """),
        paragraph("""
            What determines a result is part of its address in the store. Keys marked *(not in the address)* say where
            something is or what is done with the result afterwards: changing them trains nothing anew.
        """),
        *(_section(title, model, prefix) for title, model, prefix in sections),
    ]
    return "\n\n".join(parts)


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections below a model, by key; of a section that is one of several, each of them."""
    for name, field in model.model_fields.items():
        found = _models(field.annotation)
        for section in found:
            key = f"{prefix}{name}"
            yield (key if len(found) == 1 else f"{key}`: `{section.model_fields['name'].default}"), section
            yield from _sections(section, f"{key}.")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _section(title: str, model: type[BaseModel], prefix: str) -> str:
    key = prefix.split("`")[0].rstrip(".")
    start = f"{key}." if key else ""
    rows = [
        (f"`{start}{name}`", _linked(f"{start}{name}", field), _default(field), _meaning(model, name))
        for name, field in model.model_fields.items()
        if not (name == "name" and "`: `" in title)
    ]
    text = inspect.cleandoc(model.__doc__ or "").split("\n\n")
    parts = [f"## {title}", *(" ".join(paragraph.split()) for paragraph in text)]
    return "\n\n".join(
        [*parts, *([table(("key", "type", "default", "meaning"), rows)] if rows else ["It has no options."])]
    )


def description(model: type[BaseModel], name: str) -> str:
    """Return what a field is for; a section that only changes the default has the words of its parent."""
    for ancestor in model.__mro__:
        field = getattr(ancestor, "model_fields", {}).get(name)
        if field is not None and field.description:
            return str(field.description)
    return "a section of its own" if _models(model.model_fields[name].annotation) else ""


def _meaning(model: type[BaseModel], name: str) -> str:
    extra = model.model_fields[name].json_schema_extra
    mark = " *(not in the address)*" if isinstance(extra, dict) and extra.get("identity") is False else ""
    return re.sub(r"\bNone\b", "null", description(model, name)) + mark


def _linked(key: str, field: FieldInfo) -> str:
    """Return the type of a field; that of a section leads to it."""
    nested = _models(field.annotation)
    names = [f"{key} {model.model_fields['name'].default}" if len(nested) > 1 else key for model in nested]
    return f"[{_type(field)}](#{_anchor(names[0])})" if names else _type(field)


def _type(field: FieldInfo) -> str:
    bounds = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}
    limits = [
        f"{sign} {getattr(limit, kind.__name__.lower())}"
        for limit in [*field.metadata, *_metadata(field.annotation)]
        for kind, sign in bounds.items()
        if isinstance(limit, kind)
    ]
    return ", ".join([_name(field.annotation), *limits])


def _metadata(annotation: Any) -> list[Any]:
    """Return the bounds that an annotation carries itself."""
    if get_origin(annotation) is typing.Annotated:
        return [item for part in annotation.__metadata__ for item in getattr(part, "metadata", [part])]
    return []


def _name(annotation: Any) -> str:
    if get_origin(annotation) is typing.Annotated:
        return _name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (typing.Union, types.UnionType):
        models = _models(annotation)
        if len(models) > 1:
            return "one of several sections"
        return " or ".join(_name(part) for part in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_name(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"mapping of {' to '.join(_name(part) for part in get_args(annotation))}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Path: "path"}
    return words.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, BaseModel):
        name = getattr(value, "name", None)
        return f"`{name}`" if isinstance(name, str) and len(_models(field.annotation)) > 1 else "its own"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def settings() -> str:
    """Return the page of every variable of the environment that BTM reads, from the settings models."""
    from btm_core.serving.settings import ServingSettings
    from btm_core.storage import StorageSettings
    from tasks.settings import RuntimeSettings

    parts = [
        "# Settings of the environment",
        paragraph("""
            How a run is executed. None of this changes the address of a result; four settings, marked below, change its
            last bits. `--store`, `--engine`, `--workers` and `--device` are flags as well. The standard AWS variables,
            `MLFLOW_TRACKING_URI`, `PREFECT_API_URL` and `RAY_ADDRESS` are honoured as they are. Secrets are none of
            these settings: [running](../running.md#secrets).
        """),
        "## Runs",
        _variables(RuntimeSettings, "BTM_"),
        "## Stores and remote data",
        "What reaches S3, and the cache of what was fetched: [the store](../store.md), [S3](../s3.md).",
        _variables(StorageSettings, "BTM_STORE_"),
        "## A served model",
        "Read by the process that serves, not by `btm`: [serving](../serving.md).",
        _variables(ServingSettings, "BTM_SERVE_"),
    ]
    return "\n\n".join(parts)


def _variables(model: type[BaseModel], prefix: str) -> str:
    rows = [
        (
            f"`{prefix}{name.upper()}`",
            _type(field),
            "" if field.default is None else f"`{field.default}`",
            str(field.description),
        )
        for name, field in model.model_fields.items()
    ]
    return table(("variable", "type", "default", "meaning"), rows)


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
            (f"[`{name}`](#{_anchor(name)})", experiment.model.backbone, experiment.pretrain.method.name, figures)
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

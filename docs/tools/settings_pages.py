"""The pages of the configuration and of the settings of the environment, from the pydantic models."""

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from markdown_parts import anchor, paragraph, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

__all__ = ["config", "description", "sections", "settings"]


def config() -> str:
    """Return the page of every key of an experiment, from the pydantic models."""
    from btm_core.config import ExperimentConfig

    shown: list[tuple[str, type[BaseModel], str]] = [("experiment", ExperimentConfig, "")]
    shown += [(f"`{key}`", model, f"{key}.") for key, model in sections(ExperimentConfig)]
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
        *(_section(title, model, prefix) for title, model, prefix in shown),
    ]
    return "\n\n".join(parts)


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections below a model, by key; of a section that is one of several, each of them."""
    for name, field in model.model_fields.items():
        found = _models(field.annotation)
        for section in found:
            key = f"{prefix}{name}"
            yield (key if len(found) == 1 else f"{key}`: `{section.model_fields['name'].default}"), section
            yield from sections(section, f"{key}.")


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
    return f"[{_type(field)}](#{anchor(names[0])})" if names else _type(field)


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

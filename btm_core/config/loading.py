"""Reading an experiment: a preset or a YAML file, what is set on top, and one message for whatever is wrong."""

import difflib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from btm_core.config.schema import ExperimentConfig
from btm_core.errors import ConfigError

__all__ = ["load_experiment", "preset_names", "preset_text"]


def preset_names() -> list[str]:
    """Return the names of the presets that ship with the package."""
    folder = resources.files("btm_core") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """Return the YAML text of a preset."""
    return (resources.files("btm_core") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def load_experiment(preset_or_path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Load a preset by name, or a YAML file by path.

    Arguments:
    - preset_or_path: a name that `btm presets` lists, or the path of a YAML file. In a file, `preset: NAME` at the top
        starts from that preset, and relative local paths are relative to the file.
    - overrides: `a.b=value` strings; the value is read as YAML.

    Raises ConfigError that names the key, what was expected and what was found.
    """
    name = str(preset_or_path)
    path = Path(name)
    if name in preset_names():
        raw = _read_preset(name, "preset") | {"name": name}
    elif path.is_file():
        raw = _read_file(path)
    else:
        close = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"{name!r} is neither a preset nor a file: {hint}presets are {', '.join(preset_names())}")
    for override in overrides:
        _apply_override(raw, override)
    try:
        return ExperimentConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, name)) from None


def _read_preset(name: str, where: str) -> dict[str, Any]:
    """Return a preset's values on top of those of the preset it starts from."""
    if name not in preset_names():
        raise ConfigError(f"{where}: preset {name!r} is unknown; presets are {', '.join(preset_names())}")
    raw = _parse_yaml(preset_text(name), f"preset {name}")
    base = raw.pop("preset", None)
    return raw if base is None else _merged(_read_preset(base, f"preset {name}"), raw)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        raw = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from None
    base = raw.pop("preset", None)
    _anchor_paths(raw, path.parent)
    if base is not None:
        raw = _merged(_read_preset(str(base), str(path)), raw)
    raw.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64] or "experiment")
    return raw


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must hold a mapping of sections (data, model, ...), found {type(raw).__name__}")
    return raw


def _anchor_paths(raw: dict[str, Any], folder: Path) -> None:
    """Make relative local locations relative to the file that names them, not to the working directory."""
    for section, key in (
        ("data", "root"),
        ("data", "class_names"),
        ("pretrain", "checkpoint"),
        ("pretrain", "initial"),
    ):
        values = raw.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, str) and "://" not in value:
            values[key] = str((folder / _expanded(value)).resolve())  # type: ignore[index]
    data = raw.get("data")
    for key in ("train", "test", "validation"):
        value = data.get(key) if isinstance(data, dict) else None
        if isinstance(value, str) and "://" not in value and (folder / value).is_file():
            below_root = Path(str(data.get("root", "")), value)  # type: ignore[union-attr]
            if not below_root.is_file():  # lists are first looked for below the root
                data[key] = str((folder / value).resolve())  # type: ignore[index]


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error}") from None


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in top.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected KEY=VALUE, for instance finetune.lr=0.01")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        child = node.get(parent)
        node[parent] = child if isinstance(child, dict) else {}
        node = node[parent]
    node[last] = value


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors():
        location, model = _without_tags(problem["loc"])
        key = ".".join(location)
        if problem["type"] == "extra_forbidden":
            known = list(model.model_fields)
            close = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"did you mean {'.'.join([*location[:-1], close[0]])!r}?" if close else ""
            lines.append(f"unknown key {key!r}; {hint or 'known here: ' + ', '.join(known)}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        elif problem["type"] == "value_error":
            lines.append(f"{key or 'experiment'}: {problem['ctx']['error']}")
        else:
            lines.append(f"{key}: {problem['msg'][0].lower() + problem['msg'][1:]}, found {problem['input']!r}")
    return f"{where}: " + "; ".join(lines)


def _without_tags(location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel]]:
    """Return the keys of a location as the user wrote them, and the section that the last one is in.

    Where a section is one of several, pydantic puts the name of the one into the location.
    """
    keys: list[str] = []
    model: type[BaseModel] = ExperimentConfig
    options: list[type[BaseModel]] = []
    for part in map(str, location):
        named = [option for option in options if option.model_fields["name"].default == part]
        if named:
            model, options = named[0], []
            continue
        keys.append(part)
        if part in model.model_fields and part != str(location[-1]):
            sections = _sections(model.model_fields[part].annotation)
            model = sections[0] if sections else model
            options = sections if len(sections) > 1 else []
    return keys, model


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]

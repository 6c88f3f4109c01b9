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
from btm_core.text import choices_in, did_you_mean
from btm_core.urls import without_credentials

__all__ = ["load_experiment", "preset_behind", "preset_names", "preset_text", "with_absolute_paths", "with_overrides"]

MAX_YAML = 1_000_000
"""Characters, and values: more than any configuration has."""


EXPECTED = {
    "model_type": "a section, that is keys with values (--set section.key=value sets one)",
    "dict_type": "keys with values",
    "tuple_type": "a list, as [a, b]",
    "list_type": "a list, as [a, b]",
}
"""What pydantic calls by names of Python."""


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
    elif _is_file(path):
        raw = _read_file(path)
    elif _looks_like_a_path(path):
        raise ConfigError(_no_file(path))
    else:
        close = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"{_shown(name)} is neither a preset nor a file: {hint}presets are {', '.join(preset_names())}"
        )
    return _validated(raw, overrides, name)


def preset_behind(preset_or_path: str | Path) -> str | None:
    """Return the preset that an experiment is, or starts from; None if it starts from the defaults."""
    if str(preset_or_path) in preset_names():
        return str(preset_or_path)
    path = Path(preset_or_path)
    base = _parse_yaml(path.read_text(encoding="utf-8"), str(path)).get("preset")
    return None if base is None else str(base)


def _looks_like_a_path(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml") or len(path.parts) > 1 or _is_folder(path)


def _no_file(path: Path) -> str:
    """Return what is wrong with a path that no file is at, and which file beside it may have been meant."""
    if _is_folder(path):
        return f"{_shown(str(path))} is a folder, expected a preset or a YAML file"
    folder = path.parent
    beside = [file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml")] if _is_folder(folder) else []
    close = difflib.get_close_matches(path.name, beside, 1, 0.8)
    hint = f"did you mean {str(folder / close[0])!r}?" if close else f"it was looked for in {_shown(str(Path.cwd()))}"
    return f"the file {_shown(str(path))} does not exist: {hint}"


def with_overrides(experiment: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """Return an experiment with `a.b=value` strings set on top, as `load_experiment` does. Raises ConfigError."""
    return _validated(experiment.model_dump(mode="json"), overrides, experiment.name)


def _validated(raw: dict[str, Any], overrides: Sequence[str], name: str) -> ExperimentConfig:
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
        raise ConfigError(
            f"{path} is not UTF-8 text, as YAML has to be: byte {error.object[error.start]:#04x} at {error.start}; "
            "save it as UTF-8, or name another file"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    base = raw.pop("preset", None)
    _anchor_paths(raw, path.parent)
    if base is not None:
        raw = _merged(_read_preset(str(base), str(path)), raw)
    raw.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64] or "experiment")
    return raw


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    raw = _load_yaml(text, where)
    if not isinstance(raw, dict):
        found = "nothing: it is empty" if raw is None else f"a {type(raw).__name__}"
        raise ConfigError(f"{where} must hold a mapping of sections (data, model, ...), found {found}")
    return raw


class _StrictSafeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but of a key that is there twice it does not silently take the second."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is there twice", key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)


def _load_yaml(text: str, where: str) -> Any:
    if len(text) > MAX_YAML:
        raise ConfigError(f"{where} has {len(text)} characters, more than the {MAX_YAML} of any configuration")
    try:
        value = yaml.load(text, _StrictSafeLoader)
        _check_size(value)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None and "\n" in text else ""
        tab = "; YAML is indented by spaces, not by tabs" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{where}{at} is not valid YAML: {error.problem or error.context}{tab}") from None
    except Exception as error:  # a date of month 13 or a number of 5,000 digits makes the loader raise what it likes
        raise ConfigError(f"{where} is not valid YAML: {str(error) or type(error).__name__}") from None
    return value


def _check_size(value: Any) -> None:
    """Raise ValueError if a value is large or endless: aliases (`*name`) that name each other multiply."""
    left = [value]
    for _ in range(MAX_YAML):
        if not left:
            return
        last = left.pop()
        if isinstance(last, dict):
            left += [*last.keys(), *last.values()]
        elif isinstance(last, list | tuple | set):
            left += last
    raise ValueError(f"its aliases make more than {MAX_YAML} values")


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
            values[key] = _absolute_from(folder, value)  # type: ignore[index]
    data = raw.get("data")
    for key in ("train", "test", "validation"):
        value = data.get(key) if isinstance(data, dict) else None
        if isinstance(value, str) and "://" not in value and _is_file(folder / value):
            below_root = Path(str(data.get("root", "")), value)  # type: ignore[union-attr]
            if not _is_file(below_root):  # lists are first looked for below the root
                data[key] = str((folder / value).resolve())  # type: ignore[index]


def _absolute_from(folder: Path, path: str) -> str:
    try:
        return str((folder / Path(path).expanduser()).resolve())
    except (RuntimeError, ValueError, OSError) as error:  # an unknown user, a zero byte, a loop of links
        raise ConfigError(f"{_shown(path)}: {error}") from None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (ValueError, OSError):
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (ValueError, OSError):  # no path at all, or one that is too long
        return False


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `top` in place of its own, key by key; but figures of one row are no other's."""
    result = dict(base)
    for key, value in top.items():
        old = result.get(key)
        whole = key == "published" or not (isinstance(old, dict) and isinstance(value, dict))
        result[key] = value if whole else _merged(result[key], value)
    return result


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        shown = _shown(override)
        raise ConfigError(f"override {shown}: expected KEY=VALUE, for instance finetune.lr=0.01")
    value = _load_yaml(text, f"override of {key!r}: the value")
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
        elif problem["type"] in EXPECTED:
            lines.append(f"{key}: expected {EXPECTED[problem['type']]}, found {_shown(problem['input'])}")
        else:
            context = problem.get("ctx", {})
            near = did_you_mean(str(context.get("tag", problem["input"])), choices_in(context))
            message = problem["msg"][0].lower() + problem["msg"][1:]
            lines.append(f"{key}: {message}, found {_shown(problem['input'])}{near}")
    return f"{where}: " + "; ".join(lines)


def _shown(value: Any) -> str:
    """Return a value for a message: not at any length, and without credentials."""
    text = "nothing" if value is None else without_credentials(repr(value))
    return text if len(text) <= 200 else f"{text[:200]}..."


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


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with its local paths made absolute, for whoever works in another folder.

    Files of the splits that are below the root are found there wherever one works, and folders of image_folder always
    are: these stay relative to it. Nothing of this changes an address.
    """
    values = config.model_dump(mode="json")
    for section, keys in {"data": ("root", "class_names"), "pretrain": ("checkpoint", "initial")}.items():
        values[section] |= {key: _absolute(values[section][key]) for key in keys}
    values["sampling"]["lists"] = [_absolute(path) for path in values["sampling"]["lists"]]
    for key in ("train", "test", "validation") if config.data.format != "image_folder" else ():
        file = values["data"][key]
        if file is None or "://" in file or not _is_file(Path(file)):
            continue
        if config.data.root is None or not _is_file(Path(config.data.root, file)):  # as data.sources.split_files looks
            values["data"][key] = _absolute(file)
    return ExperimentConfig.model_validate(values)


def _absolute(path: str | None) -> str | None:
    return path if path is None or "://" in path else str(Path(path).expanduser().absolute())

"""What the project says of itself is true: the README, the lock, the public names."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import typer

import btm_core
from flows.cli import app
from flows.store.commands import store_app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LOCK = (ROOT / "requirements.lock").read_text()


def commands(of: typer.Typer, before: str = "btm") -> set[str]:
    """Return how every command is typed, also those of groups."""
    own = {f"{before} {c.name or c.callback.__name__.replace('_', '-')}" for c in of.registered_commands if c.callback}
    groups = [group.typer_instance for group in of.registered_groups]
    return own.union(*(commands(group, f"{before} {group.info.name}") for group in groups))


def test_the_readme_shows_every_command() -> None:
    assert {"btm run", "btm store gc"} <= commands(app)
    assert [command for command in commands(app) if command not in README] == []


def test_the_guide_to_the_store_shows_every_command_and_option_of_it() -> None:
    guide = (ROOT / "docs/store.md").read_text()
    assert [command for command in commands(store_app, "btm store") if f"\n## `{command}" not in guide] == []
    options = {o for c in typer.main.get_command(store_app).commands.values() for p in c.params for o in p.opts}
    assert [o for o in options if o.startswith("--") and f"`{o}" not in guide] == []


def test_the_readme_names_only_settings_that_exist() -> None:
    from btm_core.storage import StorageSettings
    from tasks.settings import RuntimeSettings

    named = {name.lower() for name in re.findall(r"`BTM_([A-Z_]+)`", README)}
    assert named
    assert named <= {*RuntimeSettings.model_fields, *(f"store_{name}" for name in StorageSettings.model_fields)}


def test_the_tests_that_security_points_to_exist() -> None:
    named = re.findall(r"`(tests/\S+?\.py)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 10 and all((ROOT / path).is_file() for path in named)


def test_the_table_of_settings_for_serving_is_that_of_the_code() -> None:
    from btm_core.serving.settings import ServingSettings

    pattern = r"^\| `BTM_SERVE_([A-Z_]+)` \| (.*?) \| (.*) \|$"
    written = re.findall(pattern, (ROOT / "docs/serving.md").read_text(), re.MULTILINE)
    assert written == [
        (name.upper(), str(f.default), f.description) for name, f in ServingSettings.model_fields.items()
    ]


def test_the_readme_configuration_loads(tmp_path: Path) -> None:
    from btm_core.config import load_experiment

    [block] = [block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
    (tmp_path / "my.yaml").write_text(block)
    experiment = load_experiment(tmp_path / "my.yaml")
    assert (experiment.pretrain.epochs, experiment.sampling.shots) == (90, 10)


def test_the_readme_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_lock_is_exact_hashed_and_without_addresses() -> None:
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE)
    assert len(pins) > 100
    assert "://" not in LOCK
    assert "--index-url" not in LOCK
    starts = [line for line in LOCK.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(starts) == len(pins)  # nothing but pins
    for block in re.split(r"\n(?=\S)", LOCK.strip()):
        assert "--hash=sha256:" in block, block


MODULES = sorted(module.name for module in pkgutil.walk_packages(btm_core.__path__, "btm_core."))


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if callable(value):
            assert value.__doc__, f"{name}.{public}"

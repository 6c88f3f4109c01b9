"""What the project says of itself is true: the README, the lock, the public names."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import btm_core
from flows.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LOCK = (ROOT / "requirements.lock").read_text()


def test_the_readme_shows_every_command() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert commands
    assert all(f"btm {name}" in README for name in commands)


def test_the_readme_names_only_settings_that_exist() -> None:
    from tasks.settings import RuntimeSettings

    named = {name.lower() for name in re.findall(r"`BTM_([A-Z_]+)`", README)}
    assert named
    assert named <= set(RuntimeSettings.model_fields)


def test_the_readme_configuration_loads(tmp_path: Path) -> None:
    from btm_core.config import load_experiment

    [block] = [block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
    (tmp_path / "my.yaml").write_text(block)
    experiment = load_experiment(tmp_path / "my.yaml")
    assert experiment.finetune.lr == 1e-3
    assert experiment.finetune.mixup_alpha == 0.2


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

"""Every command that README.md and docs/ show is run, or at least read by the program that it is for.

Nothing is skipped in silence: PARSED_ONLY says which commands are not run here, and why; OTHER_PROGRAMS likewise.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import FAST, Btm
from shown import ROOT, Command, blocks, commands, simple_commands

from btm_core.config import load_experiment, preset_names
from flows.cli import app

PARSED_ONLY = {
    r"(run|plan) (?!digits-lt)": "needs data that are not here, or hours",
    r"run digits-lt$": "`make demo` is this one; what is run here is reduced: see `reduced`",
    r"run .*finetune.epochs=3": "another short run: `run digits-lt --set seed=1` is run",
    r"run .*--repeats": "three runs: tests/flows/test_ablations.py",
    r"ablate ": "many runs: tests/flows/test_ablations.py",
    r"deploy\b": "needs a Prefect server: tests/flows/test_deploy.py",
    r"(up|down|status)\b": "starts servers: tests/flows/test_stack.py",
    r"import-checkpoint ": "needs somebody's checkpoint: tests/btm_core/test_importing.py",
    r"(init|data) ": "needs images: tests/flows/test_init_command.py, tests/flows/test_data_commands.py",
    r".* s3://": "needs S3: tests/flows/test_engines.py, tests/btm_core/test_storage.py",
    r"compare 20261125-083330 (20261125-083511|gml)": "needs other models: tests/flows/test_compare_command.py",
    r"compare RUN_ID NAME@champion": "needs a champion: tests/flows/test_compare_command.py",
    r"register ": "`btm promote` registers first",
    r"promote (latest|--rollback)": "needs other models before it: tests/flows/test_promote.py",
}
"""Commands that are not run here: the real command line parses them, and presets, files and keys are looked up."""

OTHER_PROGRAMS = {
    "make": "checked: the target exists",
    "python": "checked: the program or module exists; docs/examples/ are run",
    "pip": "checked: the extra exists",
    "prefect": "needs a server: tests/flows/test_deploy.py",
    "mlflow": "serves for ever: tests/tasks/test_serving_http.py",
    "curl": "asks a server: tests/tasks/test_serving_http.py",
    "jq": "shows what a server answered",
    "echo": "makes a request: tests/tasks/test_serving_http.py",
    "export": "sets variables",
    ".": "activates the virtual environment",
    "docker": "needs Docker: tests/test_docker.py reads its files",
    "kubectl": "needs a cluster",
    "ray": "needs several nodes: tests/flows/test_engines.py has a real Ray",
    "srun": "needs Slurm, which was never tried: docs/schedulers.md says so",
    "sleep": "waits",
}
YOURS = ("docker/.env", "btm_core/methods/mine.py")
"""Files that a reader is told to make."""

SHOWN = commands()
OURS = [
    (command, words[1:])
    for command in SHOWN
    for words in simple_commands(command.line)
    if words[0] == "btm" and "..." not in words
]


def name_of(words: list[str]) -> str:
    return " ".join(words)


def reason(words: list[str]) -> str | None:
    """Return why a command is not run here, None if it is."""
    return next((why for pattern, why in PARSED_ONLY.items() if re.match(pattern, name_of(words))), None)


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Have the real command line read a command, without doing anything; return its name and parameters."""
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"there is no command: btm {name_of(words)}"
        command = command.commands[rest.pop(0)]
    context = command.make_context(name_of(words), rest)
    return str(command.name), dict(context.params)


@pytest.fixture(scope="module")
def my_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first configuration that docs/own-data.md shows."""
    path = tmp_path_factory.mktemp("own") / "my.yaml"
    path.write_text(next(block.text for block in blocks("yaml") if block.document == "docs/own-data.md"))
    return path


def test_the_documents_show_commands_of_all_kinds() -> None:
    assert len(OURS) > 50
    assert {command.document for command, _ in OURS} >= {"README.md", "docs/store.md", "docs/reference/recipes.md"}
    assert any("\n" in command.line for command in SHOWN)  # that go on in the next line
    for pattern in PARSED_ONLY:
        assert any(re.match(pattern, name_of(words)) for _, words in OURS), f"nobody shows {pattern}"


@pytest.mark.parametrize("words", {name_of(w): w for _, w in OURS}.values(), ids=name_of)
def test_a_shown_command_is_one_of_the_command_line(words: list[str], my_yaml: Path) -> None:
    name, given = parse(words)
    experiment = given.get("experiment") or given.get("data")
    if experiment == "my.yaml":
        experiment = my_yaml
    overrides = [override.replace("=DIR", "=/data") for override in given.get("overrides") or ()]
    if experiment is None and overrides:
        assert name == "promote"
        experiment = "digits-lt"
    if name in ("init", "inspect") and experiment not in preset_names():
        return  # a folder of images
    if experiment is not None and experiment not in ("PRESET", "FILE", "PRESET|FILE"):
        load_experiment(experiment, overrides)


@pytest.mark.parametrize(
    "span",
    sorted(
        {
            s
            for block in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
            for s in re.findall(r"`btm ([a-z][^`]*)`", block.read_text())
        }
    ),
)
def test_a_command_within_a_sentence_exists(span: str) -> None:
    words = [word for word in span.split() if word != "..."]
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, span
        command = command.commands[words.pop(0)]
    options = {
        option
        for parameter in getattr(command, "params", ())
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in words:
        assert not word.startswith("-") or word.partition("=")[0] in options, span


def test_other_programs_are_those_that_are_known() -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    seen = set()
    for command in SHOWN:
        for words in simple_commands(command.line):
            program = words[0]
            seen.add(program)
            assert program in {"btm", *OTHER_PROGRAMS}, f"{command.document}: {command.line}"
            if program == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), command.line
            elif program == "python" and words[1] == "-m":
                assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), command.line
            elif program == "python":
                assert (ROOT / words[1]).is_file(), command.line
            elif program == "kubectl":
                assert all((ROOT / word).is_file() for word in words if word.endswith(".yaml")), command.line
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = document.read_text(encoding="utf-8")
        assert set(re.findall(r'"btm\[(\w+)\]"', text)) <= set(extras), document
        for module in re.findall(r"python -m (benchmarks\.\w+)", text):
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), f"{document}: {module}"
        for file in re.findall(
            r"`((?:docker|deployments|benchmarks|docs|tests|btm_core|flows|tasks)/[\w/.-]+\.\w+)`", text
        ):
            assert (ROOT / file).exists() or file in YOURS, f"{document}: {file}"
    assert {"make", "prefect", "mlflow", "python"} <= seen


# What is run


@pytest.fixture(scope="module")
def at_home(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A folder with a finished run of the reduced digits-lt, and what the documents take for granted."""
    folder, run = undisturbed
    home = tmp_path_factory.mktemp("reader")
    shutil.copytree(folder / ".btm", home / ".btm")
    store = home / ".btm" / "store"
    for name, made in (("a", "finetune/subset-00"), ("b", "finetune/subset-01"), ("stage1", "pretrain/small_cnn")):
        [model] = store.glob(f"artifacts/{made}-*/model.safetensors")
        shutil.copyfile(model, home / f"{name}.safetensors")
    return home, run


def reduced(words: list[str], run_id: str) -> list[str]:
    """Put a reader's names in, and make a run short."""
    own = [re.sub(r"\bRUN_ID\b|\b20261125-[\d-]+(?:[\w-]*)", run_id, word) for word in words]
    own = [re.sub(r"\bNAME\b", "digits-lt", word) for word in own]
    if own[0] in ("run", "plan"):
        keys = {word.partition("=")[0] for word in own}
        own += [option for option in FAST if option.removeprefix("--set=").partition("=")[0] not in keys]
    return own


RUN = {name_of(words): (command, words) for command, words in OURS if reason(words) is None}
LATER = ("promote", "store gc")
"""What others cannot come after: a registered model keeps its run from being forgotten."""


@pytest.mark.parametrize("typed", sorted(RUN, key=lambda typed: typed.startswith(LATER)))
def test_a_shown_command_does_what_is_shown(typed: str, at_home: tuple[Path, dict[str, Any]], btm: Btm) -> None:
    command, words = RUN[typed]
    home, run = at_home
    done = btm(*reduced(words, str(run["run_id"])), cwd=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    shown = headers(command.output)
    if shown and not typed.startswith("store gc"):  # which here finds nothing to tell of
        assert shown[0] in headers(done.stdout)


def headers(output: str) -> list[list[str]]:
    """Return the heads of the tables in an output: the words above a line."""
    lines = output.splitlines()
    return [above.split() for above, line in pairwise(lines) if re.match(r" ─+ *$", line)]


def test_the_first_model_that_is_promoted_has_a_floor() -> None:
    """Without one `btm promote` refuses it, and a reader has no other."""
    firsts: dict[str, list[str]] = {}
    for command, words in OURS:
        if words[:2] == ["promote", "RUN_ID"]:
            firsts.setdefault(command.document, words)
    assert firsts.keys() >= {"docs/index.md", "docs/registry.md"}
    assert all(any("promotion.lowest_recall=" in word for word in words) for words in firsts.values()), firsts


def test_most_kinds_of_commands_are_run() -> None:
    kinds = {words[0] if words[0] != "store" else name_of(words[:2]) for _, words in RUN.values()}
    assert kinds >= {
        "presets",
        "run",
        "merge",
        "compare",
        "promote",
        "store ls",
        "store show",
        "store verify",
    }
    assert kinds >= {"store rm", "store gc"}


EXAMPLES = [
    (c, words[1])
    for c in SHOWN
    for words in simple_commands(c.line)
    if words[:1] == ["python"] and "/examples/" in words[1]
]


@pytest.mark.parametrize(("command", "program"), EXAMPLES, ids=[program for _, program in EXAMPLES])
def test_an_example_prints_what_is_shown_but_for_figures(command: Command, program: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # more than there are free cores wait for each other
    command_line = [sys.executable, "-W", "error", ROOT / program]
    done = subprocess.run(command_line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert masked(done.stdout) == masked(command.output)


def masked(output: str) -> list[list[str]]:
    """Return the words of each line, with `#` for a number: another kind of CPU rounds differently."""
    return [re.sub(r"[+-]?\d+(\.\d+)?", "#", line).split() for line in output.splitlines()]


def test_every_example_is_shown_whole_and_run() -> None:
    text = (ROOT / "docs/library.md").read_text()
    names = {path.name for path in (ROOT / "docs/examples").glob("*.py")}
    assert names == set(re.findall(r'^--8<-- "(\w+\.py)"$', text, re.MULTILINE)) == {Path(p).name for _, p in EXAMPLES}
    assert len(names) == 3


# Configurations and Python

YAML = [block for block in blocks("yaml")]


@pytest.mark.parametrize("number", range(len(YAML)), ids=[f"{i}-{block.document}" for i, block in enumerate(YAML)])
def test_a_shown_configuration_loads(number: int, tmp_path: Path) -> None:
    text = YAML[number].text
    if not re.search(r"^(data|preset):", text, re.MULTILINE):  # a fragment
        text = f"preset: {'places-lt-gpaco' if 'gpaco' in text else 'digits-lt'}\n{text}"
    elif YAML[number].document == "docs/reference/recipes.md" and "format:" not in text and "preset:" not in text:
        pytest.fail("a recipe says what its data are")
    (tmp_path / "my.yaml").write_text(text)
    load_experiment(tmp_path / "my.yaml")


def test_every_recipe_is_shown() -> None:
    shown = {words[1] for command, words in OURS if command.document == "docs/reference/recipes.md"}
    assert shown == set(preset_names())


PYTHON = [block for block in blocks("python") if "--8<--" not in block.text]
PARSED_PYTHON = {
    "docs/serving.md": "needs a champion, or an export: tests/tasks/test_serving_package.py",
}


def test_shown_python_runs(at_home: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from tasks.named_models import evaluated
    from tasks.settings import RuntimeSettings

    home, run = at_home
    monkeypatch.chdir(home)
    (home / "bucket").mkdir()
    shutil.copyfile("a.safetensors", "bucket/b.safetensors")
    old, new = evaluated([f"{run['run_id']}:stage 1", str(run["run_id"])], RuntimeSettings(), None)
    labels = np.arange(60) % 3
    for block in PYTHON:
        code = compile(block.text, block.document, "exec")
        if block.document in PARSED_PYTHON:
            continue
        given = {"targets": labels, "predictions": labels, "train_counts": np.array([200, 50, 5]), "labels": labels}
        given |= {"old": old.evidence, "new": new.evidence}
        given |= {"confidences": np.linspace(0, 1, len(labels))}
        exec(compile(block.text.replace("s3://", ""), block.document, "exec") if "s3://" in block.text else code, given)
        if block.document == "README.md":
            assert (home / "soup.safetensors").is_file() and given["report"].h_mean == 1
    assert set(PARSED_PYTHON) < {block.document for block in PYTHON}

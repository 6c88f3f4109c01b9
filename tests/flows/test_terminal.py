"""What commands print: tables that fit, any name on any terminal, and next commands that work as they stand."""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Btm, clean_environment, small_experiment, write_digits
from rich.cells import cell_len

from btm_core.evidence import Evidence
from btm_core.side_by_side import Evaluated, side_by_side
from flows.printing import print_comparison, print_evaluation, print_result, print_side_by_side
from flows.terminal import Formatter, table
from flows.typed import Typed

BIRDS = ["American Goldfinch", "Yellow-rumped Warbler", "Black-capped Chickadee", "Great Crested Flycatcher"]
TAKEN = ", ".join(f"{name} ({count})" for count, name in enumerate(BIRDS, 2))
WORDS = {word for name in BIRDS for word in re.findall(r"\w+", name)}


def narrow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int) -> "Shown":
    monkeypatch.setenv("COLUMNS", str(columns))
    return Shown(capsys, columns)


class Shown:
    """Reads what was printed, which has to fit."""

    def __init__(self, capsys: pytest.CaptureFixture[str], columns: int):
        self.capsys, self.columns = capsys, columns

    def tables(self) -> str:
        """Return the lines up to the first sentence, none of them too long."""
        text = self.capsys.readouterr().out
        lines = [line.rstrip() for line in text.split("\nTest split")[0].splitlines() if line.startswith(" ")]
        assert max(map(cell_len, lines)) <= self.columns, text
        return "\n".join(lines)


@pytest.mark.parametrize("columns", [60, 72, 80, 100, 120])
def test_no_column_is_lost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int) -> None:
    out = narrow(monkeypatch, capsys, columns)
    classes = [
        {
            "name": name,
            "recall": 0.367,
            "train_images": 3,
            "test_images": 30,
            "taken_for": [{"name": other, "images": 13} for other in BIRDS if other != name],
        }
        for name in BIRDS
    ]
    document = {"name": "run", "kind": "run", "zero_recall_classes": 0, "classes": {"name": BIRDS}, "h_mean": 0.5}
    document |= {"lowest_classes": classes, "split": "test", "split_hash": "a" * 64, "images": 120}
    print_evaluation(document)
    shown = out.tables()
    assert set(re.findall(r"\w+", shown)) >= {*WORDS, "class", "recall", "training", "taken"}
    assert shown.count("36.7") == 4 and shown.count("(13)") == 12
    rows = [line for line in shown.splitlines() if "36.7" in line]
    assert [line.split()[0] for line in rows] == [name.split()[0] for name in BIRDS] or columns < 72


def test_the_other_tables_fit_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium", "few")
    figures = {**dict.fromkeys(names, 0.512), "zero_recall_classes": 0}
    rows = [{"name": name, "stage": "post_train", **figures} for name in ("stage 1 + post-train", "final")]
    result = {"name": "birds", "seed": 0, "models": rows, "lost_ingredients": [], "trained_stages": [], "seconds": 1}
    result |= {"report": "r", "final_model": "f", "run_id": "id", "tracking": {"uri": "http://x", "run_id": "1"}}
    out = narrow(monkeypatch, capsys, 60)
    print_result(result, Typed("birds"))
    shown = out.tables()
    assert shown.count("51.2") == 14 and "stage 1" in shown and "train" in shown

    summary = {name: {"mean": 0.512, "std": 0.012, "n": 2} for name in names}
    summary["zero_recall_classes"] = {"mean": 1.0, "std": 0.5, "n": 2}
    comparison = {"title": "t", "rows": [{"labels": {"way of training": BIRDS[1]}, "summary": summary}], "seeds": [0]}
    comparison |= {"split": "test", "differences": [], "warnings": [], "report": "r", "markdown": "m"}
    for columns in (60, 130):  # more numbers than a narrow line holds: a line each
        out = narrow(monkeypatch, capsys, columns)
        print_comparison(comparison)
        shown = out.tables()
        assert shown.count("51.2 ± 1.2") == 7 and BIRDS[1] in shown and "zero" in shown

    targets = [0, 0, 1, 1, 2, 2, 3, 3]
    facts = {"split": "test", "split_hash": "a" * 64, "class_names": tuple(BIRDS)}
    counts = {"train_counts": [120, 50, 3, 2], "group_counts": [120, 50, 3, 2]}
    models = [
        Evaluated(name, Evidence(**facts, **{k: _array(v) for k, v in (counts | predicted).items()}))  # type: ignore[arg-type]
        for name, predicted in {
            "old": {"targets": targets, "predictions": targets},
            "new": {"targets": targets, "predictions": [1, 0, 0, 1, 0, 0, 3, 2]},
        }.items()
    ]
    document = side_by_side(models) | {"report": "r", "markdown": "m"}
    out = narrow(monkeypatch, capsys, 72)
    print_side_by_side(document, 10)
    shown = capsys.readouterr().out
    lost = shown.partition("Classes that lost most")[2].partition("Test split")[0]
    assert set(re.findall(r"\w+", lost)) >= WORDS and lost.count(" to ") == 4
    assert max(map(len, lost.splitlines())) <= 72


def _array(values: list[int]) -> object:
    import numpy as np

    return np.array(values)


def test_a_pipe_has_a_width_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table("", ("class", "recall>", "taken for"), [[BIRDS[0], "36.7", TAKEN * 3]])
    lines = capsys.readouterr().out.splitlines()
    assert 100 < max(map(len, lines)) <= 120
    table("", ("address", "size>"), [["a" * 300, "3"]], whole=True)
    assert "a" * 300 in capsys.readouterr().out  # what is searched for stays in a line


def test_a_log_is_harmless() -> None:
    record = logging.LogRecord("tasks", 20, "", 0, "%s:\n%s", ("\x1b[31mred", "\u202eder"), None)
    assert Formatter("btm: %(message)s").format(record) == "btm: ?[31mred:\n?der"


@pytest.mark.parametrize(
    ("typed", "changes", "line"),
    [
        (("digits-lt", ["seed=3", "a.b=1"]), ["seed=4"], "run digits-lt --set a.b=1 --set seed=4"),
        (("x.yaml", ["a.b=2", "a={c: 1}", "a.b=3"]), [], "run x.yaml --set 'a={c: 1}' --set a.b=3"),
        (
            ("my file.yaml", (), {"store": "s", "workers": 2, "device": None}),
            [],
            "'my file.yaml' --store s --workers 2",
        ),
    ],
)
def test_what_was_typed_is_said_once(typed: tuple[str, list[str]], changes: list[str], line: str) -> None:
    assert Typed(*typed).line("run", *changes).endswith(line)


# From end to end, with names that anybody may have given

CRANE, RED, LONG = "丹顶鹤", "nine \x1b[31mred", "Yellow-rumped Warbler (female, breeding plumage)"


@pytest.fixture(scope="module")
def birds(btm: Btm, databases: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder with a run on classes of such names: folder, run id, and what the run printed."""
    folder = tmp_path_factory.mktemp("birds")
    shutil.copytree(databases, folder / ".btm")
    root = write_digits(folder / "images")
    for old, new in (("digit-0", CRANE), ("digit-1", RED), ("digit-2", LONG)):
        for split in ("train", "test"):
            (root / split / old).rename(root / split / new)
    (folder / "my.yaml").write_text(yaml.safe_dump(small_experiment(format="image_folder", root="images")))
    done = btm("run", "my.yaml", "--set=seed=3", "--set", "seed=4", cwd=folder, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    run_id = json.loads(next(folder.glob(".btm/store/runs/*/run.json")).read_text())["run_id"]
    return folder, run_id, done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["evaluate", "RUN"], ["compare", "RUN", "RUN:stage 1"], ["plan", "digits-lt"], ["store", "show", "RUN"]],
)
def test_any_name_on_any_terminal(btm: Btm, birds: tuple[Path, str, str], arguments: list[str]) -> None:
    folder, run_id, _ = birds
    words = [word.replace("RUN", run_id) for word in arguments]
    where = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} if "plan" in words else {}
    for environment in (where or {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "utf-8", "COLUMNS": "60"}):
        done = btm(*words, cwd=folder, **environment)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        if "evaluate" in words:
            assert {"?[31mred", "breeding"} <= set(re.split(r"[\s,]+", done.stdout))
            assert (CRANE if "COLUMNS" in environment else r"\u4e39\u9876\u9e64") in done.stdout
    for page in folder.glob(".btm/comparisons/*/compare.md"):
        assert "\x1b" not in page.read_text() and "nine ?\\[31mred" in page.read_text()


def test_an_error_cannot_steer_the_terminal(btm: Btm, birds: tuple[Path, str, str]) -> None:
    done = btm("evaluate", "m\x1b[31m.safetensors", cwd=birds[0])
    assert done.returncode == 2 and "m?[31m.safetensors" in done.stderr and "\x1b" not in done.stderr


def test_an_experiment_is_no_run_but_has_some(btm: Btm, birds: tuple[Path, str, str]) -> None:
    folder, run_id, _ = birds
    done = btm("evaluate", run_id.split("-")[2], cwd=folder)
    assert done.returncode == 2
    assert f"that is the name of an experiment, whose runs are, newest first:\n  {run_id}" in done.stderr


def test_the_first_model_is_promoted_by_what_is_printed(btm: Btm, birds: tuple[Path, str, str]) -> None:
    folder, run_id, printed = birds
    commands = [shlex.split(line) for line in printed.partition("What to type next:")[2].splitlines()]
    said = {words[1]: words[2:] for words in commands if len(words) > 2 and words[0] != "#"}
    assert printed.count("--set seed=4") == 1 and "seed=3" not in printed and "--set=" not in printed
    assert "--set seed=5" in printed
    assert said["promote"][0] == run_id
    done = btm("promote", *said["promote"], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "PROMOTED: version 1" in done.stdout
    cards = list(folder.rglob("model_card.md"))
    assert cards and all("\x1b" not in card.read_text() for card in cards)


def test_where_nothing_is_to_do_no_run_is_offered(btm: Btm, birds: tuple[Path, str, str]) -> None:
    done = btm("plan", "my.yaml", "--set=seed=4", cwd=birds[0])
    lines = [line for line in done.stdout.splitlines() if " run my.yaml" in line]
    assert "Nothing would be trained, and nothing made" in done.stdout
    assert len(lines) == 1 and lines[0].strip().split("   #")[0].endswith("--set seed=5")
    assert " store ls" in done.stdout


def test_what_the_encoding_lacks_is_written_all_the_same(tmp_path: Path) -> None:
    script = f"""
import sys
from flows.cli import app, main
@app.command()
def crane() -> None:
    print({CRANE!r})
    print({CRANE!r}, file=sys.stderr)
sys.argv = ["btm", "crane"]
main()
"""
    environment = {**clean_environment(), "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    assert done.stdout.strip() == done.stderr.strip() == rb"\u4e39\u9876\u9e64"

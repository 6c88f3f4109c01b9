"""`btm promote` and `btm register` as a user types them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, Btm
from promotable import finish_run

from btm_core.storage import Store

OLD = [0.9, 0.9, 0.9, 0.8, 0.8, 0.6, 0.4, 0.3]
BETTER = [0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6]

Undisturbed = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A copy of a whole run, to promote and compare."""
    folder, answer = undisturbed
    copy = tmp_path_factory.mktemp("promoted") / "copy"
    shutil.copytree(folder, copy)
    return copy, answer


def test_the_gate_from_the_command_line(btm: Btm, tmp_path: Path) -> None:
    store = Store(str(tmp_path / ".btm" / "store"))
    for number, recall in enumerate((OLD, BETTER, OLD), 1):
        finish_run(store, tmp_path, f"run-{number}", recall, weights=number)

    def promote(*arguments: str, code: int = 0) -> Any:
        done = btm("promote", *arguments, "--json", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr

    refusal = promote("run-1", code=2)
    assert refusal.splitlines()[-1].startswith("btm: this is the first model") and "Traceback" not in refusal
    first = promote("run-1", "--set=promotion.lowest_recall=0.2")
    assert (first["decision"], first["model"], first["version"]) == ("promoted", "trees", "1")
    assert first["rules"]["lowest_recall"] == 0.2
    assert first["candidate"]["per_class"][7]["recall"] == 0.3 and first["comparison"] is None
    second = promote("run-2")
    assert (second["decision"], second["changed"]) == ("promoted", True)
    again = btm("promote", "run-2", cwd=tmp_path).stdout
    assert again == "NOTHING TO DO: version 2 is the champion already.\n"
    again = promote("run-2")
    assert (again["decision"], again["changed"], again["report"]) == ("promoted", False, None)
    refused = promote("latest", "--model=trees", "--fail-if-refused", code=1)
    assert (refused["decision"], refused["version"]) == ("refused", "3")
    assert refused["reasons"]
    assert sorted(row["class"] for row in refused["comparison"]["summary"]["worse"]) == [5, 6, 7]
    assert promote("run-3", "--force=because the others are recalled")["decision"] == "forced"
    back = promote("--rollback", "--model=trees", "--reason=it was a mistake")
    assert (back["decision"], back["version"]) == ("rolled_back", "2")
    shown = promote("--show", "--model=trees")
    assert (shown["champion"], shown["previous"]) == ("2", "3")
    for name in (".json", ".html", ".md"):
        assert len(list((tmp_path / ".btm/store/runs/run-2").glob(f"promotion-*{name}"))) == 2  # and none for nothing
    registered = json.loads(btm("register", "run-3", "--json", cwd=tmp_path).stdout)
    assert registered["uri"] == "models:/trees/3"
    printed = btm("promote", "--show", "--model=trees", cwd=tmp_path).stdout
    assert "champion" in printed and "run-2" in printed


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["give a RUN_ID to promote, or --rollback or --show with --model NAME"]),
        (["x", "--rollback"], ["RUN_ID"]),
        (["--rollback"], ["--rollback and --show need --model NAME, and neither --set nor --force"]),
        (["--show", "--model=x", "--force=y"], ["--force"]),
        (["x", "--force= "], ["--force needs the reason, which is written down with the decision"]),
        (
            ["x", "--set=seed=1"],
            ["--set seed=1: only the rules can be overridden, as --set promotion.lowest_recall=0.1"],
        ),
        (["nothing"], ["no run 'nothing'", "btm store ls"]),
        (["latest"], ["no run"]),
        (["--show", "--model=nothing"], ["there is no registered model 'nothing' at sqlite:", "; btm promote RUN_ID"]),
        (["--show", "--model=it's"], ["no name of a registered model"]),
        (
            ["--rollback", "--model=nothing"],
            ["no registered model 'nothing' at sqlite:", "; btm promote RUN_ID makes one"],
        ),
    ],
)
def test_refusals(btm: Btm, tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    done = btm("promote", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    message = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and all(part in message for part in parts), done.stderr


@pytest.mark.slow
def test_a_champion_is_evaluated_on_the_images_of_the_candidate(btm: Btm, runs: Undisturbed) -> None:
    folder, answer = runs
    first = btm("promote", answer["run_id"], "--set=promotion.lowest_recall=0", "--json", cwd=folder)
    assert json.loads(first.stdout)["decision"] == "promoted", first.stderr
    done = btm("run", "digits-lt", "--json", *FAST, "--set=data.split_seed=1", cwd=folder)
    moved = json.loads(done.stdout)
    decided = btm("promote", moved["run_id"], "--json", cwd=folder)
    assert "the champion, version 1, was evaluated on other images: evaluating it on these" in decided.stderr
    document = json.loads(decided.stdout)
    checks = {check["rule"] for check in document["checks"]}
    assert "h_mean_gain" in checks and "comparable" not in checks
    assert document["comparison"]["summary"]["accuracy"]["b"] == pytest.approx(moved["models"][-1]["accuracy"])
    mixed = btm("compare", answer["run_id"], moved["run_id"], cwd=folder)
    assert mixed.returncode == 2 and "other images" in mixed.stderr

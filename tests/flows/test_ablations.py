"""Repetitions and ablations through the command line, with real Prefect, MLflow and workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, Btm, clean_environment, small_experiment, write_lists

from btm_core.ablations import ABLATIONS, subset_alert, variants, with_values
from btm_core.comparison import Row, comparison, comparison_html, comparison_markdown
from btm_core.config import load_experiment
from btm_core.errors import ConfigError
from btm_core.storage import Store
from tasks.elsewhere import comparisons_elsewhere

Undisturbed = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A copy of the undisturbed run: what comparisons add to its store is no part of it."""
    folder, answer = undisturbed
    copy = tmp_path_factory.mktemp("compared") / "undisturbed"
    shutil.copytree(folder, copy)
    return copy, answer


def test_repetitions_report_mean_std_and_intervals(btm: Btm, undisturbed: Undisturbed) -> None:
    """The first seed is the undisturbed run: nothing of it is trained again."""
    folder, first = undisturbed
    done = btm("run", "digits-lt", "--json", "--repeats=2", *FAST, cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["seeds"] == [0, 1]
    rows = {row["labels"]["Model"]: row for row in document["rows"]}
    assert list(rows) == ["stage 1", "stage 1 + post-train", "ingredients (6)", "soup", "final"]
    final = rows["final"]
    assert final["n"] == 2
    assert final["runs"][0]["h_mean"] == first["models"][-1]["h_mean"]
    values = [run["accuracy"] for run in final["runs"]]
    assert final["summary"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert final["summary"]["accuracy"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert [(d["first"], d["second"]) for d in document["differences"]] == [
        ("stage 1 + post-train", "final"),
        ("stage 1", "final"),
    ]
    for difference in document["differences"]:
        before = rows[difference["first"]]["runs"]
        change = sum(b["h_mean"] - a["h_mean"] for a, b in zip(before, final["runs"], strict=True)) / 2
        assert difference["figures"]["h_mean"]["mean"] == pytest.approx(change)
    page = Path(document["report"].removeprefix("file://")).read_text()
    assert all(run["report"] in page for run in document["runs"])
    assert "±" in Path(document["markdown"].removeprefix("file://")).read_text()


@pytest.mark.parametrize(("name", "rows"), [("gml", 4), ("merging", 10)])
def test_an_ablation_shares_what_its_variants_have_in_common(
    btm: Btm, undisturbed: Undisturbed, name: str, rows: int
) -> None:
    folder, first = undisturbed
    done = btm("ablate", name, "digits-lt", "--json", *FAST, cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["rows"]) == rows
    assert document["title"] == ABLATIONS[name][0]
    final = first["models"][-1]["h_mean"]
    assert final in [row["runs"][0]["h_mean"] for row in document["rows"]]  # the plain variant is the plain run
    assert "pre-train (stage 1): small_cnn-cross-entropy" in done.stderr
    assert "fine-tune on subsets: 3 found in the store" in done.stderr
    ended = [line for line in done.stderr.splitlines() if line.endswith(" done") and " of " not in line]
    assert all(("post-train" in line or "merge" in line or "evaluate" in line) for line in ended), ended


def ablated(btm: Btm, folder: Path, name: str, *options: str) -> tuple[list[dict[str, Any]], Store, str]:
    """Return the rows of an ablation of the reduced digits-lt, its store, and what it told."""
    done = btm("ablate", name, "digits-lt", "--json", *FAST, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["title"] == ABLATIONS[name][0]
    return document["rows"], Store(str(folder / ".btm" / "store")), done.stderr


def test_the_training_ablation_trains_each_part_between_stages_and_after_them(
    btm: Btm, undisturbed: Undisturbed
) -> None:
    folder, first = undisturbed
    rows, _, _ = ablated(btm, folder, "training")
    artifacts = {tuple(row["labels"].values()): row["runs"][0]["artifact"] for row in rows}
    assert len(set(artifacts.values())) == len(artifacts) == 6
    assert artifacts["between stages", "both"] == first["models"][-1]["artifact"]
    for (when, _), artifact in artifacts.items():  # after stage 2 the soup is the end
        assert artifact.startswith("merge/" if when == "after stage 2" else "post_train/")


def test_the_models_ablation_shows_every_model_of_a_run(btm: Btm, undisturbed: Undisturbed) -> None:
    folder, first = undisturbed
    rows, _, told = ablated(btm, folder, "models")
    figures = ("artifact", "accuracy", "h_mean", "few")
    shown = [(row["labels"]["Model"], *(row["runs"][0][key] for key in figures)) for row in rows]
    assert shown == [(model["name"], *(model[key] for key in figures)) for model in first["models"]]
    assert "evaluate every model: 7 found in the store" in told  # nor is anything else made anew


def test_a_row_of_the_subsets_ablation_is_the_soup_of_so_many(btm: Btm, undisturbed: Undisturbed) -> None:
    """A quorum of the experiment's own number of subsets is none of theirs."""
    folder, _ = undisturbed
    rows, store, _ = ablated(btm, folder, "subsets", "--set=finetune.quorum=3")
    assert len(rows) == 7
    ingredients: dict[str, set[str]] = {}
    for row in rows:
        final = store.manifest(row["runs"][0]["artifact"])
        assert final is not None
        [soup] = [store.manifest(parent) for parent in final.parents.values() if parent.startswith("merge/")]
        assert soup is not None and len(soup.parents) == int(row["labels"]["subsets (N_D)"])
        ingredients.setdefault(row["labels"]["shots (N_C)"], set()).update(soup.parents.values())
    assert {shots: len(found) for shots, found in ingredients.items()} == {"10": 20, "5": 10, "20": 10}


def test_what_one_variant_cannot_be_is_refused_before_any_is_trained(btm: Btm, databases: Path, tmp_path: Path) -> None:
    shutil.copytree(databases, tmp_path / ".btm")
    done = btm("ablate", "merging", "digits-lt", *FAST, "--set=merge.criterion=validation", cwd=tmp_path)
    assert done.returncode == 2
    assert "merge.criterion is validation, but there is no validation split; set data.validation" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".btm" / "store" / "artifacts").exists()


def test_interpolation_draws_its_subsets_whatever_an_experiment_lists(
    btm: Btm, databases: Path, digit_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(databases, tmp_path / ".btm")
    write_lists(digit_images)
    sampling = {"num_subsets": 3, "shots": 4, "lists": [str(digit_images / "train.txt")] * 3}
    experiment = small_experiment(format="image_folder", root=str(digit_images)) | {"sampling": sampling}
    (tmp_path / "my.yaml").write_text(json.dumps(experiment))
    done = btm("ablate", "interpolation", "my.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = [json.loads(path.read_text()) for path in tmp_path.glob(".btm/store/artifacts/sample/subset-*/subset.json")]
    assert sorted((subset["index"], subset["shots"], len(subset["positions"])) for subset in drawn) == [
        (0, 5, 15),
        (1, 5, 15),
    ]


def test_interpolation_starts_and_ends_at_the_models_themselves(btm: Btm, undisturbed: Undisturbed) -> None:
    folder, first = undisturbed
    done = btm("ablate", "interpolation", "digits-lt", "--json", *FAST, cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    paths = {}
    for row in document["rows"]:
        paths.setdefault(row["labels"]["Path"], []).append(row["runs"][0]["accuracy"])
    assert [len(path) for path in paths.values()] == [11, 11, 1]
    assert paths["stage 1 to A"][0] == first["models"][0]["accuracy"]
    assert paths["stage 1 to A"][-1] == paths["A to B"][0]
    assert Path(document["report"].removeprefix("file://")).read_text().count("<svg") == 4
    stage1 = first["models"][0]["artifact"]
    assert stage1 in document["artifacts"] and document["curves"]["A to B"]["lambda"][1] == 0.1


def test_the_report_of_a_run_links_what_else_looked_at_it(btm: Btm, undisturbed: Undisturbed) -> None:
    """Repetitions of it, and the interpolation, whose curves it shows; other names, other images, other files not."""
    folder, first = undisturbed
    store = Store(str(folder / ".btm" / "store"))
    comparisons = sorted(path.parent.name for path in (folder / ".btm/store/runs").glob("*/comparison.json"))
    [last] = [name for name in comparisons if "interpolation" in name]
    known = json.loads(store.read("runs", last, "comparison.json") or b"")
    for name, changes in {"1": {"name": "other"}, "2": {"split_hash": "ab"}, "3": {"curves": {"A": 1}}}.items():
        store.write(json.dumps(known | changes).encode(), "runs", f"9999{name}", "comparison.json")
    store.write(b"{", "runs", "99994", "comparison.json")
    done = btm("run", "digits-lt", "--json", *FAST, cwd=folder)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["made_stages"] == []
    page = Path(answer["report"].removeprefix("file://"))
    found = json.loads(page.with_suffix(".json").read_text())["elsewhere"]
    assert [row["run_id"] for row in found] == comparisons[::-1]
    assert all((page.parent / row["page"]).resolve().is_file() for row in found)
    drawn = [row for row in found if row["curves"]]
    assert [(row["run_id"], row["same_stage_1"], row["curves"]) for row in drawn] == [(last, True, known["curves"])]
    assert "H-mean of models between the two, A to B" in page.read_text(encoding="utf-8")
    store.write(b"", "runs", "99995")  # a file where a folder is expected
    row = first["models"][0]
    assert comparisons_elsewhere(store, "", "digits-lt", row["split_hash"], ["pretrain/x"])[0]["same_stage_1"] is False


def test_comparisons_that_cannot_be_read_fail_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "runs" / "r1" / "comparison.json").mkdir(parents=True)
    (tmp_path / "runs" / "r1" / "comparison.json" / "x").touch()
    assert comparisons_elsewhere(Store(str(tmp_path)), "r2", "a", "b", []) == []
    (tmp_path / "runs" / "r3").mkdir()
    (tmp_path / "runs" / "r3" / "comparison.json").symlink_to("comparison.json")
    assert comparisons_elsewhere(Store(str(tmp_path)), "r2", "a", "b", []) == []
    assert "links no comparisons" in caplog.text


def test_interpolation_starts_where_btm_does(btm: Btm, undisturbed: Undisturbed) -> None:
    folder, _ = undisturbed
    done = btm("ablate", "interpolation", "digits-lt", "--json", *FAST, "--set=fc.epochs=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert rows[0]["labels"]["Path"] == "stage 1 + FC to A"
    manifest = Store(str(folder / ".btm" / "store")).manifest(rows[0]["runs"][0]["artifact"])
    assert manifest is not None
    assert any(parent.startswith("fc/") for parent in manifest.parents.values())


def test_the_gml_ablation_names_what_it_is_of() -> None:
    """Table 11: the row of a one-stage method is the method itself, not stage 1 after a post-training."""
    one_stage = load_experiment("imagenet-lt-paco")
    variants = ABLATIONS["gml"][1](one_stage)
    assert [variant.labels["method"] for variant in variants] == [
        "paco",
        "paco + GML",
        "paco + BTM",
        "paco + BTM + GML",
    ]
    assert [list(variant.models) for variant in variants] == [["pretrain"], ["baseline"], ["final"], ["final"]]
    two_stages = ABLATIONS["gml"][1](load_experiment("cifar100-lt"))
    assert (two_stages[0].labels["method"], list(two_stages[0].models)) == ("mislas", ["baseline"])


def test_repetitions_carry_the_validation_split(btm: Btm, undisturbed: Undisturbed) -> None:
    folder, _ = undisturbed
    options = ["--set=data.validation_per_class=2", "--set=pretrain.epochs=1", "--set=sampling.shots=3"]
    done = btm("run", "digits-lt", "--json", "--repeats=2", *FAST, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    validation = document["validation"]
    assert validation["split"] == "validation"
    assert validation["split_hash"] not in ("", document["split_hash"])
    assert [row["labels"] for row in validation["rows"]] == [row["labels"] for row in document["rows"]]
    assert [run["split"] for row in validation["rows"] for run in row["runs"][:1]] == ["validation"] * 5
    assert validation["rows"][-1]["n"] == 2
    for key in ("report", "markdown"):
        text = Path(document[key].removeprefix("file://")).read_text()
        assert f"validation split ({validation['split_hash'][:12]})" in text
        assert f"test split ({document['split_hash'][:12]})" in text


def test_an_unknown_ablation_is_refused(btm: Btm, tmp_path: Path) -> None:
    done = btm("ablate", "nothing", "digits-lt", cwd=tmp_path)
    assert done.returncode == 2
    assert "'nothing' is no ablation; known are merging, subsets" in done.stderr
    done = btm("ablate", "interpolation", "digits-lt", "--repeats=2", cwd=tmp_path)
    assert done.returncode == 2
    assert "interpolation draws one run's curves; choose another with --set seed=N, not --repeats" in done.stderr


@pytest.mark.parametrize("overrides", [[], ["finetune.quorum=10", "sampling.lists=[a, b, c, d, e, f, g, h, i, j]"]])
@pytest.mark.parametrize("name", ABLATIONS)
def test_variants_are_valid_experiments_and_differ(name: str, overrides: list[str]) -> None:
    experiment = load_experiment("cifar100-lt", overrides)
    _, found = variants(experiment, name, [3, 4])
    shown = [(config.identity(), tuple(variant.models)) for variant, config in found]
    assert all(a != b for i, a in enumerate(shown) for b in shown[:i])
    assert {config.seed for _, config in found} == {3, 4}
    assert {config.finetune.quorum for _, config in found} == {None}  # rows of soups that lack some are no comparison
    with pytest.raises(ConfigError):
        with_values(experiment, {"finetune.nonsense": 1})


def test_a_soup_that_lacks_some_is_named_among_repetitions() -> None:
    from flows.ablations import _lost

    lost = _lost({"seed": 3, "lost_ingredients": [{"subset": 1, "reason": "died"}, {"subset": 4, "reason": "died"}]})
    assert lost == "the soup of seed 3 was made without the fine-tunes of subsets 01, 04, which were lost"


def test_the_alert_of_table_7() -> None:
    table = [(2, 10, 0.284), (4, 10, 0.291), (8, 10, 0.282), (10, 10, 0.297), (20, 10, 0.152), (10, 20, 0.296)]
    [warning] = subset_alert(table)
    assert "falls from 29.7 at 10 subsets to 15.2 at 20" in warning
    assert subset_alert(table[:2]) == []


def test_a_comparison_says_what_it_is_of() -> None:
    figures = dict.fromkeys(("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium"), 0.25)
    rows = [Row({"Model": "<a>"}, [{**figures, "few": None, "zero_recall_classes": 2}] * 2)]
    facts = {"name": "x", "run_id": "r", "created": "now", "split": "test", "split_hash": "ab" * 32, "seeds": [0, 1]}
    document = comparison("T", rows, **facts, warnings=["look"], differences=[], runs=[])
    text, page = comparison_markdown(document), comparison_html(document)
    assert (
        "| <a> | 25.0 ± 0.0 | 25.0 ± 0.0 | 25.0 ± 0.0 | 25.0 ± 0.0 | 25.0 ± 0.0 | 25.0 ± 0.0 | n/a | 2.0 ± 0.0 |"
        in text
    )
    assert "**Warning:** look." in text
    assert "of the test split (abababababab); n = 2." in text
    assert "&lt;a&gt;" in page and "<a>" not in page  # names are text, not markup


def test_one_sigterm_ends_a_flow_at_once(tmp_path: Path) -> None:
    """Prefect's own handler would wait for the stage that is under way: here, for hours."""
    command = [sys.executable, "-m", "flows.cli", "run", "digits-lt", "--set=pretrain.epochs=1000000"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as flow:
        assert flow.stderr is not None
        for line in flow.stderr:
            if "pre-train (stage 1): epoch" in line:
                break
        os.kill(flow.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        flow.communicate(timeout=60)
        assert time.monotonic() < deadline
        assert flow.returncode == 128 + signal.SIGTERM
    [journal] = (tmp_path / ".btm/store/runs").glob("*/journal.json")
    entries = json.loads(journal.read_text())
    assert entries["state"] == "stopped"
    assert [address.partition("/")[0] for address in entries["wanted"]] == ["pretrain"]

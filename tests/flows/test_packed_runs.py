"""Whole runs whose fine-tunes train in packs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, Btm, artifact_digests

from btm_core.storage import Manifest


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "pack"), [("local", "3"), ("local", "2"), ("ray", "3")])
def test_a_run_in_packs_makes_the_same_ingredients(
    undisturbed: tuple[Path, dict[str, Any]], databases: Path, btm: Btm, tmp_path: Path, engine: str, pack: str
) -> None:
    shutil.copytree(databases, tmp_path / ".btm")
    arguments = ("run", "digits-lt", "--json", f"--engine={engine}", *FAST)
    done = btm(*arguments, cwd=tmp_path, BTM_PACK=pack, BTM_WORKERS="2")
    assert done.returncode == 0, done.stderr
    answer, expected = json.loads(done.stdout), undisturbed[1]
    ingredients = {key: url for key, url in answer["artifacts"].items() if key.startswith("finetune/")}
    assert len(ingredients) == 3
    tuned = {address for address in artifact_digests(tmp_path) if address.startswith("finetune/")}
    assert tuned == {address for address in artifact_digests(undisturbed[0]) if address.startswith("finetune/")}
    for found, alone in zip(answer["models"], expected["models"], strict=True):
        assert found["name"] == alone["name"]
        # Sums run in another order: an image or two of 600 may go to another class.
        assert found["accuracy"] == pytest.approx(alone["accuracy"], abs=0.01)
    manifests = [Manifest.model_validate_json(path.read_text()) for path in tmp_path.rglob("manifest.json")]
    packs = {stage: sorted(m.host["pack"] for m in manifests if m.stage == stage) for stage in ("finetune", "evaluate")}
    assert packs == {"finetune": [3, 3, 3] if pack == "3" else [1, 2, 2], "evaluate": [1] * 7}
    took: dict[int, set[float]] = {}
    for path in (tmp_path / ".btm/store/artifacts/finetune").glob("*/records.jsonl"):
        for record in map(json.loads, path.read_text().splitlines()):
            took.setdefault(record["epoch"], set()).add(record["seconds"])
    # Members of a pack have equal parts of its time: so many packs there were.
    assert {epoch: len(seconds) for epoch, seconds in took.items()} == dict.fromkeys(range(1, 5), -(-3 // int(pack)))

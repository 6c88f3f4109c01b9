"""Artifacts that were damaged, or are made by two runs at once: whole runs on real stores."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAST, Btm, artifact_digests, clean_environment

from btm_core.storage import Manifest, Store

Undisturbed = tuple[Path, dict[str, object]]


def only(folder: Path, stage: str, name: str) -> Path:
    [file] = (folder / ".btm/store/artifacts" / stage).glob(f"*/{name}")
    return file


@pytest.mark.slow
def test_damage_is_refused_told_and_made_again(undisturbed: Undisturbed, btm: Btm, tmp_path: Path) -> None:
    """A flipped bit in stage 1, which the fine-tunes read; a fine-tune that is gone; half a manifest of a subset."""
    shutil.copytree(undisturbed[0] / ".btm", tmp_path / ".btm")
    weights = only(tmp_path, "pretrain", "model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    store = tmp_path / ".btm/store/artifacts"
    [gone, half] = sorted((store / "finetune").iterdir())[:2]
    (gone / "model.safetensors").unlink()
    (half / "manifest.json").write_bytes((half / "manifest.json").read_bytes()[:100])
    for evaluation in (store / "evaluate").glob("post_train-mislas-on-merge-*"):
        (evaluation / "recall.json").write_text("{}")

    done = btm("run", "digits-lt", "--json", *FAST, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors is gone" in done.stderr
    assert "manifest cannot be understood" in done.stderr
    assert "is damaged: model.safetensors has sha256" in done.stderr
    assert "Traceback" not in done.stderr
    answer = json.loads(done.stdout)
    assert answer["trained_stages"] == ["pretrain", "finetune"]
    assert answer["models"] == undisturbed[1]["models"]
    assert artifact_digests(tmp_path) == artifact_digests(undisturbed[0])
    found = Store(str(tmp_path / ".btm/store"))
    assert all(found.check(address) == [] for address in artifact_digests(tmp_path))


@pytest.mark.slow
def test_two_runs_at_once_on_s3_end_well_and_agree(
    undisturbed: Undisturbed, databases: Path, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://btm/{tmp_path.name}-two"
    arguments = [sys.executable, "-m", "flows.cli", "run", "digits-lt", "--json", "--workers=1", f"--store={url}"]
    runs = []
    for name in "ab":
        folder = tmp_path / name
        shutil.copytree(databases, folder / ".btm")
        environment = {**clean_environment(), **s3, "BTM_STORE_CACHE": str(folder / "cache")}
        with (folder / "stderr").open("wb") as log:
            runs.append(
                subprocess.Popen([*arguments, *FAST], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log)
            )
    answers = [json.loads(run.communicate(timeout=300)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert answers[0]["models"] == answers[1]["models"] == undisturbed[1]["models"]
    assert answers[0]["artifacts"] == answers[1]["artifacts"]
    for name, value in s3.items():
        monkeypatch.setitem(os.environ, name, value)
    store = Store(url)
    expected = artifact_digests(undisturbed[0])
    found = {address: manifest.digest for address, manifest in manifests(store).items()}
    assert found == expected
    assert all(store.check(address) == [] for address in expected)


def manifests(store: Store) -> dict[str, Manifest]:
    """Return every manifest of a store, by address."""
    found = {}
    for fact in store.walk("artifacts"):
        if fact.path.endswith("/manifest.json"):
            address = fact.path.removeprefix("artifacts/").removesuffix("/manifest.json")
            manifest = store.manifest(address)
            assert manifest is not None, address
            found[address] = manifest
    return found

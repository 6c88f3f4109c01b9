"""The look from outside sees what is wrong: otherwise no test that relies on it would mean anything."""

import hashlib
import json
import uuid
from typing import Any

import pytest
from audit import artifacts_of, connect

WEIGHTS, RECORDS = b"weights", b"{}"
ADDRESS = "finetune/subset-00-0123456789abcdef"


@pytest.fixture
def artifact(s3: dict[str, str]) -> tuple[Any, str, str]:
    """The server, a store on it, and the folder of its one artifact, whole."""
    fs, store = connect(s3), f"btm/{uuid.uuid4().hex}"
    folder = f"{store}/artifacts/{ADDRESS}"
    manifest = {"address": ADDRESS, "files": {"model.bin": fact(WEIGHTS)}, "logs": {"records.jsonl": fact(RECORDS)}}
    for name, data in {"model.bin": WEIGHTS, "records.jsonl": RECORDS, "manifest.json": json.dumps(manifest)}.items():
        fs.pipe_file(f"{folder}/{name}", data if isinstance(data, bytes) else data.encode())
    return fs, f"s3://{store}", folder


def fact(data: bytes) -> tuple[str, int]:
    return hashlib.sha256(data).hexdigest(), len(data)


def test_a_whole_artifact(artifact: tuple[Any, str, str], s3: dict[str, str]) -> None:
    fs, store, folder = artifact
    fs.pipe_file(f"{folder}/left-over", b"no manifest names it")
    digests, wrong = artifacts_of(s3, store)
    line = f"{fact(WEIGHTS)[0]}  model.bin"
    assert (digests, wrong) == ({ADDRESS: hashlib.sha256(line.encode()).hexdigest()}, [])


@pytest.mark.parametrize("name", ["model.bin", "records.jsonl"])
def test_wrong_and_half_artifacts(artifact: tuple[Any, str, str], s3: dict[str, str], name: str) -> None:
    fs, store, folder = artifact
    fs.pipe_file(f"{folder}/{name}", b"other")
    assert artifacts_of(s3, store)[1] == [f"{folder}/{name} is not what its manifest says"]
    fs.rm_file(f"{folder}/{name}")
    assert artifacts_of(s3, store)[1] == [f"{folder}/{name} is missing"]
    manifest = json.loads(fs.cat_file(f"{folder}/manifest.json"))
    fs.pipe_file(f"{folder}/manifest.json", json.dumps({**manifest, "corrupt": "a file is missing"}).encode())
    assert artifacts_of(s3, store) == ({}, [])


def test_a_file_under_another_name(artifact: tuple[Any, str, str], s3: dict[str, str]) -> None:
    fs, store, folder = artifact
    manifest = json.loads(fs.cat_file(f"{folder}/manifest.json"))
    fs.pipe_file(f"{folder}/manifest.json", json.dumps({**manifest, "paths": {"model.bin": "model-2.bin"}}).encode())
    assert artifacts_of(s3, store)[1] == [f"{folder}/model.bin is missing"]
    fs.mv(f"{folder}/model.bin", f"{folder}/model-2.bin")
    assert artifacts_of(s3, store)[1] == []

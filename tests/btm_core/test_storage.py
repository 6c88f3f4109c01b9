import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from btm_core.errors import StoreError
from btm_core.storage import Artifact, Store

ADDRESS = "finetune/subset-00-0123456789abcdef"


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store on a local disk, and one on a real S3 server."""
    if request.param == "file":
        yield Store(str(tmp_path / "store"))
        return
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    yield Store(f"s3://btm/{tmp_path.name}")
    fsspec.filesystem("s3").clear_instance_cache()


def publish(store: Store, folder: Path, weights: bytes = b"weights", records: bytes = b"{}") -> Artifact:
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(weights)
    (folder / "records.jsonl").write_bytes(records)
    return store.publish(
        ADDRESS, folder, config={"lr": 0.1}, parents={"data": "data/x"}, versions={}, host={}, logs=("records.jsonl",)
    )


def test_what_is_published_is_found_and_fetched(store: Store, tmp_path: Path) -> None:
    assert store.find(ADDRESS) is None
    artifact = publish(store, tmp_path / "out")
    assert store.find(ADDRESS) == artifact
    assert store.fetch(artifact, "model.bin", tmp_path / "scratch").read_bytes() == b"weights"
    manifest = store.manifest(ADDRESS)
    assert manifest is not None
    assert manifest.config == {"lr": 0.1}
    assert set(manifest.files) == {"model.bin"}
    assert set(manifest.logs) == {"records.jsonl"}


def test_logs_do_not_identify_an_artifact(store: Store, tmp_path: Path) -> None:
    first = publish(store, tmp_path / "a", records=b"took 1 s")
    assert publish(store, tmp_path / "b", records=b"took 2 s").digest == first.digest
    assert publish(store, tmp_path / "c", weights=b"other").digest != first.digest


def test_no_manifest_no_artifact(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "out")
    store.remove("artifacts", ADDRESS, "manifest.json")
    assert store.find(ADDRESS) is None


def test_a_missing_or_short_file_is_no_artifact(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "out")
    store.write(b"w", "artifacts", ADDRESS, "model.bin")
    assert store.find(ADDRESS) is None
    store.remove("artifacts", ADDRESS, "model.bin")
    assert store.find(ADDRESS) is None


def test_a_flipped_bit_is_refused(store: Store, tmp_path: Path) -> None:
    artifact = publish(store, tmp_path / "out")
    store.write(b"weightz", "artifacts", ADDRESS, "model.bin")
    with pytest.raises(StoreError, match="does not hold what its manifest says"):
        store.fetch(artifact, "model.bin", tmp_path / "scratch")


def test_a_replaced_artifact_is_refused(store: Store, tmp_path: Path) -> None:
    artifact = publish(store, tmp_path / "a")
    publish(store, tmp_path / "b", weights=b"WEIGHTS")
    with pytest.raises(StoreError, match="gone, or was replaced"):
        store.fetch(artifact, "model.bin", tmp_path / "scratch")


def test_a_manifest_that_is_not_one_is_refused(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "out")
    store.write(b"{", "artifacts", ADDRESS, "manifest.json")
    with pytest.raises(StoreError, match="cannot be understood"):
        store.find(ADDRESS)


def test_plain_files(store: Store, tmp_path: Path) -> None:
    assert store.read("runs", "x") is None
    url = store.write(b"1", "runs", "x")
    assert url == f"{store.url}/runs/x"
    assert store.read("runs", "x") == b"1"
    store.remove("runs", "x")
    store.remove("runs", "x")
    assert store.read("runs", "x") is None


def test_a_store_that_can_be_written_is_left_as_it_was(store: Store, tmp_path: Path) -> None:
    store.check_writable()
    assert not list(tmp_path.rglob(".probe*"))


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path, s3: dict[str, str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(str(tmp_path / "file" / "store")).check_writable()
    with pytest.raises(StoreError, match="not usable"):
        Store("nosuch://x")


def test_wrong_credentials_are_named(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**s3, "AWS_SECRET_ACCESS_KEY": "wrong"}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StoreError, match="s3://btm/x cannot be written"):
        Store("s3://btm/x").check_writable()
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.parametrize("name", ["sp ace", "é", "100%25"])
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    artifact = publish(Store(str(tmp_path / name)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == [name]
    url = Store(str(tmp_path / name)).url
    assert url == (tmp_path / name).as_uri()
    assert Store(url).find(ADDRESS) == artifact


def test_half_a_write_leaves_no_trace(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with pytest.raises(FileNotFoundError):
        store.put(tmp_path / "absent", "runs", "x")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_manifest_is_json_that_people_can_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    publish(store, tmp_path / "out")
    manifest = json.loads((tmp_path / "store" / "artifacts" / ADDRESS / "manifest.json").read_text())
    assert manifest["stage"] == "finetune"
    assert manifest["files"]["model.bin"][1] == 7

import contextlib
import errno
import hashlib
import json
import random
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from btm_core.errors import ArtifactError, StoreError, StoreUnavailableError
from btm_core.storage import (
    Artifact,
    Manifest,
    StorageSettings,
    Store,
    fetch_file,
    file_digest_at,
    read_bytes,
    write_file,
)
from btm_core.storage.s3 import S3Files

ADDRESS = "finetune/subset-00-0123456789abcdef"


@pytest.fixture
def on_s3(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a real S3 server, and nothing kept from another."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    yield
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store on a local disk, and one on a real S3 server."""
    if request.param == "file":
        return Store(str(tmp_path / "store"))
    request.getfixturevalue("on_s3")
    return Store(f"s3://btm/{tmp_path.name}")


def publish(
    store: Store, folder: Path, weights: bytes = b"weights", records: bytes = b"{}", address: str = ADDRESS
) -> Artifact:
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(weights)
    (folder / "records.jsonl").write_bytes(records)
    return store.publish(
        address, folder, config={"lr": 0.1}, parents={"data": "data/x"}, versions={}, host={}, logs=("records.jsonl",)
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
    assert publish(store, tmp_path / "b", records=b"took 2 s", address="finetune/b-0").digest == first.digest
    assert publish(store, tmp_path / "c", weights=b"other", address="finetune/c-0").digest != first.digest


def test_no_manifest_no_artifact(store: Store, tmp_path: Path) -> None:
    artifact = publish(store, tmp_path / "out")
    store.remove("artifacts", ADDRESS, "manifest.json")
    assert store.find(ADDRESS) is None
    assert store.check(ADDRESS) == ["it has no manifest"]
    with pytest.raises(ArtifactError, match="0123456789abcdef is gone; run again to make it again"):
        Store(store.url).fetch(artifact, "model.bin", tmp_path / "scratch")


def damage(store: Store, how: str) -> None:
    """Damage the artifact's weights, as a disk or a careless hand would: not by way of the store."""
    if how == "gone":
        store.remove("artifacts", ADDRESS, "model.bin")
    else:
        store.write({"short": b"w", "flipped": b"weightz"}[how], "artifacts", ADDRESS, "model.bin")


@pytest.mark.parametrize("how", ["short", "gone"])
def test_what_shows_in_a_listing_is_told_and_made_again(
    store: Store, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = publish(store, tmp_path / "out")
    damage(store, how)
    assert store.find(ADDRESS) is None
    assert "will be made again: model.bin" in caplog.text
    assert len(store.check(ADDRESS)) == 1
    assert publish(store, tmp_path / "out") == artifact
    assert store.check(ADDRESS) == []
    assert store.fetch(artifact, "model.bin", tmp_path / "scratch").read_bytes() == b"weights"


@pytest.mark.parametrize("how", ["flipped", "short", "gone"])
def test_what_is_damaged_is_refused_and_made_again(store: Store, tmp_path: Path, how: str) -> None:
    artifact = publish(store, tmp_path / "out")
    damage(store, how)
    with pytest.raises(
        ArtifactError, match=r"damaged: model\.bin has .* It is marked as such; run again to make it again"
    ):
        store.fetch(artifact, "model.bin", tmp_path / "scratch")
    assert store.find(ADDRESS) is None
    assert publish(store, tmp_path / "out") == artifact
    assert store.find(ADDRESS) == artifact
    assert store.fetch(artifact, "model.bin", tmp_path / "scratch").read_bytes() == b"weights"
    assert Store(store.url).read_file(artifact, "model.bin") == b"weights"
    assert store.check(ADDRESS) == []


def test_what_comes_second_takes_what_is_there(store: Store, tmp_path: Path) -> None:
    first = publish(store, tmp_path / "a")
    assert publish(store, tmp_path / "b", weights=b"WEIGHTS") == first
    assert store.fetch(first, "model.bin", tmp_path / "scratch").read_bytes() == b"weights"


def test_leftovers_of_a_writer_that_died_are_not_in_the_way(store: Store, tmp_path: Path) -> None:
    store.write(b"other", "artifacts", ADDRESS, "model.bin")  # as of a writer that died before its manifest
    artifact = publish(store, tmp_path / "out")
    assert store.fetch(artifact, "model.bin", tmp_path / "scratch").read_bytes() == b"weights"
    assert store.read(*store.file_url(artifact, "model.bin").removeprefix(f"{store.url}/").split("/")) == b"weights"
    assert store.read("artifacts", ADDRESS, "model.bin") == b"other"


def test_leftovers_are_not_taken_over_though_they_fit(store: Store, tmp_path: Path) -> None:
    """A `btm store gc` that listed them before may be about to delete them."""
    store.write(b"weights", "artifacts", ADDRESS, "model.bin")
    artifact = publish(store, tmp_path / "out")
    store.remove("artifacts", ADDRESS, "model.bin")
    assert store.find(ADDRESS) == artifact
    assert store.check(ADDRESS) == []


def test_a_replaced_artifact_is_refused(store: Store, tmp_path: Path) -> None:
    artifact = publish(store, tmp_path / "a")
    store.remove("artifacts", ADDRESS)
    publish(store, tmp_path / "b", weights=b"WEIGHTS")
    with pytest.raises(ArtifactError, match="is replaced; run again to make it again"):
        Store(store.url).fetch(artifact, "model.bin", tmp_path / "scratch")


@pytest.mark.parametrize("text", [b"{", b"[]", b"", b"\xff", b'{"stage": "finetune"}'])
def test_a_manifest_that_is_not_one_counts_as_damaged(
    store: Store, tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = publish(store, tmp_path / "out")
    store.write(text, "artifacts", ADDRESS, "manifest.json")
    assert store.find(ADDRESS) is None
    assert "cannot be understood" in caplog.text
    assert publish(store, tmp_path / "out") == artifact
    assert store.find(ADDRESS) == artifact


def test_a_manifest_of_another_address_is_no_manifest(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "out")
    text = store.read("artifacts", ADDRESS, "manifest.json")
    assert text is not None
    store.write(text, "artifacts", "finetune/moved-0", "manifest.json")
    assert store.find("finetune/moved-0") is None


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "a/b", "..", "", "a\\b"])
def test_a_manifest_cannot_name_files_elsewhere(store: Store, tmp_path: Path, name: str) -> None:
    publish(store, tmp_path / "out")
    text = store.read("artifacts", ADDRESS, "manifest.json")
    assert text is not None
    document = json.loads(text)
    for field in ("files", "paths"):
        other = {**document, field: {name: document["files"]["model.bin"]} if field == "files" else {"model.bin": name}}
        store.write(json.dumps(other).encode(), "artifacts", ADDRESS, "manifest.json")
        assert store.manifest(ADDRESS) is None


def test_what_was_fetched_once_is_kept(store: Store, tmp_path: Path) -> None:
    artifact = publish(store, tmp_path / "out")
    first = store.fetch(artifact, "model.bin", tmp_path / "scratch")
    assert store.fetch(artifact, "model.bin", tmp_path / "scratch") == first


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "btm-test", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes a user who may")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_nothing_is_lost(small_disk: Path, tmp_path: Path) -> None:
    store = Store(str(small_disk / "store"))
    first = publish(store, tmp_path / "a")
    with pytest.raises(StoreError, match="the disk is full: free space"):
        publish(store, tmp_path / "b", weights=bytes(2**21), address="finetune/large-0")
    assert store.find("finetune/large-0") is None
    assert not [fact.path for fact in store.walk() if "part" in fact.path]  # it made room again
    assert store.fetch(first, "model.bin", tmp_path).read_bytes() == b"weights"
    small = publish(store, tmp_path / "b", weights=b"fits", address="finetune/large-0")
    assert store.find("finetune/large-0") == small


def test_a_read_only_disk_is_named(small_disk: Path, tmp_path: Path) -> None:
    store = Store(str(small_disk / "store"))
    artifact = publish(store, tmp_path / "a")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match="may not be written to; choose another with --store"):
        store.check_there()
    with pytest.raises(StoreError, match="read-only: choose another with --store"):
        store.check_writable()
    with pytest.raises(StoreError, match="read-only"):
        publish(store, tmp_path / "b", address="finetune/b-0")
    assert store.fetch(artifact, "model.bin", tmp_path).read_bytes() == b"weights"
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    damage(store, "flipped")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ArtifactError, match=r"(?s)is damaged: model\.bin has .* It could not be marked .*: delete it"):
        store.fetch(artifact, "model.bin", tmp_path)


def test_a_server_without_conditional_writes_gets_names_with_hashes(
    tmp_path: Path, on_s3: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal names then mean equal bytes, so that whoever writes last, what a manifest names is there."""
    monkeypatch.setattr(S3Files, "_heeded", {})
    monkeypatch.setattr(S3Files, "_heeds_conditions", lambda files: False)
    store = Store(f"s3://btm/{tmp_path.name}")
    artifact = publish(store, tmp_path / "a")
    names = {fact.path.rpartition("/")[2] for fact in store.walk("artifacts", ADDRESS)}
    digest = hashlib.sha256(b"weights").hexdigest()
    assert f"{digest[:16]}-model.bin" in names
    assert "model.bin" not in names
    assert store.fetch(artifact, "model.bin", tmp_path / "scratch").read_bytes() == b"weights"
    store.remove("artifacts", ADDRESS, f"{digest[:16]}-model.bin")
    assert store.find(ADDRESS) is None
    assert publish(store, tmp_path / "a") == artifact
    assert publish(store, tmp_path / "b", weights=b"others") == artifact
    assert store.check(ADDRESS) == []


def test_this_server_heeds_conditions_and_is_asked_once(
    tmp_path: Path, on_s3: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3Files, "_heeded", {})
    store = Store(f"s3://btm/{tmp_path.name}")
    assert store._files.conditional
    assert list(S3Files._heeded.values()) == [True]
    monkeypatch.setattr(S3Files, "_heeds_conditions", lambda files: pytest.fail("asked again"))
    assert Store(store.url).within(5)._files.conditional
    assert list(store.walk()) == []  # the probes are gone


@pytest.mark.parametrize("size", [0, 1, 5 * 2**20, 5 * 2**20 + 1, 10 * 2**20, 11 * 2**20])
def test_files_of_any_size_come_back(store: Store, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of 5 MiB, S3's smallest: around the sizes at which one more begins."""
    monkeypatch.setenv("BTM_STORE_PART_MEGABYTES", "5")
    monkeypatch.setenv("BTM_STORE_PARALLEL", "2")
    store = Store(store.url)
    content = random.Random(size).randbytes(size)
    artifact = publish(store, tmp_path / "out", weights=content)
    assert store.check(ADDRESS) == []
    assert store.fetch(artifact, "model.bin", tmp_path / "scratch").read_bytes() == content


def test_a_store_is_not_another_whose_name_begins_alike(store: Store, tmp_path: Path) -> None:
    other = Store(f"{store.url}y")
    publish(other, tmp_path / "out")
    other.write(b"1", "partial", "ab", "state")
    other.write(b"1", "partial", "a", "state")
    assert list(store.walk()) == []
    assert store.find(ADDRESS) is None
    store.remove("partial")
    other.remove("partial", "a")
    assert other.read("partial", "ab", "state") == b"1"
    assert other.find(ADDRESS) is not None


def test_deleting_takes_names_as_they_are(on_s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as patterns: `p[12]` is no p1."""
    odd, plain = Store(f"s3://btm/{tmp_path.name}-p[12]"), Store(f"s3://btm/{tmp_path.name}-p1")
    for store in (odd, plain):
        publish(store, tmp_path / "out")
        store.write(b"1", "runs", "a*", "x")
        store.write(b"1", "runs", "ab", "x")
    odd.remove("artifacts", ADDRESS)
    plain.remove("runs", "a*")
    assert odd.find(ADDRESS) is None
    assert plain.find(ADDRESS) is not None
    assert [fact.path for fact in plain.walk("runs")] == ["runs/ab/x"]


@pytest.mark.parametrize("size", [10**14, 10**30, 8])
def test_sizes_that_lie_are_found_out(store: Store, tmp_path: Path, size: int) -> None:
    """A manifest that names more bytes than there are is not followed to their end."""
    artifact = publish(store, tmp_path / "out")
    text = store.read("artifacts", ADDRESS, "manifest.json")
    assert text is not None
    document = json.loads(text)
    document["files"]["model.bin"][1] = size
    store.write(json.dumps(document).encode(), "artifacts", ADDRESS, "manifest.json")
    assert store.check(ADDRESS) == [f"model.bin has 7 bytes, its manifest says {size}"]
    with pytest.raises(ArtifactError):
        store.fetch(artifact, "model.bin", tmp_path / "scratch")


def test_of_a_file_that_grew_no_more_is_read_than_shows_it(
    on_s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"s3://btm/{tmp_path.name}")
    publish(store, tmp_path / "out")
    store.write(b"weights" + bytes(2**20), "artifacts", ADDRESS, "model.bin")
    read: list[int] = []
    assert store.check(ADDRESS, read.append) == ["model.bin has 8 bytes, its manifest says 7"]
    assert sum(read) < 100


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:/btm/x", "the store's URL has one slash too few: use s3://bucket/prefix, or file:///folder"),
        ("s3://btm//x", "'s3://btm//x' has a folder without a name: take one of its slashes out"),
        ("s3://btm/x//y", "'s3://btm/x//y' has a folder without a name: take one of its slashes out"),
        (
            "http://127.0.0.1:1/x",
            "'http://127.0.0.1:1/x' cannot be listed and written: use a path, file:///folder or s3",
        ),
        ("s3://", "'s3://' names no bucket: use s3://bucket/prefix"),
        ("nosuch://x", "'nosuch://x' is not usable: .*; use a path, file:///folder or s3://bucket/prefix"),
    ],
)
def test_what_only_looks_like_a_store_is_refused(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Store(url)


def test_an_unreadable_manifest_can_be_marked(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "out")
    store.write(b"{", "artifacts", ADDRESS, "manifest.json")
    [why] = store.check(ADDRESS, mark=True)
    text = store.read("artifacts", ADDRESS, "manifest.json")
    assert text is not None
    assert Manifest.model_validate_json(text).corrupt == why


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("btm_core.storage.local.os.link", refuse)
    store = Store(str(tmp_path / "store"))
    store.write(b"other", "artifacts", ADDRESS, "model.bin")
    artifact = publish(store, tmp_path / "out")
    assert store.read("artifacts", ADDRESS, "model.bin") == b"other"
    assert publish(store, tmp_path / "b", weights=b"WEIGHTS") == artifact
    assert store.check(ADDRESS) == []


def test_urls_of_files_lead_to_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "sp ace"))
    artifact = publish(store, tmp_path / "out")
    url = store.file_url(artifact, "model.bin")
    assert "sp%20ace" in url
    assert read_bytes(url) == b"weights"
    assert file_digest_at(url) == fetch_file(url, tmp_path / "copy")
    with write_file(url.replace("model.bin", "a%20copy")) as write:
        write(3, memoryview(b"ghts"))
        write(0, memoryview(b"wei"))
    assert (tmp_path / "sp ace/artifacts" / ADDRESS / "a copy").read_bytes() == b"weights"


def test_a_server_is_found_out_that_does_not_heed_conditions(
    on_s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ignores them of single writes, and one that ignores them of uploads in parts."""
    for method in ("put_object", "complete_multipart_upload"):
        monkeypatch.setattr(S3Files, "_heeded", {})
        ask = S3Files._ask

        def deaf(files: S3Files, name: str, path: str, method: str = method, ask: Any = ask, **arguments: Any) -> Any:
            if name == method:
                arguments.pop("IfNoneMatch", None)
            return ask(files, name, path, **arguments)

        monkeypatch.setattr(S3Files, "_ask", deaf)
        assert not Store(f"s3://btm/{tmp_path.name}")._files.conditional
        monkeypatch.setattr(S3Files, "_ask", ask)


def test_a_server_that_trickles_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never silent for long, so that no timeout of a read ends it."""
    ended = threading.Event()

    class Trickle(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not ended.wait(0.2):
                    self.wfile.write(b".")
                    self.wfile.flush()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(name, value)
        settings = StorageSettings(
            endpoint=f"http://127.0.0.1:{server.server_port}", deadline_seconds=1, read_timeout_seconds=60
        )
        with pytest.raises(StoreUnavailableError, match="has not answered as it should"):
            Store("s3://btm/x", settings).read("file")
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_file_of_a_web_server_comes_whole(tmp_path: Path) -> None:
    """This one knows no ranges: a request for a part is answered with all. The file is larger than a part."""
    content = random.Random(0).randbytes(9 * 2**20)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/a.bin").write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.bin"
        assert fetch_file(url, tmp_path / "copy") == (hashlib.sha256(content).hexdigest(), len(content))
        assert file_digest_at(url) == fetch_file(url, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content
        with pytest.raises(FileNotFoundError):
            fetch_file(f"{url}x", tmp_path / "copy")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("url", ["s3://key:hidden@b//x", "s3:/key:hidden@b", "http://key:hidden@host/x"])
def test_a_refused_store_shows_no_secret(url: str) -> None:
    with pytest.raises(StoreError) as refusal:
        Store(url)
    assert "hidden" not in str(refusal.value)

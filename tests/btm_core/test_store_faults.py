"""The store through a proxy that makes trouble: what passes is survived, what stays is one clear error.

Large files go in parts and are read in ranges; the networks of the other tests are too small for that.
"""

import hashlib
import random
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path

import faults
import fsspec
import pytest
from audit import connect
from faults import Fault, Rule
from proxy import Proxy

from btm_core.errors import StoreError
from btm_core.storage import Artifact, Store

ADDRESS = "finetune/subset-00-0123456789abcdef"
LARGE, SMALL = 40 << 20, 200 << 10
PART = r"uploadId="
BURST = range(1, 4)


@pytest.fixture(autouse=True)
def _environment(s3: dict[str, str], proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reach the store through the proxy only, be impatient, and cache nothing."""
    environment = {
        **s3,
        "AWS_ENDPOINT_URL_S3": proxy.url,
        "BTM_STORE_DEADLINE_SECONDS": "60",
        "BTM_STORE_READ_TIMEOUT_SECONDS": "2",
        "BTM_STORE_CACHE_GB": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    yield
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"s3://btm/{tmp_path.name}")


@pytest.fixture
def impatient(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same store, given up on after four seconds."""
    monkeypatch.setenv("BTM_STORE_DEADLINE_SECONDS", "4")
    monkeypatch.setenv("BTM_STORE_READ_TIMEOUT_SECONDS", "0.5")
    return Store(store.url)


@pytest.fixture(scope="module")
def content() -> bytes:
    """Bytes of which no part is like another."""
    return random.Random(0).randbytes(LARGE)


def publish(store: Store, folder: Path, content: bytes) -> Artifact:
    output = folder / "output"
    output.mkdir(exist_ok=True)
    (output / "model.bin").write_bytes(content)
    return store.publish(ADDRESS, output, config={}, parents={}, versions={}, host={})


def held(s3: dict[str, str], store: Store, name: str = "model.bin") -> str:
    """Return the sha256 of what the server has, read past the proxy and the code under test."""
    path = store.locate("artifacts", ADDRESS, name).removeprefix("s3://")
    return hashlib.sha256(connect(s3).cat_file(path)).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_large_files_go_in_parts(
    proxy: Proxy, store: Store, s3: dict[str, str], tmp_path: Path, content: bytes
) -> None:
    """Without this, the tests of failing parts would test nothing."""
    artifact = publish(store, tmp_path, content)
    assert len([seen for seen in proxy.record if seen.method == "PUT" and "partNumber=" in seen.target]) > 1
    assert held(s3, store) == sha256(content)
    assert store.fetch(artifact, "model.bin", tmp_path / "scratch").read_bytes() == content


WRITING = [
    pytest.param(LARGE, Rule(faults.status(500, "InternalError"), "PUT", "partNumber=2&", at=BURST), id="part-500"),
    pytest.param(LARGE, Rule(faults.status(503), "PUT", "partNumber=", at=BURST), id="parts-503"),
    pytest.param(LARGE, Rule(faults.reset, "PUT", "partNumber=", at={2}), id="part-reset"),
    pytest.param(LARGE, Rule(faults.lose_reply, "PUT", "partNumber=", at={1, 3}), id="part-reply-lost"),
    pytest.param(LARGE, Rule(faults.status(503), "POST", "uploads", at=BURST), id="create-multipart-503"),
    pytest.param(LARGE, Rule(faults.lose_reply, "POST", "uploads", at={1}), id="create-multipart-reply-lost"),
    pytest.param(LARGE, Rule(faults.status(503), "POST", PART, at=BURST), id="complete-multipart-503"),
    pytest.param(LARGE, Rule(faults.lose_reply, "POST", PART, at={1}), id="complete-multipart-reply-lost"),
    pytest.param(SMALL, Rule(faults.status(503), "PUT", "model.bin", at=BURST), id="put-503"),
    pytest.param(SMALL, Rule(faults.reset, "PUT", "model.bin", at=BURST), id="put-reset"),
    pytest.param(SMALL, Rule(faults.lose_reply, "PUT", "model.bin", at={1}), id="put-reply-lost"),
    pytest.param(SMALL, Rule(faults.status(503), "PUT", "manifest.json", at=BURST), id="manifest-503"),
    pytest.param(SMALL, Rule(faults.lose_reply, "PUT", "manifest.json", at={1}), id="manifest-reply-lost"),
    pytest.param(SMALL, Rule(faults.hang(), "PUT", "manifest.json", at={1}), id="manifest-reply-hangs"),
]


@pytest.mark.parametrize(("size", "rule"), WRITING)
def test_trouble_in_writing_passes(
    proxy: Proxy, store: Store, s3: dict[str, str], tmp_path: Path, content: bytes, size: int, rule: Rule
) -> None:
    rule = anew(rule)
    proxy.add(rule)
    artifact = publish(store, tmp_path, content[:size])
    assert rule.done > 0
    assert held(s3, store) == sha256(content[:size])
    proxy.clear()
    assert store.find(ADDRESS) == artifact
    assert publish(store, tmp_path, content[:size]) == artifact


def test_an_upload_that_is_gone_may_have_been_completed(
    proxy: Proxy, store: Store, s3: dict[str, str], tmp_path: Path, content: bytes
) -> None:
    """As AWS answers whoever asks again after a lost reply; SeaweedFS says that it is there."""
    publish(Store(f"{store.url}-before"), tmp_path, b"")  # what the server heeds is tried once a process: now
    lost = Rule(faults.lose_reply, "POST", PART, at={1})
    gone = Rule(faults.status(404, "NoSuchUpload", "The specified upload does not exist."), "POST", PART)
    proxy.add(lost, gone)
    artifact = publish(store, tmp_path, content)
    assert lost.done == gone.done == 1
    assert held(s3, store) == sha256(content)
    assert store.find(ADDRESS) == artifact


READING = [
    pytest.param(faults.status(503), BURST, id="503"),
    pytest.param(faults.reset, BURST, id="reset"),
    pytest.param(faults.lose_reply, {1, 2}, id="reply-lost"),
    pytest.param(faults.truncate(100_000), {1, 2}, id="truncated"),
    pytest.param(faults.truncate(0), {1, 2}, id="truncated-at-once"),
    pytest.param(faults.hang(100_000), {1, 2}, id="hangs"),
    pytest.param(faults.hang(0), {1}, id="hangs-at-once"),
]


@pytest.mark.parametrize(("fault", "at"), READING)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_trouble_in_reading_passes(
    proxy: Proxy, store: Store, tmp_path: Path, content: bytes, size: int, fault: Fault, at: set[int]
) -> None:
    artifact = publish(store, tmp_path, content[:size])
    rule = Rule(fault, "GET", "model.bin", at=at)
    proxy.add(rule)
    found = store.fetch(artifact, "model.bin", tmp_path / "scratch")
    assert rule.done == len(at)
    assert found.read_bytes() == content[:size]


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("at", [{1}, faults.EVERY])
def test_a_flipped_bit_on_the_way_is_never_handed_out(
    proxy: Proxy,
    store: Store,
    impatient: Store,
    s3: dict[str, str],
    tmp_path: Path,
    content: bytes,
    size: int,
    at: Container[int],
) -> None:
    """It is read again or refused; and one that is not stored does not count against what is."""
    artifact = publish(store, tmp_path, content[:size])
    rule = Rule(faults.flip(1000), "GET", "model.bin", at=at)
    proxy.add(rule)
    where = impatient.locate("artifacts", ADDRESS)
    with suppress(StoreError) if at == {1} else pytest.raises(StoreError, match=where):
        assert impatient.fetch(artifact, "model.bin", tmp_path / "scratch").read_bytes() == content[:size]
    assert rule.done
    left = [path for path in (tmp_path / "scratch").glob("*") if path.name == "model.bin"]
    assert all(path.read_bytes() == content[:size] for path in left)
    assert held(s3, impatient) == sha256(content[:size])


OPERATIONS = ["find", "fetch", "publish", "write", "read", "check"]
STAYING = [
    *(pytest.param(operation, faults.status(503), id=f"{operation}-503") for operation in OPERATIONS),
    pytest.param("find", faults.hang(), id="find-hangs"),
    pytest.param("fetch", faults.reset, id="fetch-reset"),
    pytest.param("publish", faults.status(500, "InternalError"), id="publish-500"),
    pytest.param("publish", faults.hang(), id="publish-hangs"),
]


@pytest.mark.parametrize(("operation", "fault"), STAYING)
def test_trouble_that_stays_is_one_error_within_the_deadline(
    proxy: Proxy, store: Store, impatient: Store, tmp_path: Path, operation: str, fault: Fault
) -> None:
    artifact = publish(store, tmp_path, b"weights")
    rule = Rule(fault)
    proxy.add(rule)
    begun = len(proxy.record)
    with pytest.raises(StoreError, match=store.url):
        attempt(impatient, operation, artifact, tmp_path)
    assert rule.done > 1, "it was not tried again"
    struck = proxy.record[begun:]
    assert struck[-1].time - struck[0].time < 40, "the deadline was passed by far"
    assert len(struck) < 60, "the server was hammered"


@pytest.mark.parametrize("fault", [faults.expired, faults.skewed, faults.status(403, "AccessDenied", "Access Denied.")])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_waiting_does_not_mend_is_told_at_once(
    proxy: Proxy, store: Store, tmp_path: Path, fault: Fault, operation: str
) -> None:
    artifact = publish(store, tmp_path, b"weights")
    rule = Rule(fault)
    proxy.add(rule)
    with pytest.raises(StoreError, match=store.url):
        attempt(store, operation, artifact, tmp_path)
    assert 0 < rule.done <= 4  # s3fs itself asks in another way when it is refused; nobody waits


def test_a_bucket_that_was_mistyped_is_not_created(s3: dict[str, str], proxy: Proxy) -> None:
    """SeaweedFS makes it at the first write, if the keys may do so."""
    with pytest.raises(
        StoreError, match="s3://no-such-bucket-2/store/: there is no such bucket: create it, or correct"
    ):
        Store("s3://no-such-bucket-2/store").check_writable()
    assert "no-such-bucket-2" not in connect(s3).ls("")
    assert len(proxy.record) <= 4
    proxy.add(Rule(faults.status(404, "NoSuchKey"), "GET"))  # as some servers say it
    with pytest.raises(StoreError, match="s3://btm/x: there is no bucket btm: create it, or correct its name"):
        Store("s3://btm/x").check_writable()


@pytest.mark.parametrize("fault", [faults.full, faults.status(500, "InternalError")])
def test_a_full_disk_is_an_error_and_leaves_no_artifact(
    proxy: Proxy, store: Store, impatient: Store, tmp_path: Path, fault: Fault
) -> None:
    rule = Rule(fault, "PUT|POST")
    proxy.add(rule)
    with pytest.raises(StoreError, match=store.url):
        publish(impatient, tmp_path, b"weights")
    assert rule.done
    proxy.clear()
    assert store.find(ADDRESS) is None
    publish(store, tmp_path, b"weights")


def attempt(store: Store, operation: str, artifact: Artifact, folder: Path) -> None:
    """Do one of the store's operations, of each kind one."""
    match operation:
        case "find":
            store.find(ADDRESS)
        case "fetch":
            store.fetch(artifact, "model.bin", folder / "scratch")
        case "publish":
            publish(store, folder, b"weights")
        case "write":
            store.write(b"1", "runs", "x")
        case "read":
            store.read("runs", "x")
        case "check":
            store.check_writable()
        case _:
            raise AssertionError(operation)


def anew(rule: Rule) -> Rule:
    """Return a rule that has counted nothing yet."""
    return Rule(rule.fault, rule.method, rule.target, rule.at)

"""What may be deleted, decided on plain data; and that a run beside a sweep keeps what it took, whatever the order."""

import hashlib
import io
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from stores import address, aged, forge_run, make

from btm_core.errors import StoreError
from btm_core.storage import FileFact, Manifest, Store
from flows.store.documents import artifact_document, listing, run_document
from flows.store.printing import print_artifact, print_listing, print_run
from tasks import journal as journals
from tasks.housekeeping.backend import Backend
from tasks.housekeeping.garbage import Registered, garbage
from tasks.housekeeping.inventory import Inventory, StoredArtifact, StoredRun, read_inventory
from tasks.housekeeping.records import Summary, addresses_in, understood
from tasks.housekeeping.sweep import sweep
from tasks.housekeeping.verifying import verify
from tasks.journal import Entries, Journal

NOW = datetime(2026, 1, 31, tzinfo=UTC)
NOBODY = Registered("nobody")
HOUR = timedelta(hours=1)


# Decisions, on plain data


def hours_ago(hours: float) -> datetime:
    return NOW - hours * HOUR


def artifact(name: str, parents: list[str], age: float, *, half: bool = False) -> StoredArtifact:
    files = [FileFact(f"artifacts/{name}/{file}", 1, hours_ago(age)) for file in ("manifest.json", "model.bin")]
    manifest = Manifest(
        stage="s", address=name, config={}, parents={p: p for p in parents}, files={"model.bin": ("0" * 64, 1)}
    )
    return StoredArtifact(name, tuple(files[half:]), None if half else manifest)


def a_run(run_id: str, state: str, age: float, refers: set[str]) -> StoredRun:
    files = (FileFact(f"runs/{run_id}/journal.json", 1, hours_ago(age)),)
    return StoredRun(run_id, files, state, frozenset(refers))


AGES = st.sampled_from([-5.0, 0.0, 0.5, 2.0, 100.0, 167.0, 169.0, 1000.0])


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    names = [f"s/{number}" for number in range(draw(st.integers(1, 8)))]
    artifacts = {
        name: artifact(
            name,
            draw(st.lists(st.sampled_from(names[:i]), unique=True)) if i else [],
            draw(AGES),
            half=draw(st.integers(0, 9)) == 0,
        )
        for i, name in enumerate(names)
    }
    states = st.sampled_from(["running", "done", "failed", "stopped", "empty"])
    runs = {
        run_id: a_run(run_id, draw(states), draw(AGES), draw(st.sets(st.sampled_from(names))))
        for run_id in (f"run-{number}" for number in range(draw(st.integers(0, 4))))
    }
    partial = {
        name: (FileFact(f"partial/{name}/state-0.safetensors", 1, hours_ago(draw(AGES))),)
        for name in draw(st.sets(st.sampled_from(names)))
    }
    return Inventory("memory://x", NOW, artifacts, runs, partial)


def ancestors_and_self(inventory: Inventory, roots: set[str]) -> set[str]:
    """All that roots were made from, found the slow way."""
    while True:
        more = roots | {p for a in inventory.artifacts.values() if a.address in roots for p in a.parents}
        if more == roots:
            return roots
        roots = more


@given(inventories(), st.sampled_from([0.0, 1.0, 168.0]), st.integers(0, 4))
def test_garbage_is_what_nobody_needs_and_all_of_it(inventory: Inventory, grace: float, registered: int) -> None:
    models = Registered("us", runs={f"run-{registered}": "m, version 1"})
    counting = {
        run.run_id
        for run in inventory.runs.values()
        if run.state == "done"
        or run.run_id in models.runs
        or NOW - run.beat < grace * HOUR
        or (run.state == "running" and NOW - run.beat < HOUR)
    }
    needed = ancestors_and_self(inventory, {a for run_id in counting for a in inventory.runs[run_id].refers})
    found = garbage(inventory, grace * HOUR, models)
    deleted = {item.name for item in found if item.kind in ("artifact", "half")}
    assert not deleted & needed
    assert all(NOW - fact.modified >= grace * HOUR for item in found for fact in item.files)
    old = {a.address for a in inventory.artifacts.values() if NOW - a.modified >= grace * HOUR}
    assert deleted == old - needed
    assert not {item.name for item in found if item.kind == "run"} & counting
    live = [r for r in inventory.runs.values() if r.state == "running" and NOW - r.beat < max(grace, 1) * HOUR]
    assert not {item.name for item in found if item.kind == "partial"} & {a for r in live for a in r.refers}


def test_a_long_run_keeps_the_old_artifact_it_took() -> None:
    artifacts = {"s/old": artifact("s/old", ["s/older"], 5000), "s/older": artifact("s/older", [], 6000)}
    for state, beat, kept in (("running", 0.5, True), ("running", 200, False), ("failed", 100, True)):
        runs = {"r": a_run("r", state, beat, {"s/old"})}
        found = garbage(Inventory("memory://x", NOW, artifacts, runs, {}), 168 * HOUR, NOBODY)
        assert ({item.name for item in found} == set()) is kept, (state, beat)


def test_a_run_that_is_not_understood_stops_all_deletion() -> None:
    runs = {"r": StoredRun("r", a_run("r", "done", 900, set()).files, "unreadable", problem="journal.json: what")}
    with pytest.raises(StoreError, match=r"what run r needs is not known .*, so nothing may be deleted; mend it, or"):
        garbage(Inventory("memory://x", NOW, {}, runs, {}), 168 * HOUR, NOBODY)


def test_a_needed_manifest_that_is_not_understood_stops_all_deletion() -> None:
    broken = StoredArtifact("s/a", artifact("s/a", [], 900).files, None, "its manifest cannot be understood: what")
    inventory = Inventory("memory://x", NOW, {"s/a": broken}, {"r": a_run("r", "done", 900, {"s/a"})}, {})
    with pytest.raises(StoreError, match="btm store verify s/a --mark"):
        garbage(inventory, 168 * HOUR, NOBODY)
    assert garbage(Inventory("memory://x", NOW, {"s/a": broken}, {}, {}), 168 * HOUR, NOBODY)


def test_addresses_are_found_in_urls_and_text() -> None:
    text = '"s3://b/p/artifacts/finetune/subset-00-0123456789abcdef/model.safetensors", fc/resnet-aaaaaaaaaaaaaaaa.'
    assert addresses_in(text) == {"finetune/subset-00-0123456789abcdef", "fc/resnet-aaaaaaaaaaaaaaaa"}
    assert (
        addresses_in("sha256 " + "0" * 64 + " s3://bucket/runs/20260102-030405-digits-lt-abcdef/report.html") == set()
    )


# A run beside a sweep


class Watched(Store):
    """A store that calls somebody before each of its operations."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def read(self, *parts: str) -> bytes | None:
        self.before()
        return super().read(*parts)

    def write(self, data: bytes, *parts: str) -> str:
        self.before()
        return super().write(data, *parts)

    def remove(self, *parts: str) -> None:
        self.before()
        super().remove(*parts)

    def walk(self, *parts: str) -> Iterator[FileFact]:
        self.before()
        return super().walk(*parts)


def step_by_step(store: Store, run_id: str, names: list[str], held: set[str]) -> Iterator[None]:
    """Do what a run does, in single operations on the store: a journal, the search, `Store.publish`, the end."""
    journal = Journal(store, run_id, "x", 0)
    for name in names:
        where = address(name)
        journal.want([where])
        yield
        found = store.find(where)
        yield
        if found is None:
            taken = {fact.path.rpartition("/")[2] for fact in store.walk("artifacts", where)}
            yield
            path = f"{uuid.uuid4().hex[:16]}-model.bin" if "model.bin" in taken else "model.bin"
            data = name.encode()
            store.write(data, "artifacts", where, path)
            yield
            fact = (hashlib.sha256(data).hexdigest(), len(data))
            made = Manifest(
                stage="s", address=where, config={}, parents={}, files={"model.bin": fact}, paths={"model.bin": path}
            )
            if store.find(where) is None:
                store.write(made.model_dump_json().encode(), "artifacts", where, "manifest.json")
        held.add(where)
        journal.take([where])
        yield
    journal._end("done")


class Killed(BaseException):
    """What a kill is to the sweep: nothing is tidied up after it."""


def swept_beside_runs(tmp: Path, schedule: list[tuple[int, int]], killed_at: int | None) -> tuple[Store, set[str]]:
    """Sweep a store of three old artifacts while two runs take them, or make them again, in the order of a schedule."""
    url = f"memory://{uuid.uuid4().hex}"
    plain = Store(url)
    for name in ("a", "b", "c"):
        make(plain, tmp, name)
    plain.remove("artifacts", address("b"), "manifest.json")  # half of one
    held: set[str] = set()
    runs = [step_by_step(plain, "one", ["a", "b", "d"], held), step_by_step(plain, "two", ["b", "c", "a"], held)]
    turns = iter(schedule)
    operations = 0

    def others_go_on() -> None:
        nonlocal operations
        operations += 1
        if operations == killed_at:
            raise Killed
        for run, steps in zip(runs, next(turns, (0, 0)), strict=True):
            for _ in range(steps):
                next(run, None)

    watched = Watched(url)
    watched.before = others_go_on  # type: ignore[method-assign]
    try:
        inventory = read_inventory(watched, workers=1)
        sweep(watched, inventory, garbage(inventory, timedelta(0), NOBODY), timedelta(0), NOBODY, workers=1)
    except Killed:
        pass
    for run in runs:
        list(run)
    return plain, held


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[int, int]]:
    """How many steps each run does before each operation of the sweep, of which there are about 40.

    It begins somewhere with a sprint, and goes on step by step.
    """

    def of_one() -> list[int]:
        begin, sprint = draw(st.integers(0, 40)), draw(st.integers(0, 30))
        return [0] * begin + [sprint] + draw(st.lists(st.integers(0, 2), min_size=40, max_size=40))

    return list(zip(of_one(), of_one(), strict=False))


@settings(max_examples=100, deadline=None)
@given(schedule=schedules())
def test_no_interleaving_takes_from_a_run_what_it_took(
    schedule: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, held = swept_beside_runs(tmp_path_factory.getbasetemp(), schedule, None)
    assert {where: store.check(where) for where in held} == {where: [] for where in map(address, "abcd")}


@settings(max_examples=50, deadline=None)
@given(schedule=schedules(), killed_at=st.integers(1, 60))
def test_a_sweep_that_is_killed_leaves_artifacts_whole_or_absent(
    schedule: list[tuple[int, int]], killed_at: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, held = swept_beside_runs(tmp_path_factory.getbasetemp(), schedule, killed_at)
    assert all(store.check(where) in ([], ["it has no manifest"]) for where in held)
    inventory = read_inventory(store)
    found = garbage(inventory, timedelta(0), NOBODY)
    sweep(store, inventory, found, timedelta(0), NOBODY)
    assert all(store.check(where) in ([], ["it has no manifest"]) for where in held)
    assert garbage(read_inventory(store), timedelta(0), NOBODY) == []


# On real stores


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store on a local disk, and one on a real S3 server."""
    if request.param == "file":
        (tmp_path / "sto re").mkdir()
        yield Store(str(tmp_path / "sto re"))
        return
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    yield Store(f"s3://btm/{tmp_path.name}")
    fsspec.filesystem("s3").clear_instance_cache()


def clean(store: Store, grace: float = 0) -> list[tuple[str, str]]:
    """Sweep, and return kind and name of what was deleted."""
    inventory = read_inventory(store)
    found = garbage(inventory, grace * HOUR, NOBODY)
    swept = sweep(store, inventory, found, grace * HOUR, NOBODY)
    assert set(swept.deleted) == set(found)
    return sorted((item.kind, item.name) for item in swept.deleted)


def test_the_sweep_leaves_what_runs_refer_to(store: Store, tmp_path: Path) -> None:
    for name, *parents in ("data",), ("base", "data"), ("soup", "base"), ("other", "base"), ("lone",):
        make(store, tmp_path, name, *parents)
    make(store, tmp_path, "half")
    store.remove("artifacts", address("half"), "manifest.json")
    store.write(b"x", "artifacts", address("soup"), "stray.bin")
    store.write(b"x", "partial", address("soup"), "state-0.safetensors")
    store.write(b"x", "runs", "done", f"report.html.{uuid.uuid4().hex}.part")
    store.write(b"x", f".probe-{uuid.uuid4().hex}")
    store.write(b"x", "elsewhere", "of", "somebody", f"else.{uuid.uuid4().hex}.part")
    forge_run(store, "done", "soup", lost=("never",))
    forge_run(store, "failed", "other", state="failed")
    found = clean(store)
    expected = {("artifact", address("other")), ("artifact", address("lone")), ("half", address("half"))}
    expected |= {("surplus", address("soup")), ("partial", address("soup")), ("run", "failed")}
    assert {item for item in found if item[0] != "temporary"} == expected
    assert sum(kind == "temporary" for kind, _ in found) == 2
    left = read_inventory(store)
    assert set(left.artifacts) == {address(name) for name in ("data", "base", "soup")}
    assert not left.partial and not left.temporary and set(left.runs) == {"done"}
    assert len(list(store.walk("elsewhere"))) == 1
    assert verify(store, left).damaged == []
    assert clean(store) == []


def test_on_a_disk_no_empty_folder_is_left(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    make(store, tmp_path, "lone")
    aged(tmp_path / "store", 169)
    make(store, tmp_path, "new")
    assert clean(store, 168) == [("artifact", address("lone"))]
    assert [path.name for path in (tmp_path / "store/artifacts/finetune").iterdir()] == [address("new").split("/")[1]]


def test_a_run_under_way_keeps_even_its_stray_files(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, "taken")
    where = address("under-way")
    store.write(b"x", "artifacts", where, "model.bin")
    store.write(b"x", "artifacts", where, f"model.bin.{uuid.uuid4().hex}.part")
    store.write(b"x", "partial", where, "state-0.safetensors")
    forge_run(store, "run", "taken", state="running", lost=("under-way",))
    assert clean(store) == []
    forge_run(store, "run", "taken", state="stopped", lost=("under-way",))
    kinds = [kind for kind, _ in clean(store)]
    assert kinds == ["artifact", "half", "partial", "run", "temporary"]


def test_nobody_takes_over_files_that_were_there_before(store: Store, tmp_path: Path) -> None:
    first = make(store, tmp_path, "a")
    store.remove("artifacts", address("a"), "manifest.json")
    inventory = read_inventory(store)
    [half] = garbage(inventory, timedelta(0), NOBODY)
    second = make(store, tmp_path, "a")  # of the same bytes
    for fact in half.files:
        store.remove(fact.path)
    assert second.digest == first.digest
    assert store.check(address("a")) == []


def test_ages_are_by_the_clock_of_the_store(store: Store) -> None:
    store.write(b"x", "runs", "r", "report.html")
    [fact] = store.walk("runs")
    now = Backend(store.url).now(probing=True)
    assert abs((now - fact.modified).total_seconds()) < 60
    assert list(Backend(store.url).probes()) == []


def test_the_clock_of_a_disk_is_that_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "touch", lambda path: (path.write_bytes(b""), os.utime(path, (1e9, 1e9)))[0])
    assert Backend(tmp_path.as_uri()).now(probing=True) == datetime.fromtimestamp(1e9, UTC)


def test_who_only_looks_writes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    make(store, tmp_path, "lone")
    before = (tmp_path / "store").stat().st_mtime_ns
    inventory = read_inventory(store)
    assert (tmp_path / "store").stat().st_mtime_ns == before
    assert abs(inventory.now - datetime.now(UTC)) < timedelta(minutes=1)
    read_inventory(store, deleting=True)
    assert (tmp_path / "store").stat().st_mtime_ns > before


def test_unfinished_uploads_are_ended(s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fsspec.filesystem("s3").clear_instance_cache()
    store = Store(f"s3://btm/{tmp_path.name}")
    keys = {"ours": f"{tmp_path.name}/artifacts/finetune/x-0123456789abcdef/model.bin", "other": "elsewhere/model.bin"}
    uploads = {}
    for whose, key in keys.items():
        uploads[whose] = fs.call_s3("create_multipart_upload", Bucket="btm", Key=key)["UploadId"]
        part = {"PartNumber": 1, "Body": b"x" * 100, "UploadId": uploads[whose]}
        fs.call_s3("upload_part", Bucket="btm", Key=key, **part)
    [found] = Backend(store.url).uploads()
    assert (found.path, found.size) == ("artifacts/finetune/x-0123456789abcdef/model.bin", 100)
    assert clean(store, 1) == []
    assert clean(store) == [("upload", found.path)]
    assert list(Backend(store.url).uploads()) == []
    left = fs.call_s3("list_multipart_uploads", Bucket="btm", Prefix="elsewhere/")["Uploads"]
    assert [upload["UploadId"] for upload in left] == [uploads["other"]]
    fs.call_s3("abort_multipart_upload", Bucket="btm", Key=keys["other"], UploadId=uploads["other"])


# Journals


def entries(store: Store, run_id: str) -> Entries:
    data = store.read("runs", run_id, "journal.json")
    assert data is not None
    return Entries.model_validate_json(data)


def test_a_journal_tells_before_and_after(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with Journal(store, "r", "digits-lt", 3):
        journals.wanted(["s/a", "s/b"])
        assert entries(store, "r").wanted == ["s/a", "s/b"]
        assert entries(store, "r").state == "running"
        journals.taken(["s/a"])
    after = entries(store, "r")
    assert (after.state, after.artifacts, after.wanted, after.seed) == ("done", ["s/a"], ["s/b"], 3)
    journals.wanted(["s/c"])  # nobody's
    assert entries(store, "r") == after


@pytest.mark.parametrize(("error", "state"), [(ValueError(), "failed"), (KeyboardInterrupt(), "stopped")])
def test_a_journal_tells_how_a_run_ended(tmp_path: Path, error: BaseException, state: str) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(type(error)), Journal(store, "r", "x", 0):
        raise error
    assert entries(store, "r").state == state


def test_a_journal_is_refreshed_while_the_run_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "BEAT_SECONDS", 0.01)
    beats = threading.Semaphore(0)

    class Counted(Store):
        def write(self, data: bytes, *parts: str) -> str:
            beats.release()
            return super().write(data, *parts)

    with Journal(Counted(str(tmp_path)), "r", "x", 0):
        assert all(beats.acquire(timeout=30) for _ in range(4))


def test_runs_of_before_journals_are_understood(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    for name in ("final", "lone"):
        make(store, tmp_path, name)
    summary = {"name": "x", "seed": 1, "artifacts": {"post_train": store.locate("artifacts", address("final"))}}
    store.write(json.dumps(summary).encode(), "runs", "r", "run.json")
    report = {"name": "x", "lineage": [{"address": address("never"), "state": "lost"}]}
    store.write(json.dumps(report).encode(), "runs", "r", "report.json")
    run = read_inventory(store).runs["r"]
    assert (run.state, run.name, run.seed) == ("done", "x", 1)
    assert run.artifacts == {address("final")}
    assert run.wanted == {address("never")}
    assert clean(store) == [("artifact", address("lone"))]


RECORDS = [b"{", b"[]", b"{}", b'{"run_id": 1}', b"\xff", b"5", b"null", b'"\\ud800"', b"[" * 100_000]
SUMMARY_RECORDS = [
    b'{"name": "x", "lineage": 1}',
    b'{"name": "x", "lineage": [{"address": "s/a"}]}',
    b'{"name": "x", "models": 5}',
    b'{"name": "x", "models": [5]}',
    b'{"name": "x", "models": [{"name": "m", "h_mean": "much"}]}',
    b'{"name": "x", "tracking": {}}',
    b'{"name": ["x"]}',
]
JOURNAL_RECORDS = [
    b'{"run_id": "r", "name": "x", "seed": 0, "started": "yesterday"}',
    b'{"run_id": "r", "name": "x", "seed": 0, "started": "2026-01-02", "state": "asleep"}',
    b'{"run_id": "r", "name": "x", "seed": 0, "started": "2026-01-02", "artifacts": {}}',
]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((name, data) for name in ("journal.json", "run.json", "comparison.json", "report.json") for data in RECORDS),
        *((name, data) for name in ("run.json", "comparison.json", "report.json") for data in SUMMARY_RECORDS),
        *(("journal.json", data) for data in JOURNAL_RECORDS),
    ],
)
def test_a_record_that_is_not_understood_is_named_and_stops_gc(tmp_path: Path, name: str, data: bytes) -> None:
    store = Store(str(tmp_path))
    store.write(data, "runs", "r", name)
    inventory = read_inventory(store)
    run = inventory.runs["r"]
    assert run.state == "unreadable" and run.problem is not None
    assert run.problem.startswith(f"{name} cannot be understood: ") and len(run.problem) < 200
    assert listing(inventory, True, True)["runs"][0]["state"] == "unreadable"
    with pytest.raises(StoreError, match=f"run r cannot be shown: {name}"):
        run_document(inventory, "r", store)
    with pytest.raises(StoreError, match=r"what run r needs is not known .*, so nothing may be deleted; mend it, or"):
        garbage(inventory, timedelta(0), NOBODY)


SUMMARY = {
    "name": "x",
    "seed": 0,
    "models": [{"name": "m", "stage": "merge", "artifact": address("a"), "h_mean": 0.5}],
    "tracking": {"uri": "sqlite:///x"},
    "lineage": [{"address": address("b"), "state": "lost", "parents": []}],
}
ENTRIES = {"run_id": "r", "name": "x", "seed": 0, "started": "2026-01-02", "artifacts": ["s/a"], "wanted": ["s/b"]}
LISTED = Manifest(stage="s", address=address("a"), config={}, parents={"p": address("b")}, files={"f": ("0" * 64, 1)})


RECORDED = {"journal.json": ENTRIES, "run.json": SUMMARY, "report.json": SUMMARY}
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(LEAVES, lambda of: st.lists(of, max_size=2) | st.dictionaries(st.text(), of, max_size=2))


@st.composite
def nearly(draw: st.DrawFn, whole: Any) -> Any:
    """Return a document in which one value, somewhere, is any other."""
    if not whole or not isinstance(whole, (dict, list)):
        return draw(st.sampled_from([None, "x", 5, [], {}, [5], {"a": 5}]) | ANYTHING)
    if draw(st.integers(0, 9)) == 0:
        return draw(ANYTHING)
    keys = sorted(whole) if isinstance(whole, dict) else range(len(whole))
    key, document = draw(st.sampled_from(keys)), whole.copy()
    document[key] = draw(nearly(whole[key]))
    return document


@st.composite
def broken(draw: st.DrawFn, whole: dict[str, Any]) -> bytes:
    """Return what may be left of a record: other values, or bytes that are cut off or overwritten."""
    if draw(st.integers(0, 3)):
        return json.dumps(draw(nearly(whole))).encode()
    data, at, other = json.dumps(whole).encode(), draw(st.integers(0, 300)), draw(st.binary(max_size=3))
    return data[:at] + other + (data[at + len(other) :] if draw(st.booleans()) else b"")


RUNS = st.sampled_from(sorted(RECORDED)).flatmap(lambda name: st.tuples(st.just(name), broken(RECORDED[name])))


@settings(max_examples=25, deadline=None, phases=[Phase.generate])  # to shrink would take minutes
@given(st.lists(RUNS, min_size=20, max_size=40), st.lists(broken(LISTED.model_dump(mode="json")), max_size=10))
def test_no_record_breaks_the_commands(records: list[tuple[str, bytes]], manifests: list[bytes]) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    for number, (name, data) in enumerate(records):
        store.write(data, "runs", f"run-{number}", name)
    for number, data in enumerate(manifests):
        store.write(data, "artifacts", address(f"a{number}"), "manifest.json")
    inventory = read_inventory(store, workers=1)
    unreadable = {run_id for run_id, run in inventory.runs.items() if run.state == "unreadable"}
    with redirect_stdout(io.StringIO()) as printed:
        print_listing(listing(inventory, True, True))
        assert printed.getvalue().count("cannot be understood: ") >= len(unreadable)
        for run_id in sorted(inventory.runs.keys() - unreadable):
            print_run(run_document(inventory, run_id, store))
        for where in inventory.artifacts:
            print_artifact(artifact_document(inventory, where))
    if unreadable:
        with pytest.raises(StoreError, match="nothing may be deleted"):
            garbage(inventory, timedelta(0), NOBODY)


def test_what_housekeeping_relies_on_is_what_runs_write(tmp_path: Path) -> None:
    told = understood({"run.json": json.dumps(SUMMARY).encode()})
    assert Summary.model_validate(SUMMARY).models == told.models and told.models[0].h_mean == 0.5
    assert (told.name, told.seed, told.tracking, told.state) == ("x", 0, "sqlite:///x", None)
    assert (told.artifacts, told.wanted) == ({address("a")}, {address("b")})


def test_a_needed_manifest_that_is_not_understood_is_marked_and_made_again(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, "base")
    make(store, tmp_path, "soup", "base")
    make(store, tmp_path, "lone")
    forge_run(store, "done", "soup", "base")
    for broken in (b"{", json.dumps(LISTED.model_dump(mode="json")).encode()):  # half of one, and another's
        store.write(broken, "artifacts", address("soup"), "manifest.json")
        with pytest.raises(StoreError, match=f"mark it as damaged with: btm store verify {address('soup')} --mark"):
            garbage(read_inventory(store), timedelta(0), NOBODY)
        verdict = verify(store, read_inventory(store), [address("soup")], mark=True)
        assert [(finding.address, finding.absent) for finding in verdict.damaged] == [(address("soup"), True)]
        marked = read_inventory(store).artifacts[address("soup")]
        assert marked.manifest is not None and marked.manifest.corrupt is not None
    # The damaged files go, and what nobody needs; the parent stays, which the run names.
    assert clean(store) == [("artifact", address("lone")), ("surplus", address("soup"))]
    assert set(read_inventory(store).artifacts) == {address("base"), address("soup")}
    make(store, tmp_path, "soup", "base")
    assert verify(store, read_inventory(store)).damaged == []
    assert clean(store) == []


def test_the_parent_of_a_marked_manifest_goes_if_nobody_names_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    make(store, tmp_path, "base")
    make(store, tmp_path, "soup", "base")
    forge_run(store, "done", "soup")
    assert clean(store) == []
    store.write(b"{", "artifacts", address("soup"), "manifest.json")
    verify(store, read_inventory(store), [address("soup")], mark=True)
    assert ("artifact", address("base")) in clean(store)

"""The worker's cache, among threads, processes, kills and broken disks."""

import contextlib
import errno
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import takers
from takers import digest

from btm_core.errors import StoreError
from btm_core.storage.cache import FileCache

Download = Callable[[Path], tuple[str, int]]


class Source:
    """Hands out bytes, and counts how often."""

    def __init__(self, data: bytes):
        self.data, self.asked = data, 0

    def __call__(self, partial: Path) -> tuple[str, int]:
        self.asked += 1
        partial.write_bytes(self.data)
        return digest(self.data), len(self.data)


def take(cache: FileCache, data: bytes, target: Path, download: Download | None = None) -> Path:
    return cache.take(digest(data), len(data), download or Source(data), target)


def kept(cache: FileCache) -> dict[str, int]:
    """Return what is in the cache: digests and sizes."""
    return {path.name: path.stat().st_size for path in (cache.folder / "files").glob("*/*")}


def cached(cache: FileCache, data: bytes) -> Path:
    return cache.folder / "files" / digest(data)[:2] / digest(data)


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", 1000)


def test_a_file_is_downloaded_once_and_linked(cache: FileCache, tmp_path: Path) -> None:
    source = Source(b"weights")
    for name in ("a", "b", "a"):
        assert take(cache, b"weights", tmp_path / "out" / name, source).read_bytes() == b"weights"
    assert source.asked == 1
    assert (tmp_path / "out" / "a").samefile(tmp_path / "out" / "b")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert cache.read(digest(b"weights")) == b"weights"
    assert cache.read(digest(b"other")) is None


def test_bytes_are_kept_under_their_own_digest(cache: FileCache, tmp_path: Path) -> None:
    assert cache.keep(b"image") == digest(b"image")
    assert cache.holds(digest(b"image"))
    assert cache.read(digest(b"image")) == b"image"
    source = Source(b"image")
    take(cache, b"image", tmp_path / "image", source)
    assert source.asked == 0


def test_other_bytes_are_refused_and_do_not_enter(cache: FileCache, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="what was fetched is not the file wanted: sha256"):
        take(cache, b"weights", tmp_path / "out", Source(b"weightz"))
    assert not (tmp_path / "out").exists()
    assert kept(cache) == {}
    assert list((cache.folder / "partial").iterdir()) == []


@pytest.mark.parametrize("damage", [b"weightz", b"weight", b""])
def test_what_rots_on_the_disk_is_fetched_again(cache: FileCache, tmp_path: Path, damage: bytes) -> None:
    for use in ("take", "read"):
        take(cache, b"weights", tmp_path / use / "first")
        cached(cache, b"weights").unlink()
        cached(cache, b"weights").write_bytes(damage)
        if use == "read":
            assert cache.read(digest(b"weights")) is None
        source = Source(b"weights")
        assert take(cache, b"weights", tmp_path / use / "again", source).read_bytes() == b"weights"
        assert source.asked == 1
        assert cached(cache, b"weights").read_bytes() == b"weights"


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), StoreError("no"), PermissionError(errno.EACCES, "no")])
def test_errors_of_a_download_are_its_own(cache: FileCache, tmp_path: Path, error: OSError) -> None:
    def fails(partial: Path) -> tuple[str, int]:
        partial.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)) as caught:
        take(cache, b"weights", tmp_path / "out", fails)
    assert caught.value is error
    assert cache.works
    assert list((cache.folder / "partial").iterdir()) == []


def test_those_used_longest_ago_make_room(cache: FileCache, tmp_path: Path) -> None:
    files = [bytes([number]) * 300 for number in range(4)]
    for number, data in enumerate(files[:3]):
        take(cache, data, tmp_path / str(number))
        os.utime(cached(cache, data), (number, number))
    assert cache.read(digest(files[0])) == files[0]  # used now
    take(cache, files[3], tmp_path / "3")
    assert sorted(kept(cache)) == sorted(digest(data) for data in (files[0], files[2], files[3]))
    assert (tmp_path / "1").read_bytes() == files[1]  # evicted, and still here for whoever has it


def test_the_bound_holds_at_every_moment(cache: FileCache, tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(200):
        data = chance.randbytes(chance.choice([0, 1, 50, 400, 900, 1000, 1001, 5000]))
        if chance.random() < 0.5:
            cache.keep(data)
        else:
            assert take(cache, data, tmp_path / "out").read_bytes() == data
        assert sum(kept(cache).values()) <= cache.limit
    assert max(kept(cache).values()) > 0


def test_a_count_that_a_kill_left_too_high_is_set_right(cache: FileCache, tmp_path: Path) -> None:
    cache.keep(b"1" * 100)
    for nonsense in (f"{1000:020d}", "", "x"):
        (cache.folder / "usage").write_text(nonsense)
        cache.keep(nonsense.encode() * 2)
    assert len(kept(cache)) == 4
    assert int((cache.folder / "usage").read_text()) == sum(kept(cache).values())


def test_of_many_threads_one_downloads(cache: FileCache, tmp_path: Path) -> None:
    source, together = Source(b"weights"), Barrier(8)

    def one(number: int) -> bytes:
        together.wait()
        return take(cache, b"weights", tmp_path / str(number), source).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [b"weights"] * 8
    assert source.asked == 1


def test_two_never_download_one_file_at_once(cache: FileCache, tmp_path: Path) -> None:
    """Whoever waits for a lock, and gets it after its file was removed, has the lock of nothing."""
    inside: list[Path] = []

    def fails(partial: Path) -> tuple[str, int]:
        inside.append(partial)
        partial.write_bytes(b"wei")
        assert inside == [partial]
        assert partial.read_bytes() == b"wei"
        inside.remove(partial)
        raise ConnectionResetError

    def one(number: int) -> None:
        for _ in range(30):
            with pytest.raises(ConnectionResetError):
                take(cache, b"weights", tmp_path / str(number), fails)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert cache.works


def test_what_many_keep_at_once_is_counted_to_the_byte(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 10**6)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.keep(str(number).encode()), range(400)))
    assert len(kept(cache)) == 400
    assert int((cache.folder / "usage").read_text()) == sum(kept(cache).values())


SLOW = """
import sys
from pathlib import Path
from btm_core.storage.cache import FileCache
from takers import digest

def download(partial):
    with partial.open("wb", buffering=0) as file:
        file.write(b"wei")
        print("half", flush=True)
        sys.stdin.readline()
        file.write(b"ghts")
    return digest(b"weights"), 7

cache = FileCache(Path(sys.argv[1]), 1000)
print(cache.take(digest(b"weights"), 7, download, Path(sys.argv[2])).read_text(), flush=True)
"""


@pytest.fixture
def slow_taker(cache: FileCache, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process, in the middle of a download, which goes on when it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(cache.folder), str(tmp_path / "theirs")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        assert process.stdout.readline() == "half\n"
        yield process
        process.kill()


def test_of_two_processes_one_downloads(cache: FileCache, slow_taker: "subprocess.Popen[str]", tmp_path: Path) -> None:
    source = Source(b"weights")
    assert slow_taker.stdin is not None and slow_taker.stdout is not None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, cache, b"weights", tmp_path / "ours", source)
        assert cache.keep(b"weights") == digest(b"weights")  # who has the bytes already does not wait
        assert not waiting.done()
        slow_taker.stdin.write("\n")
        slow_taker.stdin.flush()
        assert waiting.result(60).read_bytes() == b"weights"
    assert slow_taker.stdout.readline() == "weights\n"
    assert source.asked == 0


def test_a_killed_process_blocks_nobody_and_is_swept(
    cache: FileCache, slow_taker: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert len(list((cache.folder / "partial").iterdir())) == 2
    cache.keep(b"other")
    assert len(list((cache.folder / "partial").iterdir())) == 2  # it lives
    slow_taker.send_signal(signal.SIGKILL)
    slow_taker.wait()
    FileCache(cache.folder, 1000).keep(b"something")
    assert list((cache.folder / "partial").iterdir()) == []
    source = Source(b"weights")
    assert take(cache, b"weights", tmp_path / "ours", source).read_bytes() == b"weights"
    assert source.asked == 1


@pytest.fixture(params=["below a file", "read-only", "full"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder that no cache can be in."""
    if request.param == "below a file":
        (tmp_path / "file").touch()
        yield tmp_path / "file" / "cache"
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a small disk of its own needs the right to mount one")
    try:
        if request.param == "full":
            (folder / "others").write_bytes(bytes(60_000))
        else:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield folder / "cache"
    finally:
        subprocess.run(["umount", folder], check=True)


def test_work_goes_on_without_a_cache_after_one_warning(
    unusable: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FileCache(unusable, 10**9)
    weights = bytes(50_000)
    with caplog.at_level(logging.WARNING):
        for name in ("a", "b"):
            assert take(cache, weights, tmp_path / name).read_bytes() == weights
        assert cache.keep(b"image") == digest(b"image")
        assert cache.read(digest(b"image")) is None
        assert not cache.holds(digest(b"image"))
    assert [record.message.partition(" (")[0] for record in caplog.records] == [f"the cache {unusable} cannot be used"]
    assert not cache.works
    with pytest.raises(StoreError, match="what was fetched is not the file wanted: sha256"):
        take(cache, weights, tmp_path / "c", Source(b"weightz"))
    assert not [path for path in tmp_path.glob("*.part")]


def test_a_disk_that_is_nearly_full_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FileCache(tmp_path / "cache", 10**6)
    cache.keep(b"1" * 100)
    monkeypatch.setattr("btm_core.storage.cache.KEPT_FREE", 1.0)  # as if others had filled it
    assert take(cache, b"2" * 100, tmp_path / "out").read_bytes() == b"2" * 100
    assert kept(cache) == {}
    assert cache.works


def test_no_limit_no_cache(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 0)
    for name in ("a", "b"):
        assert take(cache, b"weights", tmp_path / name).read_bytes() == b"weights"
    assert cache.keep(b"image") == digest(b"image")
    assert not (tmp_path / "cache").exists()


def test_settings_give_one_cache_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from btm_core.storage import storage_settings

    monkeypatch.delenv("BTM_STORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert FileCache.of(storage_settings()).folder == tmp_path / "btm"
    monkeypatch.setenv("BTM_STORE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("BTM_STORE_CACHE_GB", "0.5")
    cache = FileCache.of(storage_settings())
    assert (cache.folder, cache.limit) == (tmp_path / "own", 500_000_000)
    assert FileCache.of(storage_settings()) is cache


@pytest.mark.parametrize("seed", range(2))
def test_nobody_reads_wrong_bytes_whoever_is_killed_and_the_bound_holds(tmp_path: Path, seed: int) -> None:
    """Processes take, read and keep at random; some are killed (kill -9) at some moment, and files rot meanwhile."""
    chance, folder, limit = random.Random(seed), tmp_path / "cache", 150_000
    assert sum(map(len, takers.FILES)) > 2 * limit  # there are evictions
    numbers = iter(range(1000))
    with contextlib.ExitStack() as ends:

        def start(rounds: int = 10**6) -> "subprocess.Popen[str]":
            arguments = [str(folder), str(limit), str(seed * 1000 + next(numbers)), str(rounds)]
            process = subprocess.Popen(
                [sys.executable, takers.__file__, *arguments],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)},
                stdout=subprocess.PIPE,
                text=True,
            )
            ends.enter_context(process)
            ends.callback(process.kill)
            return process

        def rot() -> None:
            """Damage a file while all others stand still, so that none evicts what is about to be damaged."""
            for process in running:
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            if files := sorted((folder / "files").glob("*/*")):
                victim = chance.choice(files)
                (tmp_path / "rotten").write_bytes(chance.randbytes(victim.stat().st_size))
                (tmp_path / "rotten").replace(victim)  # another inode: what somebody has already stays as it is
            for process in running:
                process.send_signal(signal.SIGCONT)

        running = [start() for _ in range(3)]
        for _ in range(12):
            process = running.pop(0)
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 60)):
                assert process.stdout.readline() == "ok\n"
            process.kill()
            assert set(process.communicate()[0].split("\n")[:-1]) <= {"ok"}
            rot()
            running.append(start())
        for process in running:
            process.kill()
            assert set(process.communicate()[0].split("\n")[:-1]) <= {"ok"}
        calm = start(rounds=40)
        assert set(calm.communicate()[0].split()) == {"ok", "done"}
    cache = FileCache(folder, limit)
    cache.keep(b"the last one")
    assert list((folder / "partial").iterdir()) == []
    assert sum(kept(cache).values()) <= limit
    assert int((folder / "usage").read_text()) >= sum(kept(cache).values())
    for data in takers.FILES:
        assert cache.read(digest(data)) in (None, data)


def test_what_many_threads_keep_first_is_all_kept(tmp_path: Path) -> None:
    """The first of them clears up what killed processes left, and must not take the others' files for it."""
    for round_ in range(40):
        cache, together = FileCache(tmp_path / str(round_), 10**6), Barrier(16)

        def keep(number: int, cache: FileCache = cache, together: Barrier = together) -> str:
            together.wait()
            return cache.keep(b"%d" % number)

        with ThreadPoolExecutor(16) as pool:
            kept = list(pool.map(keep, range(16)))
        assert all(cache.holds(one) for one in kept)

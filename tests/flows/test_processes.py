"""Processes that outlive us: whom we stop, whom we never touch, what we say of one that dies."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.stack.ports import free_ports, is_free
from flows.stack.processes import Record, StackError, _runs, alive, launch, remember, stop, wait_until_ready


def test_a_pid_that_was_given_to_another_process_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        created = psutil.Process(stranger.pid).create_time()
        try:
            for record in (
                Record(pid=stranger.pid, created=created - 100, mark="t/s3"),
                Record(pid=stranger.pid, created=created, mark="t/s3"),
            ):
                assert not alive(record)
                stop([record], grace=1)
                assert stranger.poll() is None
        finally:
            stranger.kill()


def test_descendants_are_stopped_even_after_their_ancestor_was_killed(tmp_path: Path) -> None:
    script = "setsid sleep 61 & echo $! > child; exec sleep 62"
    with launch(["sh", "-c", script], {"PATH": "/usr/bin:/bin"}, tmp_path, tmp_path / "log", "t/one") as leader:
        record = remember(leader, "t/one")

        def ready() -> None:
            assert int((tmp_path / "child").read_text())

        wait_until_ready("one", leader, ready, tmp_path / "log", 10)
        child = psutil.Process(int((tmp_path / "child").read_text()))
        assert alive(record)
        leader.kill()
        leader.wait()
        assert not alive(record) and child.is_running()
        stop([record], grace=1)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


LISTENER = """
import socket, sys, threading, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
for _ in range(16):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
content = b"x" * 200_000_000
open("ready", "w").close()
time.sleep(60)
"""


def test_the_ports_of_what_was_stopped_are_free_at_once(tmp_path: Path) -> None:
    """Its first thread is a zombie before the others have let go: two of three times it was seen so."""
    for number in range(8):
        [port] = free_ports(1)
        folder = tmp_path / str(number)
        command = [sys.executable, "-c", LISTENER, str(port)]
        with launch(command, dict(os.environ), folder, tmp_path / "log", "t/listener") as process:
            wait_until_ready("listener", process, (folder / "ready").read_text, tmp_path / "log", 30)
            assert not is_free(port)
            watched = psutil.Process(process.pid)
            process.kill()
            while _runs(watched):
                pass
            assert is_free(port)
            stop([remember(process, "t/listener")], grace=1)


def test_a_service_that_dies_is_told_with_its_log(tmp_path: Path) -> None:
    def never() -> None:
        raise ConnectionError("refused")

    log = tmp_path / "log"
    expected = pytest.raises(StackError, match=r"two ended with exit code 7 before it was ready(.|\n)*\n  broken")
    with launch(["sh", "-c", "echo broken; exit 7"], {}, tmp_path, log, "t/two") as process, expected:
        wait_until_ready("two", process, never, log, 10)
    with launch(["sleep", "63"], {"PATH": "/usr/bin:/bin"}, tmp_path, tmp_path / "log", "t/three") as process:
        with pytest.raises(StackError, match="three was not ready after 0 s: refused"):
            wait_until_ready("three", process, never, tmp_path / "log", 0.3)
        stop([remember(process, "t/three")], grace=5)

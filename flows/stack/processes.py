"""Processes that outlive the command that started them: started, recognised and stopped.

A pid proves nothing by itself: the system gives it to somebody else's process later. A process is the recorded one only
if it was created at the recorded time and carries our mark in its environment. Its descendants inherit the mark, so
they are found even after it was killed and whatever session they moved to.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel

from btm_core.errors import BTMError

__all__ = ["Record", "StackError", "alive", "last_lines", "launch", "remember", "stop", "wait_until_ready"]

MARK = "BTM_STACK_SERVICE"


class StackError(BTMError, OSError):
    """A service of the local stack cannot be used."""


class Record(BaseModel, frozen=True):
    """What has to be remembered of a process to know it again."""

    pid: int
    created: float
    mark: str


def launch(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, mark: str
) -> "subprocess.Popen[bytes]":
    """Start a process that lives on without us, in a session of its own, its output appended to `log`.

    Nobody else may read what it writes: the umask is 077.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C meant for us does not reach it
            umask=0o077,
        )


def remember(process: "subprocess.Popen[bytes]", mark: str) -> Record:
    """Return the record of a process that was just launched; of one that has died already, one that nothing matches."""
    with contextlib.suppress(psutil.Error):
        return Record(pid=process.pid, created=psutil.Process(process.pid).create_time(), mark=mark)
    return Record(pid=process.pid, created=0, mark=mark)


def alive(record: Record) -> bool:
    """Return whether the recorded process runs: this very one, not another that got its pid."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(record.pid)
        return _same(process, record) and _runs(process) and process.environ().get(MARK) == record.mark
    return False


def wait_until_ready(
    name: str,
    process: "subprocess.Popen[bytes] | psutil.Process",
    ready: Callable[[], None],
    log: Path,
    seconds: float,
) -> None:
    """Return once `ready` raises nothing; raise StackError if the process ends first, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ready()
            return
        except Exception as error:
            reason = error
        with contextlib.suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
            status = process.wait(timeout=0.2)
            raise StackError(f"{name} ended with exit code {status} before it was ready. {last_lines(log)}")
        if time.monotonic() > deadline:
            raise StackError(f"{name} was not ready after {seconds:.0f} s: {reason}. {last_lines(log)}")


def last_lines(log: Path, count: int = 8) -> str:
    """Return the end of a log file with the file's name, for an error message."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines()[-count:]
        return f"The end of {log}:\n" + "\n".join(f"  {line}" for line in lines)
    return f"Its log is {log}"


def stop(records: Collection[Record], grace: float) -> None:
    """End the processes and all their descendants: asked first, killed after `grace` seconds.

    Descendants whose ancestor died are killed at once: nobody is left to end them in order.
    """
    leaders = []
    for record in records:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(record.pid)
            if alive(record):
                process.terminate()
                leaders.append(process)
            elif _same(process, record) and process.status() == psutil.STATUS_ZOMBIE:  # it has no environment any more
                leaders.append(process)
    _wait(leaders, grace)
    marks = {record.mark for record in records}
    for _ in range(10):  # a process may have started another while we looked
        left = _family(marks)
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _wait(left, 5)
    raise StackError(f"these processes cannot be stopped: {', '.join(str(process.pid) for process in left)}")


def _same(process: psutil.Process, record: Record) -> bool:
    # Linux derives the time from that of its own start, which is adjusted.
    return bool(abs(process.create_time() - record.created) < 1)


def _family(marks: set[str]) -> list[psutil.Process]:
    """Return the running processes that carry one of the marks."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if _runs(process) and process.environ().get(MARK) in marks:
                found.append(process)
    return found


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until none of them runs. A zombie is gone: whether it is ever reaped is not in our hands."""
    deadline = time.monotonic() + seconds
    left = [process for process in processes if _runs(process)]
    while left and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.1)
        left = [process for process in left if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    """Return whether a process has anything left to do. A zombie has, while threads of it still hold its ports."""
    try:
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.Error:
        return False

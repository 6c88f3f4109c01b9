"""The processes that a test's own process has started."""

import contextlib

import psutil


def descendants(*words: str) -> list[psutil.Process]:
    """Return the processes below this one whose command line has all of these words, which an ended one has lost."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ZombieProcess is one
            if set(words) <= set(process.cmdline()):
                found.append(process)
    return found


def worker_process() -> psutil.Process:
    """Return the only process of the local engine."""
    [process] = [p for p in descendants("tasks.engines.worker") if p.ppid() == psutil.Process().pid]
    return process

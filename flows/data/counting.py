"""Progress of work that is counted, on standard error: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["counting"]

LINE_SECONDS = 10.0


@contextmanager
def counting(doing: str, things: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Yield what is to be told how many of how many are done."""
    if not sys.stderr.isatty():
        yield _lines(doing, things)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _lines(doing: str, things: str) -> Callable[[int, int], None]:
    began = told = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= LINE_SECONDS:
            told = now
            rate = done / (now - began)
            print(f"btm: {doing}: {done:,} of {of:,} {things}, {rate:,.0f} a second", file=sys.stderr, flush=True)

    return tell

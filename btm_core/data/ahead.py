"""Work that goes ahead of whoever waits for it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]

PREFETCH = 2
Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(items: Iterable[Item], load: Callable[[Item], Result], threads: int = 1) -> Iterator[Result]:
    """Yield load(item) in order while threads load the next few; one thread loads them in order, too."""
    with ThreadPoolExecutor(threads) as loader:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(loader.submit(load, item))
                if len(pending) > PREFETCH:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:  # nobody wants them any more
                future.cancel()

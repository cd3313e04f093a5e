"""Images read by threads while others are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pri3d.machine import cores

K = TypeVar("K")
T = TypeVar("T")
MOST = 8  #: threads, where nothing is said


def reading(items: Iterable[K], load: Callable[[K], T], workers: int | None = None) -> Iterator[tuple[K, Future[T]]]:
    """Items in their order, each with what ``load`` gives of it: at most twice as many as threads wait.

    The result of a future raises what ``load`` raised. ``workers``: threads; one a core and at most 8 where it is None.
    """
    workers = workers or min(MOST, cores())
    waiting: deque[tuple[K, Future[T]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, left in waiting:
                left.cancel()


def read_ahead(items: Iterable[K], load: Callable[[K], T], workers: int | None = None) -> Iterator[T]:
    """As :func:`reading`, what ``load`` gives alone; raises what it raises."""
    return (future.result() for _, future in reading(items, load, workers))

"""Images read by background threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pri3d.machine import cores

K = TypeVar("K")
T = TypeVar("T")
PIXELS_AHEAD = 40_000_000  #: of images that wait to be computed: 120 MB, and what decoding them takes beside that
MOST = 8  #: threads, where nothing is said


def reading(
    items: Iterable[K], load: Callable[[K], T], workers: int | None = None, pixels: Callable[[K], int] | None = None
) -> Iterator[tuple[K, Future[T]]]:
    """Items in their order, each with what ``load`` gives of it: at most twice as many as threads wait.

    The result of a future raises what ``load`` raised. ``workers``: threads; one a core and at most 8 where it is None.
    ``pixels`` says how large the image of an item is: those that wait have ``PIXELS_AHEAD`` at most, or it is one.
    """
    workers = workers or min(MOST, cores())
    waiting: deque[tuple[K, Future[T], int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                size = pixels(item) if pixels else 0
                while waiting and (
                    len(waiting) >= 2 * workers or sum(each[2] for each in waiting) + size > PIXELS_AHEAD
                ):
                    yield waiting.popleft()[:2]
                waiting.append((item, pool.submit(load, item), size))
            while waiting:
                yield waiting.popleft()[:2]
        finally:
            for _, left, _ in waiting:
                left.cancel()


def read_ahead(items: Iterable[K], load: Callable[[K], T], workers: int | None = None) -> Iterator[T]:
    """As :func:`reading`, what ``load`` gives alone; raises what it raises."""
    return (future.result() for _, future in reading(items, load, workers))

"""Work items in child processes: how they run, fail and end.

A process of a pool begins anew (spawn), so that neither threads nor the GPU of its parent come along, and ends with
its parent, however that ends: a killed command leaves no process behind that goes on writing. CTRL-C and an error
end what is running too; a training run that is asked to end writes its checkpoint first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from pri3d.errors import Pri3DError

T = TypeVar("T")
R = TypeVar("R")


class KilledError(Pri3DError):
    """A process was killed, probably because memory ran out."""


class Outcome(NamedTuple, Generic[T, R]):
    """An item that is done."""

    item: T
    future: Future[R]  #: done

    @property
    def error(self) -> BaseException | None:
        """Why the item failed, None where it did not; KilledError where its process was killed."""
        if self.future.cancelled():
            return CancelledError()
        error = self.future.exception()
        if isinstance(error, BrokenProcessPool):
            killed = KilledError(
                "a process was killed, probably because memory ran out, or ended by an error that is printed above."
            )
            killed.__cause__ = error
            return killed
        return error

    def result(self) -> R:
        """Return what the task returned for the item. Raises :attr:`error` where it failed."""
        if (error := self.error) is not None:
            raise error
        return self.future.result()


@contextmanager
def process_pool(processes: int, threads: int = 0) -> Iterator[ProcessPoolExecutor]:
    """Context with a pool of processes that end with it, and with this process.

    ``threads`` of PyTorch in each, 0 leaves them as they are. Where the context is left by an error, what waits is
    dropped and what runs is asked to end (SIGTERM).
    """
    others = set(active_children())
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (threads,)) as pool:
        try:
            yield pool
        except BaseException:
            for child in set(active_children()) - others:
                child.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def run_on(
    pool: Executor, task: Callable[[T], R], items: Iterable[T], most: int
) -> Generator[Outcome[T, R], None, None]:
    """Hand ``task`` of every item to the pool, ``most`` at a time, and yield the items as they are done."""
    waiting = iter(items)
    running: dict[Future[R], T] = {}
    done: SimpleQueue[Future[R]] = SimpleQueue()
    while True:
        for item in islice(waiting, most - len(running)):
            future = pool.submit(task, item)
            running[future] = item
            future.add_done_callback(done.put)
        if not running:
            return
        future = done.get()
        yield Outcome(running.pop(future), future)


def run_in_processes(
    task: Callable[[T], R], items: Iterable[T], processes: int
) -> Generator[Outcome[T, R], None, None]:
    """Run ``task`` of every item in so many processes, and yield the items as they are done.

    Where a process is killed, all items that it and the others were at fail with KilledError, and so do the rest.
    """
    with process_pool(processes) as pool:
        yield from run_on(pool, task, items, most=2 * processes)


def run_apart(
    task: Callable[[T], R], ready: Callable[[int], Sequence[T]], processes: int, threads: int
) -> Generator[Outcome[T, R], None, None]:
    """Run every item in a process of its own, so many at a time: a killed one takes no other along.

    ``ready`` is asked for so many items that can begin now, whenever there is room, and gives each item once; where it
    gives none and none is running, that is the end. ``threads`` are those of PyTorch in each process.
    """
    done: SimpleQueue[Future[R]] = SimpleQueue()
    running: dict[Future[R], tuple[T, ExitStack]] = {}
    with ExitStack() as everything:
        while True:
            for item in ready(processes - len(running)):
                own = everything.enter_context(ExitStack())
                future = own.enter_context(process_pool(1, threads)).submit(task, item)
                running[future] = item, own
                future.add_done_callback(done.put)
            if not running:
                return
            future = done.get()
            item, own = running.pop(future)
            own.close()
            yield Outcome(item, future)


def _begin(threads: int) -> None:
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="end with the parent", daemon=True).start()
    if threads:
        import torch  # noqa: PLC0415 (most pools need none)

        torch.set_num_threads(threads)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)

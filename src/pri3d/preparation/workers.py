"""Scenes are tasks of their own: done here one after the other, or by processes, of this machine or of a cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Any

from pri3d.errors import DataError, Pri3DError
from pri3d.files.atomic import is_full
from pri3d.preparation.scene import Job, Report, prepare_scene

Outcome = tuple[Job, str | None]  #: a scene that is done, and why it failed, None where it is in the store
_log = logging.getLogger(__name__)


def run_here(jobs: Sequence[Job], report: Callable[[Job], Report]) -> Iterator[Outcome]:
    """Prepare the scenes in this process; ``report`` of a job is told what is done of it."""
    for job in jobs:
        try:
            prepare_scene(job, report(job))
            yield job, None
        except Exception as error:
            yield job, reason(error)


def run_in_processes(jobs: Sequence[Job], processes: int) -> Iterator[Outcome]:
    """Prepare the scenes in so many processes, and yield them as they are done.

    Raises DataError where a process died; what it was at is left out, finished scenes stay.
    """
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield from run_on(pool, prepare_scene, jobs, most=2 * processes)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_on(pool: Executor, task: Callable[[Job], Any], jobs: Sequence[Job], most: int) -> Iterator[Outcome]:
    """Hand ``task`` of every job to the pool, ``most`` at a time, and yield the jobs as they are done."""
    waiting = iter(jobs)
    running: dict[Future[Any], Job] = {}
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    while True:
        for job in islice(waiting, most - len(running)):
            future = pool.submit(task, job)
            running[future] = job
            future.add_done_callback(done.put)
        if not running:
            return
        future = done.get()
        job = running.pop(future)
        error = CancelledError() if future.cancelled() else future.exception()
        yield job, None if error is None else reason(error)


def reason(error: BaseException) -> str:
    """Why a scene failed, or raise what must stop the whole run: a full disk, a killed worker, an interruption."""
    if is_full(error):
        raise error
    if isinstance(error, BrokenProcessPool):
        raise DataError(
            "a worker process died, often for want of memory. Try fewer --workers; finished scenes stay."
        ) from error
    if isinstance(error, CancelledError) or not isinstance(error, Exception):
        raise error
    if not isinstance(error, Pri3DError | OSError):
        _log.error("unexpected error", exc_info=error)  # a reader's bug must not cost the other scenes
        return f"{type(error).__name__}: {error}"
    return str(error)

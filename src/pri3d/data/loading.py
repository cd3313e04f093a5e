"""Batches of a dataset, loaded by worker processes that survive the signals which stop a run."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pri3d.data.sampler import Draw
from pri3d.errors import first_line
from pri3d.processes import KilledError


def make_loader(
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    draws: Iterable[Draw],
    batch: int,
    workers: int = 0,
    stay: bool = False,
) -> DataLoader[Any]:
    """Load what is drawn, ``batch`` items at a time, the last batch perhaps smaller.

    ``workers`` processes read ahead, each with file handles of its own; with ``stay`` they live as long as the loader.
    """
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=draws,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=stay and workers > 0,
        worker_init_fn=outlive_stopping,
        # Elsewhere each would import everything again, which takes as long as many steps.
        multiprocessing_context="fork" if workers > 0 and sys.platform == "linux" else None,
    )


def outlive_stopping(_worker: int) -> None:
    """Let a loader process survive the signals its whole group gets: the step being finished wants its data.

    Half a minute after SIGTERM it goes all the same, should nobody have ended it by then. Where the process that wants
    the data ends meanwhile, however that ends, nothing is said of the connection to it.
    """
    say = sys.excepthook
    # Python's thread that hands memory over tells this hook.
    sys.excepthook = lambda kind, error, trace: None if issubclass(kind, ConnectionError) else say(kind, error, trace)
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


@contextmanager
def name_killed_loaders(fix: str) -> Iterator[None]:
    """Context in which a loader process that is killed is said, wherever PyTorch notices it.

    Raises KilledError, which ends with ``fix``.
    """
    try:
        yield
    except RuntimeError as error:
        if re.match(r"DataLoader worker \(pid", str(error)) is None:
            raise
        raise KilledError(
            f"a process that loads data was killed, probably because memory ran out ({first_line(error)}). {fix}"
        ) from error

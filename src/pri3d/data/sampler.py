"""The order of samples as one endless stream, so that "where was I" is a single number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from pri3d.errors import ConfigError


class Draw(NamedTuple):
    """What a dataset is asked for; with the run's seed it fixes every random choice inside the sample."""

    epoch: int  #: pass over the data
    item: int  #: row of the data set


class StreamSampler(Sampler[Draw]):
    """Shuffled passes over ``size`` items, one after the other, from position ``start`` for ``total`` items in all.

    Pass e is a permutation that depends on (seed, e) alone. A resumed run gives the number of samples consumed so far
    as ``start``; the world (``rank`` of ``world`` processes, taking every world-th position) may differ from before.
    ``len`` is that of the whole stream of this rank, as Lightning counts from the start of the run.
    """

    def __init__(self, size: int, total: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        if size < 1:
            raise ConfigError("there is nothing to draw from: the data set is empty.")
        self.size, self.total, self.seed, self.start, self.rank, self.world = size, total, seed, start, rank, world

    def __len__(self) -> int:
        return self.total // self.world

    def __iter__(self) -> Iterator[Draw]:
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for position in range(self.start + self.rank, self.total, self.world):
            if position // self.size != epoch:
                epoch = position // self.size
                generator = torch.Generator().manual_seed(derive(self.seed, epoch))
                order = torch.randperm(self.size, generator=generator)
            yield Draw(epoch, int(order[position % self.size]))


def derive(*parts: int) -> int:
    """One 62-bit seed from several numbers, e.g. (run seed, epoch, index); neighbouring numbers give unlike seeds."""
    state = 0x243F6A8885A308D3
    for part in parts:
        state = ((state ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 29
        state = (state * 0xD6E8FEB86659FD93) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 32
    return state >> 2

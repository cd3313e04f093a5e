"""The order of samples as one endless stream, so that the position in it is a single number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import gcd
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
    as ``start``. ``len`` is that of the whole stream, as Lightning counts from the start of the run.
    """

    def __init__(self, size: int, total: int, seed: int, start: int = 0) -> None:
        if size < 1:
            raise ConfigError("the dataset is empty.")
        self.size, self.total, self.seed, self.start = size, total, seed, start
        self._passes = _Passes(size, seed)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Draw]:
        return map(self.draw, range(self.start, self.total))

    def draw(self, position: int) -> Draw:
        """What stands at a position of the stream, whoever asks."""
        return self._passes.draw(position)


class MixedSampler(StreamSampler):
    """A stream that mixes several sources, whose items stand one source after the other in the data set.

    The stream is cut into blocks of ``block`` positions; a block draws from one source. A round of blocks gives each
    source as many as its weight says: smaller sources are gone through more often, each in shuffled passes of its own
    (``Draw.epoch`` counts them). With ``block`` = the global batch, whole batches alternate in a fixed order ("mixed
    batches" of the paper's MoCo baseline); with ``block`` = 1, every batch holds the sources in proportion.

    Args:
        sizes: items of each source.
        weights: blocks of each source in a round, whole numbers of 1 or more.
        total, seed, start: as in :class:`StreamSampler`.
        block: consecutive positions that belong to one source.

    Raises ConfigError for an empty source, or weights or a block that cannot be.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[int],
        total: int,
        seed: int,
        start: int = 0,
        block: int = 1,
    ) -> None:
        super().__init__(sum(sizes), total, seed, start)
        _check_mixture(sizes, weights, block)
        self.sizes, self.weights, self.block = tuple(sizes), tuple(weights), block
        self._first = [0, *accumulate(sizes)]
        self._sources = [_Passes(size, derive(seed, source)) for source, size in enumerate(sizes)]
        # The blocks of each source lie evenly in the round: its n-th of w at (n + 1/2) / w.
        spread = [((2 * n + 1) / weight, source) for source, weight in enumerate(weights) for n in range(weight)]
        self._round = [source for _, source in sorted(spread)]

    def draw(self, position: int) -> Draw:
        """What stands at a position of the stream, whoever asks."""
        slot, inside = divmod(position, self.block)
        number, place = divmod(slot, len(self._round))
        order = self._order(number)
        source = order[place]
        before = number * self.weights[source] + order[:place].count(source)
        epoch, item = self._sources[source].draw(before * self.block + inside)
        return Draw(epoch, self._first[source] + item)

    def _order(self, number: int) -> list[int]:
        """Sources of a round's blocks. Single positions are shuffled: else a process of two might see one source."""
        if self.block > 1:
            return self._round
        generator = torch.Generator().manual_seed(derive(self.seed, len(self.sizes), number))
        return [self._round[k] for k in torch.randperm(len(self._round), generator=generator).tolist()]


class BalancedSampler(StreamSampler):
    """A stream in which every batch holds the sources in proportion to their weights, whatever their sizes.

    Of ``batch`` positions in a row source s has its share ``batch * weight / sum``, rounded up or down; after as many
    batches as the weights sum up to, the shares have come out exactly. Inside a batch the order is shuffled, so that
    every process and every pass sees all sources. Each source is gone through in shuffled passes of its own.

    Args:
        sizes: items of each source.
        weights: of each source, whole numbers of 1 or more.
        total, seed, start: as in :class:`StreamSampler`.
        batch: consecutive positions that are balanced.

    Raises ConfigError for an empty source, or weights or a batch that cannot be.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[int], total: int, seed: int, start: int, batch: int
    ) -> None:
        super().__init__(sum(sizes), total, seed, start)
        _check_mixture(sizes, weights, batch)
        self.batch = batch
        self._first = [0, *accumulate(sizes)]
        self._sources = [_Passes(size, derive(seed, source)) for source, size in enumerate(sizes)]
        self._counts = _shares(weights, batch)
        self._before = torch.cat((torch.zeros(1, len(sizes), dtype=torch.int64), self._counts.cumsum(0)))
        self._number, self._order = -1, torch.empty(0, dtype=torch.int64)

    def draw(self, position: int) -> Draw:
        """What stands at a position of the stream, whoever asks."""
        number, place = divmod(position, self.batch)
        if number != self._number:  # the sources of the last used batch's positions are kept
            generator = torch.Generator().manual_seed(derive(self.seed, len(self._sources), number))
            counts = self._counts[number % len(self._counts)]
            sources = torch.repeat_interleave(torch.arange(len(counts)), counts)
            self._number, self._order = number, sources[torch.randperm(self.batch, generator=generator)]
        order = self._order
        source = int(order[place])
        cycle, inside = divmod(number, len(self._counts))
        before = cycle * self._before[-1, source] + self._before[inside, source] + (order[:place] == source).sum()
        epoch, item = self._sources[source].draw(int(before))
        return Draw(epoch, self._first[source] + item)


def _shares(weights: Sequence[int], batch: int) -> torch.Tensor:
    """Positions of each source in each batch of a cycle (sum of the weights, sources), int64.

    The sources lie side by side on a line of length ``batch``; a comb of teeth one apart is laid over it and counts.
    Every batch of a cycle has a comb of its own, moved by another of the cycle's equal parts of a tooth.
    """
    cycle = sum(weights)
    # By steps of the golden section, so that batches in a row differ little and what one lacks the next has.
    stride = next(k for k in range(max(1, round(0.618 * cycle)), 2 * cycle + 1) if gcd(k, cycle) == 1)
    moved = 2 * (torch.arange(cycle) * stride % cycle) + 1  # in halves of a part: no tooth falls on a border
    ends = 2 * batch * torch.tensor([0, *accumulate(weights)])
    teeth = (ends - moved[:, None] + 2 * cycle - 1) // (2 * cycle)
    return teeth.diff(dim=1)


def _check_mixture(sizes: Sequence[int], weights: Sequence[int], block: int) -> None:
    if min(sizes) < 1 or len(weights) != len(sizes) or min(weights) < 1 or block < 1:
        raise ConfigError(
            f"a mixture of sources with {list(sizes)} items, weights {list(weights)} and blocks of {block}: every "
            "source needs items and a whole weight of 1 or more, and a block a position. Leave empty sources out."
        )


class Share(Sampler[Draw]):
    """The forward passes of a stream that are this process's.

    Pass p of the stream, ``micro`` samples in a row, belongs to process p mod ``world``: a step consists of the same
    passes whether one process makes them all or several share them, before and after a resume.
    """

    def __init__(self, stream: StreamSampler, micro: int, rank: int = 0, world: int = 1) -> None:
        self.stream, self.micro, self.rank, self.world = stream, micro, rank, world

    def __len__(self) -> int:
        return self.stream.total // self.world

    def __iter__(self) -> Iterator[Draw]:
        positions = range(self.stream.start, self.stream.total)
        return (self.stream.draw(p) for p in positions if p // self.micro % self.world == self.rank)


class _Passes:
    """Shuffled passes over ``size`` items; the permutation of the last used one is kept."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(self.size, generator=generator)
        return Draw(epoch, int(self._order[place]))


def derive(*parts: int) -> int:
    """One 62-bit seed from several numbers, e.g. (run seed, epoch, index); neighbouring numbers give unlike seeds."""
    state = 0x243F6A8885A308D3
    for part in parts:
        state = ((state ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 29
        state = (state * 0xD6E8FEB86659FD93) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 32
    return state >> 2

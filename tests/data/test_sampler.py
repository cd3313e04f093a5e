"""The stream of draws: passes, resume, several processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pri3d.data.sampler import StreamSampler, derive
from pri3d.errors import ConfigError


@given(st.integers(1, 30), st.integers(1, 100), st.integers(0, 5))
def test_every_pass_is_a_permutation(size: int, total: int, seed: int) -> None:
    draws = list(StreamSampler(size, total, seed))
    assert len(draws) == total
    for start in range(0, total, size):
        part = draws[start : start + size]
        assert {draw.epoch for draw in part} == {start // size}
        assert len({draw.item for draw in part}) == len(part)


@given(st.integers(1, 30), st.integers(1, 100), st.integers(0, 100))
def test_resumed_stream_is_the_rest(size: int, total: int, start: int) -> None:
    assert list(StreamSampler(size, total, 7, start=start)) == list(StreamSampler(size, total, 7))[start:]


@given(st.integers(1, 30), st.integers(1, 60), st.integers(1, 4), st.integers(0, 20))
def test_processes_share_the_stream(size: int, total: int, world: int, start: int) -> None:
    parts = [list(StreamSampler(size, total, 3, start, rank, world)) for rank in range(world)]
    together = [parts[k % world][k // world] for k in range(sum(map(len, parts)))]
    assert together == list(StreamSampler(size, total, 3, start))


def test_passes_and_seeds_differ() -> None:
    draws = [draw.item for draw in StreamSampler(50, 100, 0)]
    assert draws[:50] != draws[50:]
    assert draws != [draw.item for draw in StreamSampler(50, 100, 1)]


def test_nothing_to_draw_from() -> None:
    with pytest.raises(ConfigError, match="empty"):
        StreamSampler(0, 10, 0)


def test_derived_seeds_are_spread() -> None:
    seeds = {derive(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert derive(1, 2) != derive(2, 1)

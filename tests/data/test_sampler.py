"""The stream of draws: passes, resume, several processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pri3d.data.sampler import Draw, MixedSampler, Share, StreamSampler, derive
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


@given(
    size=st.integers(1, 40),
    micro=st.integers(1, 3),
    passes=st.integers(1, 3),
    steps=st.integers(1, 6),
    done=st.integers(0, 6),
    world=st.integers(1, 4),
)
def test_processes_share_the_passes_of_each_step(
    size: int, micro: int, passes: int, steps: int, done: int, world: int
) -> None:
    """Whatever their number, before and after a resume: together the stream, pass by pass."""
    batch = micro * passes * world
    stream = StreamSampler(size, batch * steps, 3, start=min(done, steps) * batch)
    shares = [list(Share(stream, micro, rank, world)) for rank in range(world)]
    assert len(Share(stream, micro, 0, world)) == batch * steps // world
    rebuilt = [draw for k in range(0, len(shares[0]), micro) for share in shares for draw in share[k : k + micro]]
    assert rebuilt == list(stream)


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


def test_derived_seeds_stay_what_they_are() -> None:
    """Every draw of a run comes from them: other ones would make other runs of the same seed."""
    found = [derive(), derive(0), derive(7, 3, 11), derive(-1, 2**63)]
    assert found == [652980860872081972, 1209124726024124358, 3214276983240952566, 4138677113644851365]


SOURCES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=3)


def mixed(sources: list[tuple[int, int]], total: int, block: int, **options: int) -> list[Draw]:
    sizes, weights = zip(*sources, strict=True)
    return list(MixedSampler(sizes, weights, total, 7, block=block, **options))


def source_of(sources: list[tuple[int, int]], item: int) -> int:
    ends = [sum(size for size, _ in sources[: k + 1]) for k in range(len(sources))]
    return next(k for k, end in enumerate(ends) if item < end)


@given(SOURCES, st.integers(1, 5), st.integers(1, 120))
def test_every_source_of_a_mixture_is_gone_through_in_passes(
    sources: list[tuple[int, int]], block: int, total: int
) -> None:
    draws = mixed(sources, total, block)
    assert len(draws) == total
    for source, (size, _) in enumerate(sources):
        mine = [draw for draw in draws if source_of(sources, draw.item) == source]
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            assert {draw.epoch for draw in part} == {start // size}
            assert len({draw.item for draw in part}) == len(part)


@given(SOURCES, st.integers(1, 5), st.integers(1, 4))
def test_every_round_of_a_mixture_holds_its_shares(sources: list[tuple[int, int]], block: int, rounds: int) -> None:
    length = sum(weight for _, weight in sources) * block
    draws = [source_of(sources, draw.item) for draw in mixed(sources, rounds * length, block)]
    for start in range(0, len(draws), length):
        part = draws[start : start + length]
        assert [part.count(source) for source in range(len(sources))] == [weight * block for _, weight in sources]
    for start in range(0, len(draws), block):
        assert len(set(draws[start : start + block])) == 1


@given(SOURCES, st.integers(1, 5), st.integers(1, 60), st.integers(0, 40))
def test_resumed_mixture_is_the_rest(sources: list[tuple[int, int]], block: int, total: int, start: int) -> None:
    assert mixed(sources, total, block, start=start) == mixed(sources, total, block)[start:]


def test_whole_batches_alternate_in_a_fixed_spread() -> None:
    sources = [(100, 3), (5, 1)]
    order = [source_of(sources, draw.item) for draw in mixed(sources, 8 * 4, 4)[::4]]
    assert order == [0, 0, 1, 0, 0, 0, 1, 0]
    even = [(50, 1), (7, 1), (9, 1)]
    assert [source_of(even, draw.item) for draw in mixed(even, 60, 10)[::10]] == [0, 1, 2, 0, 1, 2]


def test_balanced_batches_show_every_source_to_every_process() -> None:
    sources = [(40, 1), (8, 1)]
    stream = MixedSampler((40, 8), (1, 1), 80, 7)
    for rank in range(2):
        mine = [source_of(sources, draw.item) for draw in Share(stream, 1, rank, 2)]
        assert 5 < mine.count(0) < 35


def test_sources_of_one_size_are_shuffled_unlike() -> None:
    draws = mixed([(20, 1), (20, 1)], 40, 20)
    assert [draw.item for draw in draws[:20]] != [draw.item - 20 for draw in draws[20:]]


@pytest.mark.parametrize(
    ("sizes", "weights", "block"), [((5, 0), (1, 1), 1), ((5,), (1, 1), 1), ((5, 5), (1, 0), 1), ((5, 5), (1, 1), 0)]
)
def test_impossible_mixtures_are_refused(sizes: tuple[int, ...], weights: tuple[int, ...], block: int) -> None:
    with pytest.raises(ConfigError, match="mixture of sources"):
        MixedSampler(sizes, weights, 10, 0, block=block)

"""Several stores with weights: how they are written, what is refused, and that every batch holds its shares."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pri3d.data.mixture import Mixture, hashes_of, parse_mixture
from pri3d.data.sampler import BalancedSampler, Draw, Share
from pri3d.errors import ConfigError, DataError
from pri3d.store import Store

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@pytest.fixture
def stores(rooms_store: Path, tmp_path: Path) -> list[Path]:
    """Three copies of a store."""
    return [Path(shutil.copytree(rooms_store, tmp_path / name)) for name in ("a", "b", "c")]


class TestWriting:
    @pytest.mark.parametrize(
        ("words", "weights"),
        [
            ("a b c", [1, 1, 1]),
            ("a:1 b:0.5", [2, 1]),
            ("a:.25 b:0.1 c", [5, 2, 20]),
            ("a:4 b:6", [2, 3]),
            ("a:0.333 b:0.667", [333, 667]),
            ("a:7", [1]),
        ],
    )
    def test_weights_are_whole_numbers_of_the_same_proportions(
        self, stores: list[Path], words: str, weights: list[int]
    ) -> None:
        mixture = Mixture(parse_mixture([stores[0].parent / word for word in words.split()]))
        assert [part.weight for part in mixture.parts] == weights
        assert [part.store.path.name for part in mixture.parts] == [word[0] for word in words.split()]

    def test_one_path_is_a_mixture_of_one(self, rooms_store: Path) -> None:
        mixture = Mixture(parse_mixture(rooms_store))
        assert mixture.hash == Store(rooms_store).hash == Mixture(parse_mixture([rooms_store])).hash
        assert (str(mixture), mixture.name) == (str(rooms_store), rooms_store.name)
        assert Mixture(parse_mixture(Path(f"{rooms_store}:3"))).hash == mixture.hash

    def test_an_existing_path_with_a_colon_wins(self, stores: list[Path]) -> None:
        odd = stores[0].rename(stores[0].parent / "b:2")
        ((path, weight),) = parse_mixture([odd])
        assert (path, weight) == (odd, 1)
        assert [part.weight for part in Mixture(parse_mixture([Path(f"{odd}:3"), stores[2]])).parts] == [3, 1]

    def test_an_entry_can_be_written_for_another_folder(self, tmp_path: Path) -> None:
        (entry,) = parse_mixture(Path("x:0.125"))
        (again,) = parse_mixture(entry.at(tmp_path / "y"))
        assert (again.path, again.weight) == (tmp_path / "y", entry.weight)

    @pytest.mark.parametrize("word", ["a:", "a:0", "a:0.0", "a:-1", "a:nan", "a:1e3", "a:x", ":2", "a:1e9999999999"])
    def test_a_weight_that_is_none_is_refused(self, word: str) -> None:
        with pytest.raises(ConfigError, match=r"is not a weight. Write PATH:WEIGHT with a number above 0"):
            parse_mixture([Path(word), Path("b")])

    def test_the_same_store_twice_is_refused(self, stores: list[Path]) -> None:
        link = stores[0].parent / "link"
        link.symlink_to(stores[0])
        with pytest.raises(ConfigError, match=r"link: the same folder twice. Give it once"):
            Mixture(parse_mixture([stores[0], stores[1], link]))

    def test_nothing_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="no data given"):
            Mixture(parse_mixture([]))

    def test_weights_too_fine_are_refused(self, stores: list[Path]) -> None:
        with pytest.raises(ConfigError, match=r"weights 1, 1e-05: as whole numbers 100000, 1, a round of 100001"):
            Mixture(parse_mixture([stores[0], Path(f"{stores[1]}:0.00001")]))

    def test_all_that_is_wrong_is_told_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere"):
            Mixture(parse_mixture([tmp_path / "nowhere"]))
        with pytest.raises(ConfigError, match=r"2 problems[^$]*no1[^$]*no2"):
            Mixture(parse_mixture([tmp_path / "no1", tmp_path / "no2"]))

    def test_the_hash_tells_mixtures_apart(self, stores: list[Path]) -> None:
        a, b, _ = stores
        hashes = [
            Mixture(parse_mixture(words)).hash for words in ([a], [a, b], [a, Path(f"{b}:2")], [Path(f"{a}:2"), b])
        ]
        assert len(set(hashes)) == 4
        assert all(set(hashes_of(text)) == {Store(a).hash} for text in hashes)

    def test_many_names_are_shortened(self, stores: list[Path]) -> None:
        more = Path(shutil.copytree(stores[0], stores[0].parent / "d"))
        assert Mixture(parse_mixture(stores)).name == "a+b+c"
        assert Mixture(parse_mixture([*stores, more])).name == "a+b+2"


def balanced(sizes: list[int], weights: list[int], total: int, batch: int, start: int = 0) -> list[Draw]:
    return list(BalancedSampler(sizes, weights, total, 7, start, batch))


def sources(sizes: list[int], draws: list[Draw]) -> list[int]:
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    return [next(k for k, end in enumerate(ends) if draw.item < end) for draw in draws]


class TestBalance:
    @pytest.mark.thorough
    @given(SIZES, st.data(), st.integers(1, 12))
    def test_every_batch_is_within_one_and_a_cycle_exact(
        self, sizes: list[int], data: st.DataObject, batch: int
    ) -> None:
        weights = data.draw(st.lists(st.integers(1, 7), min_size=len(sizes), max_size=len(sizes)))
        cycle = sum(weights)
        drawn = sources(sizes, balanced(sizes, weights, cycle * batch, batch))
        for start in range(0, len(drawn), batch):
            part = drawn[start : start + batch]
            assert all(abs(part.count(s) - batch * w / cycle) < 1 for s, w in enumerate(weights))
        assert [drawn.count(s) for s in range(len(sizes))] == [batch * w for w in weights]

    def test_a_small_store_has_its_share_of_a_long_stream(self) -> None:
        drawn = sources([5000, 3], balanced([5000, 3], [2, 1], 3001, 8))
        assert abs(drawn.count(1) - 3001 / 3) < 2

    @pytest.mark.thorough
    @given(SIZES, st.integers(1, 5), st.integers(1, 120))
    def test_every_source_is_gone_through_in_passes(self, sizes: list[int], batch: int, total: int) -> None:
        draws = balanced(sizes, [k + 1 for k in range(len(sizes))], total, batch)
        assert len(draws) == total
        for source, size in enumerate(sizes):
            mine = [draw for draw, of in zip(draws, sources(sizes, draws), strict=True) if of == source]
            for start in range(0, len(mine), size):
                part = mine[start : start + size]
                assert {draw.epoch for draw in part} == {start // size}
                assert len({draw.item for draw in part}) == len(part)

    @given(SIZES, st.integers(1, 6), st.integers(1, 60), st.integers(0, 70))
    def test_resumed_is_the_rest(self, sizes: list[int], batch: int, total: int, start: int) -> None:
        weights = [k % 3 + 1 for k in range(len(sizes))]
        assert balanced(sizes, weights, total, batch, start) == balanced(sizes, weights, total, batch)[start:]

    def test_every_process_sees_every_source(self) -> None:
        stream = BalancedSampler((40, 8), (1, 1), 160, 7, 0, 4)
        for rank in range(2):
            mine = sources([40, 8], list(Share(stream, 2, rank, 2)))
            assert 20 < mine.count(0) < 60

    @pytest.mark.parametrize(
        ("sizes", "weights", "batch"),
        [((5, 0), (1, 1), 1), ((5,), (1, 1), 1), ((5, 5), (1, 0), 1), ((5, 5), (1, 1), 0)],
    )
    def test_what_cannot_be_is_refused(self, sizes: tuple[int, ...], weights: tuple[int, ...], batch: int) -> None:
        with pytest.raises(ConfigError, match="mixture of sources"):
            BalancedSampler(sizes, weights, 10, 0, 0, batch)

"""Opening a set, dealing out a split, shares, and objects against loops."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pri3d import labelled as datasets
from pri3d.errors import ConfigError, DataError
from pri3d.labelled import LabelledImages, Split, deal, find_objects, open_labelled
from pri3d.labelled.spaces import parse_space

names = st.text("abc", min_size=1, max_size=2)


@given(st.lists(names, min_size=2, max_size=60).filter(lambda groups: len(set(groups)) > 1))
def test_dealt_sides_are_whole_and_apart(groups: list[str]) -> None:
    train, val = deal(groups, "train"), deal(groups, "val")
    assert sorted(train + val) == list(range(len(groups))) == deal(groups, "all")
    assert not {groups[k] for k in train} & {groups[k] for k in val}
    count = len(set(groups))
    assert len({groups[k] for k in val}) == max(1, round(count / 5))


@given(st.permutations([f"room{k}" for k in range(12)]))
def test_dealing_does_not_depend_on_the_order(groups: list[str]) -> None:
    held = {groups[k] for k in deal(groups, "val")}
    assert held == {f"room{k}" for k in deal([f"room{j:d}" for j in range(12)], "val")}


def test_draw_is_the_same_for_everyone() -> None:
    """A changed draw would make figures of two versions incomparable."""
    assert deal([f"{k:02d}" for k in range(20)], "val") == [2, 4, 6, 19]


def test_what_cannot_be_split_is_refused() -> None:
    assert deal(["a", "a"], "all") == [0, 1]
    with pytest.raises(DataError, match=r"1 group\(s\) of images cannot be split"):
        deal(["a", "a"], "train")
    with pytest.raises(DataError, match=r"0 group\(s\)"):
        deal([], "val")
    with pytest.raises(DataError, match="state no test split; val is a held-out fifth of them"):
        deal(["a", "b"], "test")


class Fake(LabelledImages):
    """A set of nothing but names."""

    looks_for = "nothing"

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        self.path, self.split, self.labels = path, split, labels
        self.names, self.class_names, self.things = [f"{k}" for k in range(200)], ("a", "b"), (1,)

    @classmethod
    def detect(cls, path: Path) -> bool:
        return (path / "fake").exists()

    def color(self, k: int) -> NDArray[np.uint8]:
        return np.zeros((2, 2, 3), np.uint8)


class Stated(Fake):
    """One that states its split."""

    @classmethod
    def states_split(cls, path: Path) -> bool:
        return True


class Empty(Fake):
    """One of no image."""

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        super().__init__(path, split, labels)
        self.names = []


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"one": f"{__name__}:Fake", "two": f"{__name__}:Stated", "none": f"{__name__}:Empty"}
    monkeypatch.setattr(datasets, "DATASETS", known)


def test_a_named_format_is_opened_unasked(tmp_path: Path, fakes: None) -> None:
    found = open_labelled(tmp_path, "val", "one", "space")
    assert (type(found), found.path, found.split, found.labels) == (Fake, tmp_path, "val", "space")  # type: ignore[attr-defined]
    assert open_labelled(tmp_path, "val", "one", whole=True).split == "all"  # type: ignore[attr-defined]
    assert open_labelled(tmp_path, "val", "two", whole=True).split == "val"  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"no labelled image in split train\. Looked for nothing"):
        open_labelled(tmp_path, "train", "none")
    with pytest.raises(ConfigError, match=r"unknown dataset 'onne'.*Did you mean 'one'"):
        open_labelled(tmp_path, "train", "onne")


def test_what_fits_none_or_several_is_refused(tmp_path: Path, fakes: None) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_labelled(tmp_path / "gone", "train")
    with pytest.raises(DataError, match=r"not a known set of labelled images.*Found nothing"):
        open_labelled(tmp_path, "train")
    (tmp_path / "fake").touch()
    with pytest.raises(ConfigError, match=r"matches several formats \(one, two, none\)\. Choose one with --dataset"):
        open_labelled(tmp_path, "train")
    with pytest.raises(ConfigError, match=r"unknown split 'validation'.*train, val, test, all"):
        open_labelled(tmp_path, "validation")  # type: ignore[arg-type]


def test_maps_that_a_set_lacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class maps"):
        Fake(tmp_path, "train").label(0)
    with pytest.raises(DataError, match="has no instance maps"):
        Fake(tmp_path, "train").instances(0)


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=5))
def test_shares_nest_and_have_their_size(fractions: list[float]) -> None:
    images = Fake(Path(), "train")
    rows = [set(images.subset(fraction)) for fraction in sorted(fractions)]
    assert all(few <= more for few, more in pairwise(rows))
    for fraction, found in zip(sorted(fractions), rows, strict=True):
        assert abs(len(found) - 200 * fraction) <= 1


def test_hash_tells_names_and_classes_apart() -> None:
    one, other = Fake(Path(), "train"), Fake(Path("elsewhere"), "train")
    assert one.hash == other.hash
    found = {one.hash}
    for change in ({"names": ["x"]}, {"class_names": ("a", "c")}, {"things": (0,)}, {"things": (0, 1)}):
        changed = Fake(Path(), "train")
        vars(changed).update(change)
        found.add(changed.hash)
    assert len(found) == 5


def test_hash_tells_label_spaces_of_the_same_names_apart() -> None:
    images, found = Fake(Path(), "train"), set()
    for classes in ({"a": 0, "b": [1, 2]}, {"a": [0, 1], "b": 2}, {"a": 0, "b": 1}):
        images.space = parse_space({"classes": classes})
        found.add(images.hash)
    assert len(found) == 3


def test_sets_without_objects_are_refused(tmp_path: Path) -> None:
    images = Fake(tmp_path, "train")
    assert not images.has_objects
    with pytest.raises(DataError, match="has no instance maps"):
        images.require_objects()


def test_the_image_without_a_map_is_named(tmp_path: Path) -> None:
    class Some(Fake):
        has_objects = True

        def label(self, k: int) -> NDArray[np.uint8]:
            return np.ones((2, 2), np.uint8)

        def instance(self, k: int) -> NDArray[np.int32] | None:
            return np.ones((2, 2), np.int32) if k else None

    images = Some(tmp_path, "train")
    images.require_objects()
    assert len(images.instances(1).classes) == 1
    with pytest.raises(DataError, match="0 has no instance map, but other images have one"):
        images.instances(0)
    images.things = ()
    with pytest.raises(DataError, match="none of its classes is countable"):
        images.require_objects()


def loop_objects(
    label: list[list[int]], ids: list[list[int]], things: list[int]
) -> list[tuple[int, set[tuple[int, int]]]]:
    """Class and pixels of the objects, pixel by pixel."""
    result = []
    for number in sorted({value for row in ids for value in row if value > 0}):
        pixels = {(y, x) for y, row in enumerate(ids) for x, value in enumerate(row) if value == number}
        votes = [label[y][x] for y, x in pixels]
        most = max(sorted(set(votes)), key=votes.count)
        if most in things:
            result.append((things.index(most), pixels))
    return result


grid = st.lists(st.sampled_from([0, 1, 2, 3, 255]), min_size=20, max_size=20)


@given(grid, st.lists(st.sampled_from([0, 0, 1, 2, 9, 40000]), min_size=20, max_size=20), st.permutations([0, 1, 3]))
def test_objects_are_those_of_a_loop(flat: list[int], numbers: list[int], things: list[int]) -> None:
    label, ids = np.array(flat, np.uint8).reshape(4, 5), np.array(numbers, np.int32).reshape(4, 5)
    found = find_objects(label, ids, things)
    wanted = loop_objects(label.tolist(), ids.tolist(), things)
    assert found.classes.tolist() == [kind for kind, _ in wanted] and found.classes.dtype == np.int64
    assert [set(map(tuple, np.argwhere(mask).tolist())) for mask in found.masks] == [pixels for _, pixels in wanted]
    boxes = [
        [min(x for _, x in p), min(y for y, _ in p), max(x for _, x in p) + 1, max(y for y, _ in p) + 1]
        for _, p in wanted
    ]
    assert found.boxes.tolist() == boxes and found.boxes.dtype == np.float32
    assert found.masks.shape == (len(wanted), 4, 5) and found.masks.dtype == bool
    assert found.crowd.tolist() == [False] * len(wanted)


def test_image_of_no_object(tmp_path: Path) -> None:
    for folder, pixels in (
        ("images", np.zeros((4, 5, 3))),
        ("masks", np.zeros((4, 5))),
        ("instances", np.zeros((4, 5))),
    ):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / "a.png")
    (tmp_path / "classes.txt").write_text("thing\n")
    found = open_labelled(tmp_path, "all").instances(0)
    assert found.masks.shape == (0, 4, 5) and found.boxes.shape == (0, 4)

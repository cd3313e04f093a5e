"""Label spaces: the shipped ones against the official tables, and every way to write one wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pri3d.errors import ConfigError, DataError
from pri3d.labelled.spaces import IGNORED, load_space, parse_space, shipped_spaces
from pri3d.worlds.room import CLASS_NAMES

#: the ids of Cityscapes' 19 trained classes in their official order (Cordts et al. 2016, supplement)
CITYSCAPES = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.mark.parametrize("name", shipped_spaces())
def test_shipped_spaces_are_whole(name: str) -> None:
    space = load_space(name)
    assert len(set(space.names)) == len(space.names) > 1
    assert set(space.things) < set(range(len(space.names)))
    used = set(space.table.tolist()) - {254, 255}
    assert used == set(range(len(space.names)))
    assert space.table[IGNORED] == IGNORED


def test_every_expected_space_is_shipped() -> None:
    assert {"cityscapes19", "camvid", "rooms-coarse"} <= set(shipped_spaces())


def test_cityscapes_is_the_official_table() -> None:
    space = load_space("cityscapes19")
    wanted = np.full(34, IGNORED, np.uint8)
    wanted[CITYSCAPES] = np.arange(19)
    np.testing.assert_array_equal(space.apply(np.arange(34), "all"), wanted)
    assert [space.names[k] for k in (0, 10, 13, 18)] == ["road", "sky", "car", "bicycle"]
    assert space.things == (11, 12, 13, 14, 15, 16, 17, 18)
    with pytest.raises(DataError, match=r"all: holds ids \[34\]"):
        space.apply(np.array([[34]]), "all")


def test_coarse_rooms_cover_the_rooms() -> None:
    space = load_space("rooms-coarse")
    found = space.apply(np.arange(len(CLASS_NAMES)), "rooms")
    named = dict(zip(CLASS_NAMES, (space.names[k] for k in found), strict=True))
    assert set(named.values()) == set(space.names)
    assert {named[name] for name in ("wall", "floor", "ceiling")} == {"structure"}
    assert {named[name] for name in ("chair", "sofa", "stool")} == {"seat"}
    assert {named[name] for name in ("shelf", "cabinet")} == {"storage"}
    assert {named[name] for name in ("lamp", "plant", "clutter")} == {"small things"}
    assert (named["bed"], named["table"]) == ("bed", "table")
    assert "structure" not in [space.names[k] for k in space.things]
    with pytest.raises(DataError, match=rf"holds ids \[{len(CLASS_NAMES)}\]"):
        space.apply(np.array([len(CLASS_NAMES)]), "rooms")


@given(
    st.dictionaries(st.integers(0, 65535).filter(lambda k: k != 255), st.integers(0, 5), min_size=1),
    st.lists(st.integers(0, 65535), max_size=20),
    st.booleans(),
)
def test_table_is_what_is_stated(owners: dict[int, int], others: list[int], rest: bool) -> None:
    """Against a dictionary: ids of classes, ids of no class, ids that nothing is said of."""
    kinds = sorted(set(owners.values()))
    stated = {f"class {k}": [number for number, kind in owners.items() if kind == k] for k in kinds}
    ignored = [number for number in others if number not in owners]
    space = parse_space({"classes": stated, "ignored": "rest" if rest else ignored})
    assert space.names == tuple(stated) and space.things == tuple(range(len(kinds)))
    for number in [*owners, *others, 255, 0, 65535]:
        wanted = kinds.index(owners[number]) if number in owners else IGNORED
        if number in owners or rest or number in [*ignored, 255]:
            assert space.apply(np.array([[number]]), "it") == wanted
        else:
            with pytest.raises(DataError, match=rf"it: holds ids \[{number}\], which have no class"):
                space.apply(np.array([[number]]), "it")


@pytest.mark.parametrize("ids", [[-1], [65536], [2**31 - 1]])
def test_ids_out_of_range_are_refused(ids: list[int]) -> None:
    with pytest.raises(DataError, match="0 to 65535 are possible"):
        load_space("camvid").apply(np.array(ids), "it")


def test_ids_of_every_type_and_no_ids_at_all() -> None:
    space = parse_space({"classes": {"a": 1, "b": 200}})
    for dtype in (np.uint8, np.uint16, np.int32, np.int64):
        assert space.apply(np.array([[1, 200, 255]], dtype), "it").tolist() == [[0, 1, 255]]
    assert space.apply(np.zeros((0, 4), np.int32), "it").shape == (0, 4)


def test_the_number_255_can_be_a_class_of_a_black_and_white_mask() -> None:
    space = parse_space({"classes": {"background": 0, "object": 255}})
    assert space.apply(np.array([0, 255]), "it").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (None, "expected `classes:`"),
        ([], "expected `classes:`"),
        ({"classes": []}, "expected `classes:`"),
        ({"classes": {}}, "expected `classes:`"),
        ({"classes": {"a": 1}, "thing": ["a"]}, "unknown key thing"),
        ({"classes": {"a": 1, "b": [2, 1]}}, "id 1 is a and b"),
        ({"classes": {"a": [1, 1]}}, "id 1 is a and a"),
        ({"classes": {"a": 1}, "ignored": [1]}, "id 1 is a and ignored"),
        ({"classes": {"a": "one"}}, "a: 'one' is not an id"),
        ({"classes": {"a": True}}, "a: True is not an id"),
        ({"classes": {"a": -1}}, "a: -1 is not an id"),
        ({"classes": {"a": 65536}}, "a: 65536 is not an id"),
        ({"classes": {"a": 1.5}}, r"a: 1\.5 is not an id"),
        ({"classes": {"a": None}}, "a: None is not an id"),
        ({"classes": {"a": 1}, "ignored": "other"}, "ignored: 'other' is not an id"),
        ({"classes": {"a": 1}, "things": ["b"]}, "things names b, which is not a class"),
        ({"classes": {"a": 1}, "things": 3}, "things is 3, expected a list"),
        ({"classes": {"a": 1}, "things": "a"}, "things is 'a', expected a list"),
        ({"classes": {False: 1}}, "class name False is not a text: put quotes"),
        ({"classes": {1: 1, "1": 2}}, "class name 1 is not a text"),
        ({"classes": {str(k): k for k in range(255)}}, "255 classes, at most 254"),
    ],
)
def test_wrong_spaces_say_what_is_wrong(stated: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        parse_space(stated)


def test_files_and_names(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("classes:\n  floor: 0\n  'no': [1, 2]\nthings: []\n")
    space = load_space(str(file))
    assert space.names == ("floor", "no") and space.things == ()
    for content in ("classes: {a: 1", "classes: {a: x}", "", "classes: {no: 1}"):
        file.write_text(content)
        with pytest.raises(ConfigError, match=rf"(?s)--label-map {file}: .*docs/labelled-data\.md"):
            load_space(str(file))
    file.write_bytes(b"classes: {caf\xe9: 1}")
    with pytest.raises(ConfigError, match=f"--label-map {file}"):
        load_space(str(file))
    with pytest.raises(ConfigError, match=r"unknown label map 'cityscapes'\. Did you mean 'cityscapes19'"):
        load_space("cityscapes")

"""The stamp "made with these settings": one wording, which names what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pri3d.errors import ConfigError
from pri3d.files.stamp import differences, read_stamp, refuse_other_settings, stamp

FIX = "Choose another --out."


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        ({"seed": 0}, {"seed": 0}, []),
        ({"seed": 0, "more": 1}, {"seed": 0}, []),  # what is not asked for any more
        ({"seed": 0, "size": "a"}, {"size": "b", "seed": 1}, ["size was 'a', now 'b'", "seed was 0, now 1"]),
        ({}, {"seed": 1}, ["seed was None, now 1"]),
        ({}, {"seed": None}, []),
        ({"names": ["a", "b"]}, {"names": ("a", "b")}, []),  # JSON has no tuples
        ({"moco": {"queue": 8}}, {"moco": {"queue": 9}}, ["moco.queue was 8, now 9"]),
        ({"moco": None}, {"moco": {"queue": 9}}, ["moco.queue was None, now 9"]),
    ],
)
def test_differences(before: dict[str, Any], now: dict[str, Any], wanted: list[str]) -> None:
    assert differences(before, now) == wanted


def test_names_that_may_differ() -> None:
    assert differences({"a": 1, "b": 1}, {"a": 2, "b": 2}, ignore=("a",)) == ["b was 1, now 2"]


def test_long_values_are_cut() -> None:
    (said,) = differences({"names": list(range(100))}, {"names": []})
    assert len(said) < 100 and "..." in said and said.endswith("now []")


def test_the_refusal_names_the_place_the_settings_and_the_fix() -> None:
    refuse_other_settings(Path("out"), {"seed": 0}, {"seed": 0}, FIX)
    wanted = r"^out: was made with other settings: seed was 0, now 1; size was 'a', now 'b'\. Choose another --out\.$"
    with pytest.raises(ConfigError, match=wanted):
        refuse_other_settings(Path("out"), {"seed": 0, "size": "a"}, {"seed": 1, "size": "b"}, FIX)


def test_a_folder_is_stamped_once_and_compared_after(tmp_path: Path) -> None:
    path = tmp_path / "out" / "made.json"
    stamp(path, {"seed": 0, "names": ("a",)}, FIX)
    written = path.read_bytes()
    assert json.loads(written) == {"seed": 0, "names": ["a"]}
    stamp(path, {"seed": 0, "names": ("a",)}, FIX)
    with pytest.raises(ConfigError, match=rf"^{path.parent}: .*seed was 0, now 2\. {FIX}"):
        stamp(path, {"seed": 2, "names": ("a",)}, FIX)
    assert path.read_bytes() == written


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]", b"[" * 100_000])
def test_a_damaged_stamp_is_refused_with_the_fix(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "made.json"
    assert read_stamp(path, FIX) is None
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"made\.json: cannot be read .*Choose another --out\."):
        stamp(path, {"seed": 0}, FIX)
    assert path.read_bytes() == content

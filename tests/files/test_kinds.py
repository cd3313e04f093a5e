from __future__ import annotations

from pathlib import Path

from pri3d.files.kinds import count_kinds


def test_files_are_counted_by_kind_the_most_frequent_first() -> None:
    files = [*(f"a/{k}.HEIC" for k in range(3)), *(Path(f"{k}.heic") for k in range(2)), "b.mp4", "README", ".hidden.x"]
    assert count_kinds(files) == "5 .heic, 1 .mp4, 1 without ending"
    assert count_kinds([".DS_Store"]) == ""
    assert count_kinds([]) == ""


def test_many_kinds_end_somewhere() -> None:
    assert count_kinds(f"x.k{k}" for k in range(9)) == "1 .k0, 1 .k1, 1 .k2, 1 .k3, 1 .k4, 1 .k5 and 3 of other kinds"

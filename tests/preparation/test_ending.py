"""What a run leaves and says at its end, of few scenes and of thousands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import FLAGS

from pri3d.api.prepare import prepare
from pri3d.preparation.prepare import SHOWN, finish_store, list_failures, print_summary
from pri3d.store import PairTable, SceneStore, Store, read_manifest, scene_folder

RECORD = {"frames": 10, "rejected": 1, "pairs": 20, "voxels": 1000, "seconds": 2.0, "bytes": 3_000_000}


def manifest(scenes: int, failed: int = 0) -> dict[str, Any]:
    return {
        "scenes": {f"scene{k:05d}": RECORD for k in range(scenes)},
        "failed": {f"lost{k:05d}": "no frame" for k in range(failed)},
    }


@pytest.mark.parametrize(("scenes", "failed"), [(5000, 300), (SHOWN, SHOWN), (1, 0)])
def test_so_many_rows_are_printed_and_no_more(
    scenes: int, failed: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    print_summary(Path("out"), manifest(scenes, failed))
    said = capfd.readouterr().err
    assert said.count("scene0") == min(scenes, SHOWN)
    assert said.count("lost0") == min(failed, SHOWN)
    assert ("4,960 more" in said) == ("260 more" in said) == (scenes == 5000)
    assert ("all" in said) == (scenes > 1)
    if scenes == 5000:
        assert "all 5,000" in said
        assert "50,000" in said  # frames of all, not of those shown
        assert "15,000.0" in said  # MB


def test_a_table_fits_80_columns(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are folded, numbers are whole; why scenes failed is told by the error at the end."""
    monkeypatch.setenv("COLUMNS", "80")
    name, large = "house_" * 15, {**RECORD, "frames": 12345, "voxels": 123456789, "bytes": 987_654_321_000}
    print_summary(Path("out"), {"scenes": {name: large}, "failed": {f"lost_{name}": "no frame " * 20}})
    lines = capfd.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    assert {"12,345", "123,456,789", "987,654.3"} <= set(" ".join(lines).replace("│", " ").split())
    first = [line.replace("┃", "│").split("│")[1].strip() for line in lines if line.count("│") == 8]
    assert name in "".join(first)


def test_still_pairs_and_a_scene_that_is_mostly_rejected_are_said(capfd: pytest.CaptureFixture[str]) -> None:
    still = {**RECORD, "still_pairs": 7, "first_rejected": ""}
    lost = {**RECORD, "frames": 4, "rejected": 6, "first_rejected": "pose/3.txt: [no] such file."}
    print_summary(Path("out"), {"scenes": {"a": still, "b": lost, "old": RECORD}, "failed": {}})
    said = capfd.readouterr().err.splitlines()
    assert any(line.startswith("7 of 60 pairs have no baseline") for line in said)
    assert "b: 6 of 10 frames rejected: pose/3.txt: [no] such file." in said
    assert not any(line.startswith(("a: ", "old: ")) for line in said)


def test_reasons_of_failure_end_somewhere() -> None:
    text = list_failures({f"scene{k:03d}": "no frame" for k in reversed(range(100))})
    lines = text.splitlines()
    assert lines[1] == "  scene000: no frame"
    assert lines[-1] == "  and 60 more, all in dataset.json"
    assert len(lines) == 1 + SHOWN + 1
    assert list_failures({"a": "b"}) == "\n  a: b"


@pytest.mark.thorough
def test_the_pairs_of_all_scenes_keep_their_names(recording: Path, out: Path) -> None:
    prepare([recording], out, **FLAGS)
    store = Store(out)
    tables = [SceneStore(scene_folder(out, scene)).pairs() for scene in store.scenes]
    whole = PairTable.concatenate(tables)
    for name, column in store.pairs()._asdict().items():
        np.testing.assert_array_equal(column, getattr(whole, name))
        assert column.dtype == getattr(whole, name).dtype


def test_a_store_of_no_scene_has_a_table_of_no_pairs(tmp_path: Path) -> None:
    whole = {"state": "unfinished", "settings": {"pairs": True}, "class_names": None, "scenes": {}, "failed": {}}
    finish_store(tmp_path, whole, {"room": "lost"})
    found = read_manifest(tmp_path)
    assert (found["state"], found["scenes"], found["failed"]) == ("failed", {}, {"room": "lost"})
    with np.load(tmp_path / "pairs.npz") as table:
        assert {name: len(table[name]) for name in table.files} == dict.fromkeys(PairTable._fields, 0)

"""The verb `check`: exit codes, what it writes and where, and its advice, on recordings on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pri3d
from pri3d.api.rooms import rooms
from pri3d.cli import main
from pri3d.errors import ConfigError, DataError

FEW = {"max_frames": 12, "max_pairs": 20}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "rooms"
    rooms(folder, rooms=2, frames=12, size="80x60", processes=1, labels=False)
    return folder


def inverted(disk: Path, target: Path) -> Path:
    """A copy of one room whose poses are world to camera."""
    for source in sorted(p for p in (disk / "room-0000").rglob("*") if p.is_file()):
        path = target / "mine" / source.relative_to(disk)
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.parent.name == "pose":
            np.savetxt(path, np.linalg.inv(np.loadtxt(source)))
        else:
            path.write_bytes(source.read_bytes())
    return target / "mine"


@pytest.mark.slow
def test_a_good_recording_passes_and_nothing_is_written_there(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(disk.rglob("*"))
    assert main(["check", str(disk), "--max-frames", "12", "--max-pairs", "20"]) == 0
    text = capsys.readouterr().out
    assert "registration" in text
    assert "one of 2 scenes" in text
    assert sorted(disk.rglob("*")) == before
    assert sorted(p.name for p in (tmp_path / "check-rooms").iterdir()) == ["sheet.png", "verdict.json"]
    verdict = json.loads((tmp_path / "check-rooms" / "verdict.json").read_text())
    assert (verdict["verdict"], verdict["faults"], verdict["scene"]) == ("ok", [], "room-0000")
    with Image.open(tmp_path / "check-rooms" / "sheet.png") as sheet:
        assert sheet.width == 4 * 246 + 6
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000


@pytest.mark.slow
def test_a_fault_exits_1_names_it_and_the_advice_mends_it(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = inverted(disk, tmp_path)
    words = ["check", str(recording), "--max-frames", "12", "--max-pairs", "20", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "poses inverted" in error
    assert "--correct inverse" in error
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width == 6 * 246 + 6  # as stated, and as advised
    (recording / "room-0000" / "depth" / "000005.png").unlink()
    assert main([*words, "--correct", "inverse"]) == 0
    assert json.loads((tmp_path / "out" / "verdict.json").read_text())["correct"] == "inverse"
    lost = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ok frames (11 of 12 sampled")]
    assert len(lost) == 1
    assert "000005" in lost[0] and lost[0].endswith(". prepare leaves them out.")


@pytest.mark.slow
def test_a_wrong_correction_is_told_from_the_recording_s_own_mistake(disk: Path, tmp_path: Path) -> None:
    recording = inverted(disk, tmp_path)
    with pytest.raises(DataError, match="--correct inverse") as caught:
        pri3d.check(recording, correct="depth=5", out=tmp_path / "out", **FEW)
    assert "depth scale" in str(caught.value)


@pytest.mark.slow
def test_a_correction_that_is_wrong_itself_is_to_be_left_out(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Leave out --correct inverse"):
        pri3d.check(disk, correct="inverse", out=tmp_path / "out", **FEW)


def test_intrinsics_that_the_reader_refuses_are_a_verdict(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "cameras.yaml"
    stated = "{fx: 160, fy: 160, cx: 80, cy: 60}"
    path.write_text(f"color: {stated}\n")
    with pytest.raises(DataError, match="intrinsics of another size"):
        pri3d.check(disk, cameras=path, out=tmp_path / "out", **FEW)
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["faults"] == ["intrinsics of another size"]
    advised = (tmp_path / "out" / "cameras.yaml").read_text()
    assert "fx: 80.00, fy: 80.00, cx: 40.00, cy: 30.00" in advised


def test_flags_out_of_range_and_unknown_scenes_are_refused(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-frames 1: give at least 4"):
        pri3d.check(disk, max_frames=1)
    with pytest.raises(ConfigError, match="room-0000, room-0001"):
        pri3d.check(disk, scene="room-7", out=tmp_path / "out", **FEW)
    with pytest.raises(ConfigError, match="is inside the recording"):
        pri3d.check(disk, out=disk / "room-0000" / "check", **FEW)


@pytest.mark.slow
def test_another_scene_can_be_chosen(disk: Path, tmp_path: Path) -> None:
    verdict = pri3d.check(disk, scene="room-0001", out=tmp_path / "out", **FEW)
    assert verdict["scene"] == "room-0001"

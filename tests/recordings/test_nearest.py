"""A folder that no reader knows: the format that it nearly has is named, and what it lacks of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import SAMPLES
from samples_desk import write_tum

from pri3d.errors import ConfigError, DataError
from pri3d.recordings import find_reader, open_recording


def tum_without_poses(root: Path) -> Path:
    write_tum(root)
    (root / "groundtruth.txt").unlink()
    return root


def orb_slam(root: Path) -> Path:
    """As ORB-SLAM leaves it beside the images: its list, and its trajectory in TUM's format."""
    write_tum(root)
    (root / "groundtruth.txt").rename(root / "CameraTrajectory.txt")
    (root / "rgb.txt").rename(root / "associations.txt")
    return root


def scanner3d_without_depth(root: Path) -> Path:
    SAMPLES["scanner3d"](root)
    for path in root.rglob("depth_*.png"):
        path.unlink()
    return next(root.iterdir())


def open3d_of_another_place(root: Path) -> Path:
    SAMPLES["open3d"](root)
    (root / "test_scene").mkdir()
    (root / "trajectory.log").rename(root / "test_scene" / "trajectory.log")
    return root


def folder_of_other_names(root: Path) -> Path:
    scene = SAMPLES["folder"](root).root
    (scene / "color").rename(scene / "rgb")
    (scene / "pose").rename(scene / "poses")
    return scene


NEAR: dict[str, tuple[Callable[[Path], Path], str]] = {
    "TUM without poses": (tum_without_poses, r"tum of .*: groundtruth\.txt missing"),
    "ORB-SLAM": (orb_slam, r"tum of .*: groundtruth\.txt \(CameraTrajectory\.txt is there: rename it\) missing"),
    "3D Scanner App without depth": (scanner3d_without_depth, r"scanner3d of .*: depth_\*\.png missing"),
    "Open3D": (open3d_of_another_place, r"trajectory\.log \(test_scene/trajectory\.log is there: rename it\) missing"),
    "rgb and poses": (folder_of_other_names, r"color \(rgb is there: rename it\), pose \(poses is there: rename it\)"),
}


@pytest.mark.parametrize("case", NEAR)
def test_the_nearest_format_is_named(case: str, tmp_path: Path) -> None:
    write, expected = NEAR[case]
    path = write(tmp_path / "r")
    with pytest.raises(DataError, match=expected) as caught:
        open_recording(path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}: not a known recording")
    assert 2 <= len(lines) <= 4, "what is near, not all that is known"


def test_a_folder_of_scenes_that_are_near(tmp_path: Path) -> None:
    tum_without_poses(tmp_path / "r" / "desk")
    with pytest.raises(DataError, match=r"tum of .*desk: groundtruth\.txt missing"):
        open_recording(tmp_path / "r")


def test_the_advice_is_right(tmp_path: Path) -> None:
    path = orb_slam(tmp_path / "r")
    (path / "CameraTrajectory.txt").rename(path / "groundtruth.txt")
    (path / "associations.txt").unlink()
    assert len(open_recording(path).scenes()[0].names) == 3


def test_what_is_near_nothing_gets_the_list(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="Looked for") as caught:
        open_recording(tmp_path)
    assert len(str(caught.value).splitlines()) > 15


def test_of_several_layouts_those_that_can_be_read_are_offered(tmp_path: Path) -> None:
    root = write_tum(tmp_path / "r").root
    (root / "livingRoom1.gt.freiburg").write_text("")  # ICL's file of poses, of no pose
    assert find_reader(root) == "tum"
    SAMPLES["open3d"](tmp_path / "o")
    shutil.copy(tmp_path / "o" / "trajectory.log", root)
    shutil.copy(tmp_path / "o" / "camera_intrinsic.json", root)
    with pytest.raises(ConfigError, match=r"matches several formats \(tum, open3d\)"):
        find_reader(root)

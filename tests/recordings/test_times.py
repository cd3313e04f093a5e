"""When frames were taken, as formats state it: what is taken of a video goes by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sample_frames import rendered
from samples import SAMPLES
from samples_desk import START, quaternion_row
from scipy.spatial.transform import Rotation

from pri3d.errors import ConfigError, FrameError
from pri3d.geometry.pose import blend_poses
from pri3d.recordings import CorrectedScene, open_recording
from pri3d.recordings._shared.correction import parse_correction

#: seconds between the frames of the sample, or None where the format does not say
APART = {"tum": 1 / 30, "scannetpp": 1 / 60, "record3d": 0.1, "scanner3d": 0.5, "polycam": 0.250142, "folder": None}


@pytest.mark.parametrize("name", APART)
def test_the_times_of_a_format(name: str, tmp_path: Path) -> None:
    scene = open_recording(SAMPLES[name](tmp_path).root).scenes()[0]
    if APART[name] is None:
        assert scene.times is None
    else:
        np.testing.assert_allclose(np.diff(scene.times), APART[name], atol=2e-6)


def test_times_that_do_not_increase_or_are_missing_are_none(tmp_path: Path) -> None:
    root = SAMPLES["scanner3d"](tmp_path).root
    path = next(root.rglob("frame_00000.json"))
    stated = json.loads(path.read_text())
    for time in (9e9, None, "late", float("nan")):
        path.write_text(json.dumps({**stated, "time": time}))
        assert open_recording(root).scenes()[0].times is None
    path.write_text("{")  # this frame is damaged; what is taken goes by number
    assert open_recording(root).scenes()[0].times is None


def test_a_pose_between_two() -> None:
    start, end = rendered()[0].world_from_camera, rendered()[1].world_from_camera
    found = blend_poses(start, end, 0.25)
    np.testing.assert_allclose(found[:3, 3], 0.75 * start[:3, 3] + 0.25 * end[:3, 3])
    whole, part = (Rotation.from_matrix(start[:3, :3].T @ p[:3, :3]).as_rotvec() for p in (end, found))
    np.testing.assert_allclose(part, 0.25 * whole, atol=1e-12)
    for share, pose in ((0.0, start), (1.0, end)):
        np.testing.assert_allclose(blend_poses(start, end, share), pose, atol=1e-12)


def test_poses_of_another_time_between_those_of_the_frames(tmp_path: Path) -> None:
    root = SAMPLES["record3d"](tmp_path).root
    plain = open_recording(root).scenes()[0]
    poses = [plain.pose(k) for k in range(3)]  # a tenth of a second apart
    (scene,) = open_recording(root, correct="time=-0.02").scenes()
    wanted = blend_poses(poses[0], poses[1], 0.8)
    np.testing.assert_allclose(scene.pose(1), wanted, atol=1e-9)
    np.testing.assert_allclose(scene.frame(1).world_from_camera, wanted, atol=1e-9)
    assert np.array_equal(scene.frame(1).depth, plain.frame(1).depth)
    with pytest.raises(FrameError, match=r"no poses within 0\.25 s of its time -0\.02 s"):
        scene.frame(0)
    (later,) = open_recording(root, correct="time=0.1,opengl").scenes()
    np.testing.assert_allclose(later.pose(0), poses[1] @ np.diag((1.0, -1, -1, 1)), atol=1e-9)
    again = CorrectedScene(scene, parse_correction("time=0.02"))  # what was corrected is corrected back
    np.testing.assert_allclose(again.pose(1), poses[1], atol=1e-9)


def test_poses_that_come_more_often_than_frames_are_used(tmp_path: Path) -> None:
    """TUM's motion capture has a hundred poses a second; key frames may be seconds apart."""
    sample = SAMPLES["tum"](tmp_path)
    start, end = rendered()[0].world_from_camera, rendered()[2].world_from_camera
    rows = [f"{START + at:.6f} {quaternion_row(pose)}" for at, pose in ((-0.06, start), (-0.01, end), (0.08, end))]
    sample.pose.write_text("\n".join(rows))
    scene = open_recording(sample.root).scenes()[0]
    np.testing.assert_allclose(scene.pose_at(0, -0.035), blend_poses(start, end, 0.5), atol=1e-4)
    with pytest.raises(FrameError, match=r"groundtruth\.txt: has no poses"):
        scene.pose_at(0, -0.07)


def test_a_format_without_times_cannot_be_moved(tmp_path: Path) -> None:
    (scene,) = open_recording(SAMPLES["folder"](tmp_path).root, correct="time=0.01").scenes()
    with pytest.raises(FrameError, match="has no time stamp"):
        scene.frame(0)


@pytest.mark.parametrize("text", ["time", "time=", "time=nan", "time=11", "time=a"])
def test_times_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="time=-0\\.02"):
        parse_correction(text)

"""One frame through checks, registration and resampling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.geometry.fusion import REACH
from pri3d.geometry.resize import parse_size, resize_nearest
from pri3d.preparation.frames import SceneFrames, prepare_frame, stored_size
from pri3d.preparation.overlap import DepthStack
from pri3d.preparation.pipeline import scene_surface
from pri3d.types import Camera, Frame

CAMERA = Camera(64, 48, 60.0, 60.0, 32.0, 24.0)


def frame(**changes: object) -> Frame:
    rng = np.random.default_rng(0)
    color = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    depth = (1 + rng.random((48, 64))).astype(np.float32)
    plain = Frame("f", color, depth, CAMERA, CAMERA, np.eye(4), np.eye(4))
    return plain._replace(**changes)


@pytest.mark.parametrize(
    ("source", "wanted", "stored"),
    [
        ((640, 480), (320, 240), (320, 240)),
        ((1296, 968), (320, 240), (320, 240)),  # ScanNet: 0.4 % off 4:3
        ((1920, 1080), (320, 240), (320, 180)),
        ((480, 640), (320, 240), (180, 240)),
        ((160, 120), (320, 240), (160, 120)),  # never enlarged
        ((1242, 375), (320, 240), (320, 97)),
        ((320, 238), (320, 240), (320, 238)),
    ],
)
def test_stored_size(source: tuple[int, int], wanted: tuple[int, int], stored: tuple[int, int]) -> None:
    assert stored_size(Camera(*source, 1, 1, 0, 0), wanted) == stored


def test_parse_size() -> None:
    assert parse_size("320x240") == (320, 240)
    assert parse_size("16x17") == (16, 17)
    for wrong in ("320", "320x", "x", "0x240", "320x15", "15x240", "320 x 240", "-320x240"):
        with pytest.raises(ConfigError, match=f"--size {wrong}: write width x height"):
            parse_size(wrong)


def test_everything_is_sampled_at_pixel_centres() -> None:
    label = (np.arange(48 * 64).reshape(48, 64) % 200).astype(np.uint8)
    instance = np.arange(48 * 64).reshape(48, 64).astype(np.uint16)
    given = frame(label=label, instance=instance)
    out = prepare_frame(given, (32, 24), 6.0)
    np.testing.assert_array_equal(out.label, label[1::2, 1::2])
    np.testing.assert_array_equal(out.instance, instance[1::2, 1::2])
    np.testing.assert_array_equal(out.view.depth, given.depth[1::2, 1::2])
    np.testing.assert_array_equal(out.depth, np.rint(given.depth * 1000))
    np.testing.assert_allclose(out.view.intrinsics, (30, 30, 16, 12))
    assert out.camera == CAMERA
    assert out.view.color.shape == (24, 32, 3)
    assert out.view.color.mean() == pytest.approx(given.color.mean(), abs=1)
    assert out.view.color.std() < 0.75 * given.color.std()  # antialiased: white noise is averaged


def test_nearest_enlarges_too() -> None:
    np.testing.assert_array_equal(resize_nearest(np.array([[1, 2]]), (4, 2)), [[1, 1, 2, 2]] * 2)


@pytest.mark.slow
def test_depth_is_registered_at_its_own_resolution() -> None:
    half = CAMERA.resized(32, 24)
    shift = np.eye(4)
    shift[0, 3] = 2 / half.fx * 2.0  # two pixels at two metres
    given = frame(depth=np.full((24, 32), 2.0, np.float32), depth_camera=half, color_from_depth=shift)
    out = prepare_frame(given, (64, 48), 6.0)
    assert out.depth.shape == (24, 32)
    assert (out.depth[:, :2] == 0).all()
    assert (out.depth[:, 2:] == 2000).all()
    assert (out.view.depth[:, 4:] == 2).all()
    assert out.camera == half


def test_unusable_depth_becomes_zero() -> None:
    depth = frame().depth.copy()
    depth[0, :4] = np.nan, np.inf, -1, 6.5
    out = prepare_frame(frame(depth=depth), (64, 48), 6.0)
    assert (out.view.depth[0, :4] == 0).all()
    np.testing.assert_array_equal(out.view.depth[1:], depth[1:])


BAD_POSE = np.eye(4)
BAD_POSE[0, 3] = -np.inf


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"world_from_camera": BAD_POSE}, "not finite"),
        ({"world_from_camera": np.diag([2.0, 2, 2, 1])}, "not rigid"),
        ({"world_from_camera": np.diag([1.0, 1, -1, 1])}, "mirrors"),
        ({"depth": np.zeros((48, 64), np.float32)}, "no valid depth within 6.0 m"),
        ({"depth": np.full((48, 64), 7, np.float32)}, "no valid depth within 6.0 m"),
        ({"depth": np.ones((24, 64), np.float32)}, "depth is 64 x 24, its camera 64 x 48"),
        ({"color": np.zeros((48, 60, 3), np.uint8)}, "colour is 60 x 48"),
        ({"label": np.zeros((24, 32), np.uint8)}, "label is 32 x 24"),
        ({"label": np.full((48, 64), 256, np.int32)}, r"label ids reach from 256 to 256, allowed are 0\.\.255"),
        ({"label": np.full((48, 64), -1, np.int32)}, "label ids reach from -1"),
    ],
)
def test_unusable_frames_say_why(changes: dict, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        prepare_frame(frame(**changes), (32, 24), 6.0)


def test_cameras_beyond_the_reach_of_the_cells_are_refused() -> None:
    pose = np.eye(4)
    pose[1, 3] = -10485.0
    assert prepare_frame(frame(world_from_camera=pose), (32, 24), 6.0, REACH * 0.02).view.name == "f"
    pose[1, 3] = -10486.0
    with pytest.raises(FrameError, match=r"f: the camera is 10486 m from the origin, .* move the recording near"):
        prepare_frame(frame(world_from_camera=pose), (32, 24), 6.0, REACH * 0.02)


def test_a_mesh_beyond_the_reach_of_the_cells_is_refused(tmp_path: Path) -> None:
    triangle = np.array([(0, 0, 0), (0.1, 0, 0), (0, 0.1, 0)])
    path = tmp_path / "mesh.ply"
    stack = DepthStack(np.zeros((0, 1, 1), np.uint16), np.zeros((0, 4)), np.zeros((0, 4, 4)))
    unseen = SceneFrames(np.zeros(0, np.int32), 0, [], stack, [])
    for far, near_enough in ((10485.0, True), (10486.0, False)):
        trimesh.Trimesh(triangle + np.array((0, 0, far)), [(0, 1, 2)], process=False).export(path)
        if near_enough:
            assert len(scene_surface(path, unseen, 0.02).cells) > 10
        else:
            with pytest.raises(DataError, match=r"mesh\.ply: a coordinate of 10486 m is beyond"):
                scene_surface(path, unseen, 0.02)


def test_depth_that_its_device_does_not_trust_is_left_out() -> None:
    confidence = np.tile(np.array([0, 50, 100, 49], np.uint8), (48, 16))
    given = frame(confidence=confidence)
    out = prepare_frame(given, (64, 48), 6.0, min_confidence=50)
    np.testing.assert_array_equal(out.view.depth, np.where(confidence >= 50, given.depth, 0))
    np.testing.assert_array_equal(prepare_frame(given, (64, 48), 6.0).view.depth, given.depth)
    with pytest.raises(FrameError, match="no valid depth"):
        prepare_frame(frame(confidence=np.zeros((48, 64), np.uint8)), (64, 48), 6.0, min_confidence=1)
    with pytest.raises(FrameError, match="confidence is 32 x 24"):
        prepare_frame(frame(confidence=confidence[:24, :32]), (64, 48), 6.0)

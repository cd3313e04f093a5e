"""Depth carried into another camera: closed forms on planes, occlusion, and nothing behind the camera."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pri3d.geometry.warping import register_depth
from pri3d.types import Camera

CAMERA = Camera(64, 48, 60.0, 60.0, 32.0, 24.0)


def moved(x: float = 0, y: float = 0, z: float = 0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def test_same_camera_returns_the_input() -> None:
    depth = np.ones((48, 64), np.float32)
    assert register_depth(depth, CAMERA, CAMERA, np.eye(4)) is depth
    assert register_depth(depth, CAMERA, CAMERA, moved(0.01)) is not depth
    assert register_depth(depth, CAMERA, CAMERA._replace(cx=32.5), np.eye(4)) is not depth
    assert register_depth(depth, CAMERA, CAMERA.resized(32, 24), np.eye(4)) is not depth


@pytest.mark.parametrize("pixels", [-5, 3])
def test_sideways_shift_of_a_plane_moves_it_by_its_disparity(pixels: int) -> None:
    z = 2.0
    depth = np.full((48, 64), z, np.float32)
    depth[10, 20] = 0
    out = register_depth(depth, CAMERA, CAMERA, moved(x=pixels * z / CAMERA.fx))
    expected = np.roll(depth, pixels, axis=1)
    if pixels > 0:
        expected[:, :pixels] = 0
    else:
        expected[:, pixels:] = 0
    np.testing.assert_allclose(out, expected)


def test_shift_along_the_axis_changes_depth_and_leaves_no_cracks() -> None:
    out = register_depth(np.full((48, 64), 2.0, np.float32), CAMERA, CAMERA, moved(z=-1.0))  # one metre nearer: zoom 2
    np.testing.assert_allclose(out, 1.0)


def test_a_denser_target_shows_no_cracks() -> None:
    target = CAMERA.resized(150, 97)
    v, u = np.mgrid[:48, :64]
    depth = (1.5 + 0.01 * u + 0.004 * v).astype(np.float32)  # slanted
    out = register_depth(depth, CAMERA, target, np.eye(4))
    assert (out > 0).all()
    rows, columns = (np.arange(97) + 0.5) * 48 / 97, (np.arange(150) + 0.5) * 64 / 150
    truth = 1.5 + 0.01 * (columns[None] - 0.5) + 0.004 * (rows[:, None] - 0.5)
    assert np.abs(out - truth).max() <= 0.5 * (0.01 + 0.004) + 1e-4  # half a source pixel


def test_the_nearest_surface_wins() -> None:
    depth = np.full((48, 64), 4.0, np.float32)
    depth[:, :16] = 1.0
    out = register_depth(depth, CAMERA, CAMERA, moved(x=0.2))  # near moves by 12 px, far by 3
    assert (out[:, 12:28] == 1.0).all()
    assert (out[:, 28:] == 4.0).all()
    assert (out[:, :12] == 0).all()


def test_points_beside_and_behind_the_target_vanish() -> None:
    depth = np.full((48, 64), 2.0, np.float32)
    assert not register_depth(depth, CAMERA, CAMERA, moved(z=-2.5)).any()
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", 180, degrees=True).as_matrix()
    assert not register_depth(depth, CAMERA, CAMERA, turn).any()
    assert not register_depth(np.zeros_like(depth), CAMERA, CAMERA, moved(0.1)).any()


def test_a_rolled_camera_sees_the_same_plane() -> None:
    roll = np.eye(4)
    roll[:3, :3] = Rotation.from_euler("z", 45, degrees=True).as_matrix()
    out = register_depth(np.full((48, 64), 2.0, np.float32), CAMERA, CAMERA, roll)
    np.testing.assert_allclose(out[12:36, 20:44], 2.0, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_loop_over_pixels(seed: int) -> None:
    """Random depths, turned and moved in every direction, in a camera of another size and focal length."""
    rng = np.random.default_rng(seed)
    source, target = Camera(9, 7, 8.0, 9.0, 4.2, 3.4), Camera(11, 8, 10.0, 9.5, 5.1, 4.3)
    pose = moved(*rng.normal(0, 0.3, 3))
    pose[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.2, 3)).as_matrix()
    depth = rng.uniform(0.5, 3, (7, 9)).astype(np.float32) * (rng.random((7, 9)) < 0.8)
    rows, columns = np.mgrid[:8, :11] + 0.5
    expected = np.full((8, 11), np.inf)

    def seen(u: float, v: float, z: float) -> np.ndarray:
        return pose[:3] @ ((u - source.cx) / source.fx * z, (v - source.cy) / source.fy * z, z, 1)

    for row, column in np.argwhere(depth > 0):
        z = float(depth[row, column])
        ahead = seen(column + 0.5, row + 0.5, z)[2]
        corners = np.array([seen(column + du, row + dv, z) for du in (0, 1) for dv in (0, 1)])
        if min(ahead, *corners[:, 2]) <= 0:
            continue
        u, v = (corners[:, :2] / corners[:, 2:] * (target.fx, target.fy) + (target.cx, target.cy)).T
        covered = (u.min() <= columns) & (columns < u.max()) & (v.min() <= rows) & (rows < v.max())
        expected[covered] = np.minimum(expected[covered], ahead)
    expected[np.isinf(expected)] = 0
    assert (expected > 0).sum() >= 10
    np.testing.assert_allclose(register_depth(depth, source, target, pose), expected, rtol=1e-6)

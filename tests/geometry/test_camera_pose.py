"""Camera and pose conventions by round trips and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pri3d.errors import FrameError
from pri3d.geometry.camera import back_project, pixel_centres, project
from pri3d.geometry.pose import check_rigid, compose, invert, invert_array, pose_of_quaternion, transform
from pri3d.types import Camera

INTRINSICS = torch.tensor([500.0, 510.0, 320.0, 240.0], dtype=torch.float64)


def random_pose(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(rng=rng).as_matrix()
    pose[:3, 3] = rng.normal(size=3)
    return torch.from_numpy(pose)


def test_pixel_centres_start_at_half() -> None:
    grid = pixel_centres(2, 3, like=INTRINSICS)
    assert grid.shape == (2, 3, 2)
    assert grid[1, 2].tolist() == [2.5, 1.5]


def test_back_project_looks_right_down_forward() -> None:
    point = back_project(torch.tensor([2.0]).double(), torch.tensor([[570.0, 495.0]]).double(), INTRINSICS)
    assert point[0].tolist() == pytest.approx([1.0, 1.0, 2.0])


@given(st.integers(0, 10_000))
def test_project_inverts_back_project(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(7, 2, generator=generator, dtype=torch.float64) * 640
    depth = torch.rand(7, generator=generator, dtype=torch.float64) * 5 + 0.1
    again, z = project(back_project(depth, pixels, INTRINSICS), INTRINSICS)
    torch.testing.assert_close(again, pixels)
    torch.testing.assert_close(z, depth)


def test_project_and_transform_gradcheck() -> None:
    points = torch.tensor([[0.3, -0.2, 1.5], [1.0, 0.4, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: project(transform(random_pose(1), p), INTRINSICS)[0], (points,))


def test_project_behind_camera_is_finite() -> None:
    pixels, z = project(torch.tensor([[0.1, 0.1, -1.0], [0.1, 0.1, 0.0]]).double(), INTRINSICS)
    assert torch.isfinite(pixels).all()
    assert (z <= 0).all()


def test_resized_camera_keeps_the_ray() -> None:
    half = torch.tensor(Camera(640, 480, 500, 510, 320, 240).resized(320, 120)[2:], dtype=torch.float64)
    full = back_project(torch.ones(1).double(), torch.tensor([[100.0, 60.0]]).double(), INTRINSICS)
    small = back_project(torch.ones(1).double(), torch.tensor([[50.0, 15.0]]).double(), half)
    torch.testing.assert_close(full, small)


@given(st.integers(0, 10_000))
def test_invert_is_the_inverse(seed: int) -> None:
    pose = random_pose(seed)
    torch.testing.assert_close(invert(pose) @ pose, torch.eye(4).double(), atol=1e-12, rtol=0)
    np.testing.assert_allclose(invert_array(pose.numpy()), invert(pose).numpy())
    points = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(transform(invert(pose), transform(pose, points)), points)


def test_compose_equals_the_matrix_product() -> None:
    one, two = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(compose(one, two), one @ two)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda p: p.__setitem__((0, 3), -np.inf), "not finite"),
        (lambda p: p.__imul__(2.0), "last row"),
        (lambda p: p.__setitem__((slice(0, 3), slice(0, 3)), p[:3, :3] * 1.5), "not rigid"),
        (lambda p: p.__setitem__((slice(0, 3), 0), -p[:3, 0]), "mirrors"),
    ],
)
def test_check_rigid_says_what_is_wrong(change, word: str) -> None:  # type: ignore[no-untyped-def]
    pose = random_pose(3).numpy().copy()
    change(pose)
    with pytest.raises(FrameError, match=word) as caught:
        check_rigid(pose, "pose.txt")
    assert "pose.txt" in str(caught.value)


def test_check_rigid_repairs_rounding() -> None:
    pose = random_pose(4).numpy().round(4)
    result = check_rigid(pose, "pose.txt")
    np.testing.assert_allclose(result[:3, :3] @ result[:3, :3].T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(result, pose, atol=1e-3)


def test_check_rigid_refuses_other_shapes() -> None:
    with pytest.raises(FrameError, match="4 x 4"):
        check_rigid(np.eye(3), "pose.txt")


def test_quaternions_equal_scipys() -> None:
    rng = np.random.default_rng(3)
    for quaternion in (*rng.normal(size=(20, 4)), np.array((0.0, 0, 0, 2))):
        shift = rng.normal(size=3)
        pose = pose_of_quaternion(shift, quaternion, "poses.txt")
        np.testing.assert_allclose(pose[:3, :3], Rotation.from_quat(quaternion).as_matrix(), atol=1e-12)
        np.testing.assert_array_equal(pose[:, 3], (*shift, 1))
        check_rigid(pose, "poses.txt")


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, np.nan), (np.inf, 0, 0, 0, 0, 0, 1)])
def test_no_rotation_is_lost_tracking(numbers: tuple[float, ...]) -> None:
    with pytest.raises(FrameError, match=r"poses\.txt: the pose is not finite or has no rotation"):
        pose_of_quaternion(numbers[:3], numbers[3:], "poses.txt")

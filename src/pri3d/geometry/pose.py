"""Rigid transforms, stated once: ``a_from_b`` is (..., 4, 4) and maps points of frame b to frame a.

Poses are float64 on disk and in numpy, float32 on the device. On tensors no matrix product is used: autocast would turn
it to bf16 and a GPU may take TF32, both of which move points by centimetres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from pri3d.errors import FrameError

FARTHEST = 1e6  #: metres; a pose that holds more is damaged
#: camera axes of OpenGL (x right, y up, z backward) -> OpenCV's, and back: ``pose @ OPENGL_FLIP``
OPENGL_FLIP = np.diag((1.0, -1.0, -1.0, 1.0))

if TYPE_CHECKING:  # preparation uses the numpy half in many processes, and PyTorch takes seconds to import
    from torch import Tensor


def transform(a_from_b: Tensor, points_b: Tensor) -> Tensor:
    """Points (..., N, 3) of frame b -> frame a, with a_from_b (..., 4, 4)."""
    x, y, z, shift = a_from_b[..., None, :3, :].unbind(-1)
    return points_b[..., :1] * x + points_b[..., 1:2] * y + points_b[..., 2:] * z + shift


def compose(a_from_b: Tensor, b_from_c: Tensor) -> Tensor:
    """``a_from_c`` (..., 4, 4) of two transforms."""
    return (a_from_b[..., None] * b_from_c[..., None, :, :]).sum(dim=-2)


def invert(a_from_b: Tensor) -> Tensor:
    """``b_from_a`` (..., 4, 4) of a rigid ``a_from_b``: transposed rotation, no matrix inverse."""
    rotation = a_from_b[..., :3, :3].mT
    result = a_from_b.clone()
    result[..., :3, :3] = rotation
    result[..., :3, 3] = -(rotation * a_from_b[..., None, :3, 3]).sum(dim=-1)
    return result


def invert_array(a_from_b: NDArray[np.float64]) -> NDArray[np.float64]:
    """:func:`invert` for a numpy transform (4, 4)."""
    result = np.eye(4)
    result[:3, :3] = a_from_b[:3, :3].T
    result[:3, 3] = -a_from_b[:3, :3].T @ a_from_b[:3, 3]
    return result


def pose_of_quaternion(translation: ArrayLike, quaternion: ArrayLike, what: str) -> NDArray[np.float64]:
    """Transform (4, 4) of a translation (3,) m and a rotation x, y, z, w (4,), which need not have length 1.

    Raises FrameError where they are not finite or the rotation is zero; ``what`` names the file.
    """
    shift, (x, y, z, w) = np.asarray(translation, np.float64), np.asarray(quaternion, np.float64)
    length = float(np.sqrt(x * x + y * y + z * z + w * w))
    if not (np.isfinite(shift).all() and 1e-6 < length < 1e6):
        raise FrameError(f"{what}: the pose is not finite or has no rotation (tracking was lost).")
    x, y, z, w = x / length, y / length, z / length, w / length
    result = np.eye(4)
    result[:3, :3] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    result[:3, 3] = shift
    return result


def check_rigid(pose: NDArray[np.float64], what: str, tolerance: float = 1e-2) -> NDArray[np.float64]:
    """Return a (4, 4) pose with its rotation made exactly orthonormal, or raise FrameError saying what is wrong.

    ``what`` names the file; ``tolerance`` bounds the entries of R R^T - I (text files carry few digits).
    """
    pose = np.asarray(pose, dtype=np.float64)
    if pose.shape != (4, 4):
        raise FrameError(f"{what}: the pose has shape {pose.shape}, expected 4 x 4.")
    if not np.isfinite(pose).all():
        raise FrameError(f"{what}: the pose is not finite (tracking was lost); the frame is left out.")
    if np.abs(pose).max() > FARTHEST:
        raise FrameError(f"{what}: the pose holds {np.abs(pose).max():g}; it is damaged.")
    if not np.allclose(pose[3], (0, 0, 0, 1), atol=1e-6):
        raise FrameError(f"{what}: the pose's last row is {pose[3].tolist()}, expected 0 0 0 1; is it transposed?")
    rotation = pose[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > tolerance:
        raise FrameError(f"{what}: the pose is not rigid (R R^T differs from the identity by {error:.3g}).")
    if np.linalg.det(rotation) < 0:
        raise FrameError(f"{what}: the pose mirrors (determinant -1); one axis has the wrong sign.")
    u, _, vt = np.linalg.svd(rotation)
    result = np.eye(4)
    result[:3, :3] = u @ vt
    result[:3, 3] = pose[:3, 3]
    return result


def blend_poses(start: NDArray[np.float64], end: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Pose (4, 4) on the way from one to another: the place goes straight, the rotation on the shortest arc.

    ``share`` is 0 at ``start`` and 1 at ``end``.
    """
    result = np.eye(4)
    result[:3, 3] = (1 - share) * start[:3, 3] + share * end[:3, 3]
    turn = Rotation.from_matrix(start[:3, :3].T @ end[:3, :3]).as_rotvec()
    result[:3, :3] = start[:3, :3] @ Rotation.from_rotvec(share * turn).as_matrix()
    return result

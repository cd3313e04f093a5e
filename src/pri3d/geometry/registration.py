"""Depth of one camera, seen by another: forward projection with a z-buffer."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pri3d.types import Camera

SAME = 0.1  #: pixels; cameras whose images nowhere differ by more count as one


def register_depth(
    depth: NDArray[np.float32], source: Camera, target: Camera, target_from_source: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Depth (h, w) m of ``source`` -> depth (H, W) m as ``target`` sees it, 0 = invalid in both.

    Every pixel is carried over as the rectangle it covers, so that a denser target shows no cracks; where several
    surfaces meet the nearest wins. Returns the input where the cameras agree within ``SAME`` pixels.
    """
    if same_view(source, target, target_from_source):
        return depth
    source_intrinsics, target_intrinsics = np.array(source[2:]), np.array(target[2:])
    nearest = np.full((target.height, target.width), np.inf, dtype=np.float32)
    _splat(np.ascontiguousarray(depth, np.float32), source_intrinsics, target_intrinsics, target_from_source, nearest)
    return np.where(np.isfinite(nearest), nearest, np.float32(0))


def same_view(source: Camera, target: Camera, target_from_source: NDArray[np.float64]) -> bool:
    """Whether the two cameras have the same size, one place, and images that differ by at most ``SAME`` pixels."""
    if (source.width, source.height) != (target.width, target.height):
        return False
    if not np.allclose(target_from_source, np.eye(4), atol=1e-6):
        return False
    shift_u = (np.array((0, source.width)) - source.cx) / source.fx * target.fx + target.cx - (0, source.width)
    shift_v = (np.array((0, source.height)) - source.cy) / source.fy * target.fy + target.cy - (0, source.height)
    return bool(max(np.abs(shift_u).max(), np.abs(shift_v).max()) <= SAME)


@njit(cache=True, nogil=True, error_model="numpy")
def _splat(
    depth: NDArray[np.float32],
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    target_from_source: NDArray[np.float64],
    nearest: NDArray[np.float32],
) -> None:
    """Write into ``nearest`` the smallest depth of the source pixels that cover each target pixel's centre."""
    m = target_from_source
    corner = np.empty((4, 2))
    for row in range(depth.shape[0]):
        for column in range(depth.shape[1]):
            z = float(depth[row, column])
            if z <= 0.0:
                continue
            x, y = (column + 0.5 - source[2]) / source[0] * z, (row + 0.5 - source[3]) / source[1] * z
            seen = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
            for k in range(4):  # the pixel's corners, at its own depth
                x, y = (column + k % 2 - source[2]) / source[0] * z, (row + k // 2 - source[3]) / source[1] * z
                ahead = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
                if ahead <= 0.0:
                    seen = 0.0
                corner[k, 0] = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / ahead * target[0] + target[2]
                corner[k, 1] = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / ahead * target[1] + target[3]
            if seen > 0.0:
                _fill(nearest, corner, seen)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(nearest: NDArray[np.float32], corner: NDArray[np.float64], z: float) -> None:
    """Lower ``nearest`` to ``z`` at the pixels whose centres lie within the box round the corners."""
    height, width = nearest.shape
    u0, u1 = corner[:, 0].min(), corner[:, 0].max()
    v0, v1 = corner[:, 1].min(), corner[:, 1].max()
    if u1 < 0.0 or v1 < 0.0 or u0 > width or v0 > height:
        return
    for row in range(max(0, int(np.ceil(v0 - 0.5))), min(height, int(np.ceil(v1 - 0.5)))):
        for column in range(max(0, int(np.ceil(u0 - 0.5))), min(width, int(np.ceil(u1 - 0.5)))):
            nearest[row, column] = min(nearest[row, column], z)

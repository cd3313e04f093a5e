"""Ray casting without embree: every ray against blocks of triangles, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

#: triangles per block; neighbours in the list are neighbours in space, so most blocks are passed over whole
BLOCK = 32


def blocks(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lower and upper corner (B, 2, 3) of every ``BLOCK`` triangles of (F, 3, 3)."""
    starts = np.arange(0, len(corners), BLOCK)
    low = np.minimum.reduceat(corners.min(axis=1), starts)
    high = np.maximum.reduceat(corners.max(axis=1), starts)
    return np.stack((low, high), axis=1)


@numba.njit(cache=True)
def first_hits(
    corners: NDArray[np.float64],
    boxes: NDArray[np.float64],
    origins: NDArray[np.float64],
    directions: NDArray[np.float64],
) -> NDArray[np.int64]:
    """First of F triangles (F, 3, 3) along each ray (N, 3), -1 without a hit; ``boxes`` are their :func:`blocks`."""
    result = np.full(len(origins), -1, dtype=np.int64)
    for n in range(len(origins)):
        nearest = np.inf
        for b in range(len(boxes)):
            if not _crosses(boxes[b], origins[n], directions[n], nearest):
                continue
            for f in range(b * BLOCK, min((b + 1) * BLOCK, len(corners))):
                t = _meet(corners[f], origins[n], directions[n])
                if t < nearest:
                    nearest = t
                    result[n] = f
    return result


@numba.njit(cache=True, inline="always")
def _crosses(box: NDArray[np.float64], origin: NDArray[np.float64], ray: NDArray[np.float64], nearest: float) -> bool:
    """Whether the ray passes the box (slightly enlarged) before ``nearest``."""
    enter, leave = 0.0, nearest
    for axis in range(3):
        low, high = box[0, axis] - 1e-6 - origin[axis], box[1, axis] + 1e-6 - origin[axis]
        if ray[axis] == 0.0:
            if low > 0 or high < 0:
                return False
            continue
        a, b = low / ray[axis], high / ray[axis]
        enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
    return enter <= leave


@numba.njit(cache=True, inline="always")
def _meet(triangle: NDArray[np.float64], origin: NDArray[np.float64], ray: NDArray[np.float64]) -> float:
    """Ray parameter of the hit, inf without one (Moeller and Trumbore 1997)."""
    ax, ay, az = triangle[0]
    ux, uy, uz = triangle[1, 0] - ax, triangle[1, 1] - ay, triangle[1, 2] - az
    vx, vy, vz = triangle[2, 0] - ax, triangle[2, 1] - ay, triangle[2, 2] - az
    dx, dy, dz = ray
    px, py, pz = dy * vz - dz * vy, dz * vx - dx * vz, dx * vy - dy * vx
    determinant = ux * px + uy * py + uz * pz
    if abs(determinant) < 1e-15:
        return np.inf
    sx, sy, sz = origin[0] - ax, origin[1] - ay, origin[2] - az
    qx, qy, qz = sy * uz - sz * uy, sz * ux - sx * uz, sx * uy - sy * ux
    a = (sx * px + sy * py + sz * pz) / determinant
    b = (dx * qx + dy * qy + dz * qz) / determinant
    t = (vx * qx + vy * qy + vz * qz) / determinant
    inside = a >= -1e-9 and b >= -1e-9 and a + b <= 1 + 1e-9
    return t if inside and t > 1e-9 else np.inf

"""Ray casting without embree: every ray against every triangle, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True)
def first_hits(
    corners: NDArray[np.float64], origins: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.int64]:
    """First of F triangles (F, 3, 3) along each ray (N, 3), -1 without a hit (Moeller and Trumbore 1997)."""
    result = np.full(len(origins), -1, dtype=np.int64)
    for n in range(len(origins)):
        nearest = np.inf
        dx, dy, dz = directions[n]
        for f in range(len(corners)):
            ax, ay, az = corners[f, 0]
            ux, uy, uz = corners[f, 1, 0] - ax, corners[f, 1, 1] - ay, corners[f, 1, 2] - az
            vx, vy, vz = corners[f, 2, 0] - ax, corners[f, 2, 1] - ay, corners[f, 2, 2] - az
            px, py, pz = dy * vz - dz * vy, dz * vx - dx * vz, dx * vy - dy * vx
            determinant = ux * px + uy * py + uz * pz
            if abs(determinant) < 1e-15:
                continue
            sx, sy, sz = origins[n, 0] - ax, origins[n, 1] - ay, origins[n, 2] - az
            a = (sx * px + sy * py + sz * pz) / determinant
            if a < -1e-9 or a > 1 + 1e-9:
                continue
            qx, qy, qz = sy * uz - sz * uy, sz * ux - sx * uz, sx * uy - sy * ux
            b = (dx * qx + dy * qy + dz * qz) / determinant
            if b < -1e-9 or a + b > 1 + 1e-9:
                continue
            t = (vx * qx + vy * qy + vz * qz) / determinant
            if 1e-9 < t < nearest:
                nearest = t
                result[n] = f
    return result

"""Voxel sets on the host: crop the chunk a camera sees, coarsen, move. Cells are integer, see types.Voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import ConfigError
from pri3d.types import Voxels


def frustum_box(
    depth: NDArray[np.float32], intrinsics: NDArray[np.float64], world_from_camera: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Axis-aligned world box of the view frustum between the nearest and the farthest valid depth (paper section 3.2).

    depth (H, W) m, intrinsics (4,), world_from_camera (4, 4) -> lower and upper corner (3,) m, or None where no pixel
    has depth.
    """
    seen = depth[depth > 0]
    if seen.size == 0:
        return None
    height, width = depth.shape
    fx, fy, cx, cy = intrinsics
    rays = np.array([((u - cx) / fx, (v - cy) / fy, 1.0) for u in (0, width) for v in (0, height)])
    corners = np.concatenate([rays * float(z) for z in (seen.min(), seen.max())])
    world = corners @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    return world.min(axis=0), world.max(axis=0)


def crop(voxels: Voxels, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> Voxels:
    """Voxels whose cells touch the world box [lower, upper] (3,) m; the order stays."""
    low = np.floor(lower / voxels.size).astype(np.int64)
    high = np.floor(upper / voxels.size).astype(np.int64)
    start, stop = np.searchsorted(voxels.cells[:, 0], (low[0], high[0] + 1))
    cells = voxels.cells[start:stop]
    keep = np.ones(len(cells), np.bool_)
    for axis in (1, 2):  # one column at a time: several times faster than rows of two
        keep &= (cells[:, axis] >= low[axis]) & (cells[:, axis] <= high[axis])
    rows = np.flatnonzero(keep)
    color = None if voxels.color is None else voxels.color[start:stop].take(rows, axis=0)
    return Voxels(cells.take(rows, axis=0), voxels.size, color)


def coarsen(voxels: Voxels, size: float) -> Voxels:
    """Occupied cells of a grid whose edge ``size`` m is a whole multiple of the present one.

    The colour of a coarse cell is that of its first fine cell. Raises ConfigError where ``size`` is no multiple.
    """
    factor = round(size / voxels.size)
    if factor < 1 or abs(factor * voxels.size - size) > 1e-6 * size:
        raise ConfigError(
            f"voxel = {size} m is not a whole multiple of the prepared {voxels.size} m; choose one, or prepare anew."
        )
    if factor == 1:
        return voxels
    cells, first = np.unique(voxels.cells // factor, axis=0, return_index=True)
    return Voxels(cells, size, None if voxels.color is None else voxels.color[first])

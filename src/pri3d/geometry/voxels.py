"""Voxel sets on the host: crop the chunk a camera sees, coarsen, move. Cells are integer, see types.Voxels."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pri3d.errors import ConfigError, DataError
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


def crop(
    voxels: Voxels, lower: NDArray[np.float64], upper: NDArray[np.float64], origin: NDArray[np.int64] | None = None
) -> Voxels:
    """Voxels whose cells touch the world box [lower, upper] (3,) m; the order stays.

    The cells are sorted: of a large set only those between the box's sides along x are looked at. They are counted from
    the cell ``origin`` (3,), where one is given. Raises DataError where they are found to be not sorted.
    """
    low = np.floor(lower / voxels.size).astype(np.int64)
    high = np.floor(upper / voxels.size).astype(np.int64)
    start = np.zeros(3, np.int64) if origin is None else origin
    rows, cells, sorted_cells = _inside(voxels.cells, low, high, start)
    if not sorted_cells:
        raise DataError("the cells of a surface are not in their order: its file is damaged. Prepare the scene again.")
    return Voxels(cells, voxels.size, None if voxels.color is None else voxels.color.take(rows, axis=0))


@njit(cache=True, nogil=True, error_model="numpy")
def _inside(
    cells: NDArray[np.int32], low: NDArray[np.int64], high: NDArray[np.int64], origin: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], bool]:
    """Rows of the sorted cells (V, 3) in [low, high], those cells from ``origin`` on, and whether they are sorted."""
    start, end = _first(cells, low[0]), _first(cells, high[0] + 1)
    rows = np.empty(end - start, np.int64)
    kept = np.empty((end - start, 3), np.int32)
    count = 0
    for row in range(start, end):
        x, y, z = cells[row, 0], cells[row, 1], cells[row, 2]
        if not low[0] <= x <= high[0]:
            return rows[:0], kept[:0], False
        if low[1] <= y <= high[1] and low[2] <= z <= high[2]:
            rows[count] = row
            kept[count, 0] = x - origin[0]
            kept[count, 1] = y - origin[1]
            kept[count, 2] = z - origin[2]
            count += 1
    return rows[:count], kept[:count], True


@njit(cache=True, nogil=True, error_model="numpy")
def _first(cells: NDArray[np.int32], x: int) -> int:
    """First row whose x is ``x`` or more."""
    low, high = 0, len(cells)
    while low < high:
        middle = (low + high) // 2
        if cells[middle, 0] < x:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True, error_model="numpy")
def put_numbered(cells: NDArray[np.int32], number: int, rows: NDArray[np.int32]) -> None:
    """Fill ``rows`` (V, 4) with ``number`` and the cells (V, 3); ten times as fast as two assignments."""
    for k in range(len(cells)):
        rows[k, 0] = number
        rows[k, 1], rows[k, 2], rows[k, 3] = cells[k, 0], cells[k, 1], cells[k, 2]


def coarsen(voxels: Voxels, size: float) -> Voxels:
    """Occupied cells of a grid whose edge ``size`` m is a whole multiple of the present one.

    The colour of a coarse cell is that of its first fine cell. Raises ConfigError where ``size`` is no multiple.
    """
    factor = round(size / voxels.size)
    if factor < 1 or abs(factor * voxels.size - size) > 1e-6 * size:
        raise ConfigError(
            f"voxel = {size} m is not a whole multiple of the prepared {voxels.size} m; choose one, or prepare again."
        )
    if factor == 1:
        return voxels
    cells, first = np.unique(voxels.cells // factor, axis=0, return_index=True)
    return Voxels(cells, size, None if voxels.color is None else voxels.color[first])

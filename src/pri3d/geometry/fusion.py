"""Depth images or triangles -> the occupied cells of a surface.

Fusion is a truncated signed distance (Curless and Levoy 1996) kept only in blocks of 8 x 8 x 8 cells near the measured
points. The surface is where the distance changes its sign, and both cells of the change count: valid depth pixels then
find a cell's centre within a cell's size far more often than with the nearer cell alone.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pri3d.types import Voxels

BLOCK = 8  #: cells along a block's edge
TRUNCATION = 4  #: cells; how far from the surface distances are kept: fewer lose what is seen at a grazing angle
_HALF = BLOCK // 2
_BITS = 20  # of a coordinate in a key on either side of zero; a mesh packs cells: 2^20 of 2 cm are 21 km
REACH = 1 << (_BITS - 1)  #: cells from the origin within which cameras and vertices must lie; what they see may exceed
_STRIDE = 4  # every 4th pixel finds a frame's blocks: at 6 m and 500 px focal length that is 5 cm of a block's 16


def fuse_depth(
    depth: NDArray[np.uint16],
    intrinsics: NDArray[np.float64],
    world_from_camera: NDArray[np.float64],
    size: float,
) -> Voxels:
    """Surface cells of edge ``size`` m seen in N depth images.

    depth (N, h, w) millimetres, 0 = invalid; intrinsics (N, 4) pixels of (h, w); world_from_camera (N, 4, 4), the
    camera centres within ``REACH`` cells of the origin.
    """
    lists = [_frame_blocks(d, k, p, size) for d, k, p in zip(depth, intrinsics, world_from_camera, strict=True)]
    blocks = np.unique(np.concatenate([np.zeros(0, np.int64), *lists]))
    distance = np.zeros((len(blocks), BLOCK, BLOCK, BLOCK), np.float32)
    weight = np.zeros(distance.shape, np.uint16)
    origin = _unpack(blocks) * BLOCK
    for k, keys in enumerate(lists):
        rows = np.searchsorted(blocks, keys)
        _integrate(distance, weight, origin, rows, depth[k], intrinsics[k], world_from_camera[k], size)
    return Voxels(_crossings(distance, weight, blocks, origin), size)


def voxelise_triangles(vertices: NDArray[np.float64], triangles: NDArray[np.int64], size: float) -> Voxels:
    """Cells of edge ``size`` m that a triangle mesh passes through.

    vertices (V, 3) world metres within ``REACH`` cells of the origin, triangles (T, 3) vertex rows. Triangles are
    halved until no edge is longer than a third of a cell and each part counts at its centre, so that only cells cut by
    a sliver are missed.
    """
    corners = np.asarray(vertices, np.float64)[triangles]
    return Voxels(_unpack(np.unique(_triangle_cells(corners, size))).astype(np.int32), size)


def color_cells(
    voxels: Voxels,
    color: list[NDArray[np.uint8]],
    depth: list[NDArray[np.uint16]],
    intrinsics: NDArray[np.float64],
    world_from_camera: NDArray[np.float64],
) -> Voxels:
    """Give every cell the mean colour of the pixels that see it; 0, 0, 0 where none does.

    color: N images (H, W, 3); depth: N images (H, W) millimetres; intrinsics (N, 4) pixels of (H, W); poses (N, 4, 4).
    A pixel sees a cell where its depth lies within one and a half cells of the cell's centre.
    """
    total = np.zeros((len(voxels.cells), 4), np.float32)
    for c, d, k, pose in zip(color, depth, intrinsics, world_from_camera, strict=True):
        _add_color(total, voxels.cells, voxels.size, c, d, k, pose)
    mean = total[:, :3] / np.maximum(total[:, 3:], 1)
    return voxels._replace(color=np.rint(mean).astype(np.uint8))


@njit(cache=True, nogil=True, error_model="numpy")
def _triangle_cells(corners: NDArray[np.float64], size: float) -> NDArray[np.int64]:
    """Keys of the cells that triangles (T, 3, 3) pass through, in no order, some several times."""
    found = [np.int64(0) for _ in range(0)]
    last = np.int64(-1) << 62
    stack = np.empty((128, 3, 3))  # halves yet to do, at most two for every doubling of length
    for triangle in range(len(corners)):
        stack[0] = corners[triangle]
        n = 1
        while n > 0:
            n -= 1
            part = stack[n]
            first, longest = 0, 0.0
            for k in range(3):
                length = 0.0
                for axis in range(3):
                    length += (part[k, axis] - part[(k + 1) % 3, axis]) ** 2
                if length > longest:
                    first, longest = k, length
            if longest <= (size / 3) ** 2:
                key = np.int64(0)
                for axis in range(3):
                    centre = (part[0, axis] + part[1, axis] + part[2, axis]) / 3
                    key = (key << (_BITS + 1)) + np.int64(np.floor(centre / size))
                if key != last:  # neighbouring parts mostly share their cell
                    found.append(key)
                last = key
                continue
            second = (first + 1) % 3
            stack[n + 1] = part
            for axis in range(3):
                middle = (part[first, axis] + part[second, axis]) / 2
                stack[n, first, axis] = middle
                stack[n + 1, second, axis] = middle
            n += 2
    return np.array(found, np.int64) if found else np.empty(0, np.int64)


def _pack(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cells (n, 3) within +-2^20 -> keys (n,) that sort as the cells do by x, y, z."""
    key: NDArray[np.int64] = (cells[:, 0] << (2 * _BITS + 2)) + (cells[:, 1] << (_BITS + 1)) + cells[:, 2]
    return key


def _unpack(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Inverse of :func:`_pack`."""
    half = 1 << _BITS
    z = ((keys + half) & (2 * half - 1)) - half
    rest = (keys - z) >> (_BITS + 1)
    y = ((rest + half) & (2 * half - 1)) - half
    return np.stack(((rest - y) >> (_BITS + 1), y, z), axis=1)


def _frame_blocks(
    depth: NDArray[np.uint16], intrinsics: NDArray[np.float64], pose: NDArray[np.float64], size: float
) -> NDArray[np.int64]:
    """Keys of the blocks within the truncation of a frame's points."""
    start = _STRIDE // 2
    v, u = np.nonzero(depth[start::_STRIDE, start::_STRIDE])
    z = depth[start::_STRIDE, start::_STRIDE][v, u] * 1e-3
    fx, fy, cx, cy = intrinsics
    x = (u * _STRIDE + start + 0.5 - cx) / fx * z
    y = (v * _STRIDE + start + 0.5 - cy) / fy * z
    world = np.stack((x, y, z), axis=1) @ pose[:3, :3].T + pose[:3, 3]
    halves = _unpack(np.unique(_pack(np.floor(world / (size * _HALF)).astype(np.int64)))) * _HALF
    low, high = halves - TRUNCATION, halves + _HALF - 1 + TRUNCATION
    corners = [np.where(np.array(bits), high, low) // BLOCK for bits in np.ndindex(2, 2, 2)]
    return np.unique(_pack(np.concatenate(corners)))


@njit(cache=True, nogil=True, error_model="numpy")
def _integrate(
    distance: NDArray[np.float32],
    weight: NDArray[np.uint16],
    origin: NDArray[np.int64],
    rows: NDArray[np.int64],
    depth: NDArray[np.uint16],
    intrinsics: NDArray[np.float64],
    pose: NDArray[np.float64],
    size: float,
) -> None:
    """Average one depth image into the blocks ``rows``: distance along z in units of the truncation, at most 1."""
    height, width = depth.shape
    truncation = TRUNCATION * size
    point = np.empty(3)
    for row in rows:
        for i, j, k in np.ndindex(BLOCK, BLOCK, BLOCK):
            for axis in range(3):
                point[axis] = 0.0
            for axis, step in enumerate((i, j, k)):
                offset = (origin[row, axis] + step + 0.5) * size - pose[axis, 3]
                for out in range(3):
                    point[out] += pose[axis, out] * offset
            z = point[2]
            if z <= 0.0:
                continue
            u = point[0] / z * intrinsics[0] + intrinsics[2]
            v = point[1] / z * intrinsics[1] + intrinsics[3]
            if u < 0.0 or v < 0.0 or u >= width or v >= height:
                continue
            measured = depth[int(v), int(u)]
            signed = measured * 1e-3 - z
            if measured == 0 or signed < -truncation:
                continue
            count = weight[row, i, j, k]
            if count < 65535:
                distance[row, i, j, k] += (min(1.0, signed / truncation) - distance[row, i, j, k]) / (count + 1.0)
                weight[row, i, j, k] = count + 1


def _crossings(
    distance: NDArray[np.float32], weight: NDArray[np.uint16], blocks: NDArray[np.int64], origin: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Cells (n, 3) on both sides of a sign change between neighbours that are both measured near the surface."""
    near = (weight > 0) & (np.abs(distance) < 1)
    inside = distance < 0
    found = np.zeros(distance.shape, bool)
    for axis in range(3):
        step = np.zeros((1, 3), np.int64)
        step[0, axis] = 1
        keys = _pack(_unpack(blocks) + step)
        after = np.minimum(np.searchsorted(blocks, keys), len(blocks) - 1)
        here = np.nonzero(blocks[after] == keys)[0]  # blocks that have a neighbour along the axis
        near_t, inside_t, found_t = (np.moveaxis(a, axis + 1, 1) for a in (near, inside, found))
        change = near_t[:, :-1] & near_t[:, 1:] & (inside_t[:, :-1] != inside_t[:, 1:])
        found_t[:, :-1] |= change
        found_t[:, 1:] |= change
        last, first = here, after[here]
        change = near_t[last, -1] & near_t[first, 0] & (inside_t[last, -1] != inside_t[first, 0])
        found_t[last, -1] |= change
        found_t[first, 0] |= change  # every block is the neighbour of at most one: no row is written twice
    row, i, j, k = np.nonzero(found)
    return _unpack(np.sort(_pack(origin[row] + np.stack((i, j, k), axis=1)))).astype(np.int32)


@njit(cache=True, nogil=True, error_model="numpy")
def _add_color(
    total: NDArray[np.float32],
    cells: NDArray[np.int32],
    size: float,
    color: NDArray[np.uint8],
    depth: NDArray[np.uint16],
    intrinsics: NDArray[np.float64],
    pose: NDArray[np.float64],
) -> None:
    """Add to ``total`` (V, 4) the colour of the pixel that sees each cell, and 1."""
    height, width = depth.shape
    offset = np.empty(3)
    for n in range(len(cells)):
        for axis in range(3):
            offset[axis] = (cells[n, axis] + 0.5) * size - pose[axis, 3]
        z = pose[0, 2] * offset[0] + pose[1, 2] * offset[1] + pose[2, 2] * offset[2]
        if z <= 0.0:
            continue
        x = pose[0, 0] * offset[0] + pose[1, 0] * offset[1] + pose[2, 0] * offset[2]
        y = pose[0, 1] * offset[0] + pose[1, 1] * offset[1] + pose[2, 1] * offset[2]
        u, v = x / z * intrinsics[0] + intrinsics[2], y / z * intrinsics[1] + intrinsics[3]
        if u < 0.0 or v < 0.0 or u >= width or v >= height:
            continue
        row, column = int(v), int(u)
        if depth[row, column] == 0 or abs(depth[row, column] * 1e-3 - z) > 1.5 * size:
            continue
        for channel in range(3):
            total[n, channel] += color[row, column, channel]
        total[n, 3] += 1

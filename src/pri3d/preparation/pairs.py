"""Which pairs of frames see the same surface: a voxel-set estimate of all, the exact overlap of those worth it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from pri3d.preparation.overlap import DepthStack, Mode, overlap, query_step, tile_ranges
from pri3d.store import PairTable

HOPELESS = 0.05  #: pairs whose estimate lies below are not measured
NEAR_THRESHOLD = 0.01  #: pairs this near the threshold are measured on a denser grid, see :func:`measure`
_CHUNK = 256  # pairs a thread takes at a time


def estimate(stack: DepthStack, cell: float = 0.04, mode: Mode = "paper") -> NDArray[np.float32]:
    """Overlap (N, N) of all frames from shared cells of ``cell`` metres, off by about 0.006; diagonal 1.

    A pixel, every second one at 640 x 480, corresponds where the other frame occupies its cell. The cell is twice the
    match distance: then what the cells' borders miss and what their corners add cancel.
    """
    counts = _cell_counts(stack, cell)
    occupied = counts.copy()
    occupied.data = np.ones_like(occupied.data)
    shared = np.asarray((counts @ occupied.T).todense(), dtype=np.float32)  # [a, b]: pixels of a in b's cells
    total = np.maximum(np.diagonal(shared), 1)
    if mode == "max":
        shares = shared / total[:, None]
        return np.maximum(shares, shares.T)
    both: NDArray[np.float32] = (shared + shared.T) / (total[:, None] + total[None, :])
    return both


def measure(
    stack: DepthStack,
    pairs: NDArray[np.int32],
    *,
    distance: float,
    min_overlap: float,
    mode: Mode = "paper",
    relative: bool = False,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> NDArray[np.float32]:
    """Exact-window overlap (P,) of ``pairs`` (P, 2) on a grid of about 4800 pixels a frame.

    While a pair is within ``NEAR_THRESHOLD`` of ``min_overlap`` it is measured again with half the step, and the band
    round the threshold shrinks to a third, as the sampling error does. ``distance`` in metres, or a share of the depth
    where ``relative``; ``progress`` is told pairs done and in all.
    """
    tiles = tile_ranges(stack.depth)
    height, width = stack.depth.shape[1:]
    step = query_step(height, width)

    def decide(i: int, j: int) -> float:
        spacing, band = step, NEAR_THRESHOLD
        value = overlap(stack, tiles, i, j, distance=distance, step=spacing, mode=mode, relative=relative)
        while spacing > 1 and abs(value - min_overlap) < band:
            spacing, band = spacing // 2, band / 3
            value = overlap(stack, tiles, i, j, distance=distance, step=spacing, mode=mode, relative=relative)
        return value

    result: list[float] = []
    progress(0, len(pairs))
    parts = np.array_split(pairs, max(1, -(-len(pairs) // _CHUNK)))
    with ThreadPoolExecutor(threads) as pool:  # the kernel releases the interpreter
        for values in pool.map(lambda part: [decide(i, j) for i, j in part], parts):
            result += values
            progress(len(result), len(pairs))
    return np.array(result, dtype=np.float32)


def mine(
    stack: DepthStack,
    *,
    distance: float = 0.02,
    min_overlap: float = 0.3,
    mode: Mode = "paper",
    relative: bool = False,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[NDArray[np.int32], NDArray[np.float32], float]:
    """Pairs (P, 2), i < j, that overlap by ``min_overlap`` or more, their overlap (P,), and the best overlap found.

    ``distance`` is the match distance in metres, or a share of the depth where ``relative``; the
    best overlap tells how far off a scene without pairs is.
    """
    # Cells of one size stand for distances that grow with the depth: those of nearly the farthest miss no pair.
    reach = distance * _far_depth(stack) if relative else distance
    guess = estimate(stack, cell=2 * reach, mode=mode)
    rows, columns = np.triu_indices(len(stack.depth), k=1)
    worth = guess[rows, columns] >= min(HOPELESS, min_overlap / 4)
    pairs = np.stack((rows, columns), axis=1).astype(np.int32)[worth]
    values = measure(
        stack,
        pairs,
        distance=distance,
        min_overlap=min_overlap,
        mode=mode,
        relative=relative,
        threads=threads,
        progress=progress,
    )
    kept = values >= min_overlap
    return pairs[kept], values[kept], float(values.max(initial=0.0))


def pair_table(
    scene: str,
    rows: NDArray[np.int32],
    pairs: NDArray[np.int32],
    overlaps: NDArray[np.float32],
    world_from_camera: NDArray[np.float64],
) -> PairTable:
    """Pairs (P, 2) of mined frames -> the store's table.

    ``rows`` (N,) are the mined frames' rows in the scene's frame table, ``world_from_camera`` (N, 4, 4) their poses.
    """
    first, second = world_from_camera[pairs[:, 0]], world_from_camera[pairs[:, 1]]
    baseline = np.linalg.norm(first[:, :3, 3] - second[:, :3, 3], axis=1)
    cosine = np.einsum("pi,pi->p", first[:, :3, 2], second[:, :3, 2])
    angle = np.arccos(np.clip(cosine, -1, 1))
    i, j = rows[pairs[:, 0]].astype(np.int32), rows[pairs[:, 1]].astype(np.int32)
    names = np.full(len(pairs), scene)
    return PairTable(names, i, j, overlaps, baseline.astype(np.float32), angle.astype(np.float32))


def _far_depth(stack: DepthStack) -> float:
    """Depth in metres that nine tenths of the valid pixels do not exceed."""
    some = stack.depth[:, ::4, ::4]
    return float(np.quantile(some[some > 0], 0.9)) / 1000 if some.any() else 1.0


def _cell_counts(stack: DepthStack, cell: float) -> sparse.csr_array:
    """How many of the asked pixels of frame n lie in which cell: sparse (N, cells)."""
    height, width = stack.depth.shape[1:]
    step = query_step(height, width, queries=76800)  # fewer leave cells empty and the estimate low
    keys = [_cell_keys(depth, k, pose, cell, step) for depth, k, pose in zip(*stack, strict=True)]
    found = [np.unique(key, return_counts=True) for key in keys]
    _, columns = np.unique(np.concatenate([unique for unique, _ in found]), return_inverse=True)
    counts = np.concatenate([count for _, count in found]).astype(np.float32)
    starts = np.concatenate(([0], np.cumsum([len(unique) for unique, _ in found])))
    return sparse.csr_array((counts, columns, starts), shape=(len(keys), int(columns.max(initial=0)) + 1))


@njit(cache=True, nogil=True, error_model="numpy")
def _cell_keys(
    depth: NDArray[np.uint16], intrinsics: NDArray[np.float64], pose: NDArray[np.float64], cell: float, step: int
) -> NDArray[np.int64]:
    """One number for the world cell of every valid ``step``-th pixel; injective within 2^20 cells of the origin."""
    height, width = depth.shape
    keys = np.empty((height // step + 1) * (width // step + 1), np.int64)
    n = 0
    for row in range(step // 2, height, step):
        for column in range(step // 2, width, step):
            z = depth[row, column] * 1e-3
            if z == 0.0:
                continue
            x, y = (column + 0.5 - intrinsics[2]) / intrinsics[0] * z, (row + 0.5 - intrinsics[3]) / intrinsics[1] * z
            key = np.int64(0)
            for axis in range(3):
                world = pose[axis, 0] * x + pose[axis, 1] * y + pose[axis, 2] * z + pose[axis, 3]
                key = (key << 21) + np.int64(np.floor(world / cell))
            keys[n] = key
            n += 1
    return keys[:n]

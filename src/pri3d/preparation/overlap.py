"""How much of the same surface two frames see (paper section 3.1), exactly and fast.

The paper's overlap of frames a and b is the number of corresponding pixels in both over the number of valid pixels in
both; a pixel of a corresponds where some back-projected pixel of b lies within ``distance`` (2 cm) of its point.

Exact window: a pixel of b within ``distance`` R of a point (X, Y, Z) of camera b projects within
``f R sqrt(1 + (X / Z)^2) / (Z - R)`` pixels of the point's own projection, so the nearest neighbour need only be sought
there; tiles whose depth range cannot reach the point are passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from pri3d.geometry.pose import invert_array
from pri3d.store import PairTable

Mode = Literal["paper", "max"]
HOPELESS = 0.05  #: pairs whose estimate lies below are not measured
PAPER_OVERLAP = 0.3  #: of the pairs that the paper trains on (section 4); presets filter by it
NEAR_THRESHOLD = 0.01  #: pairs this near the threshold are measured on a denser grid, see :func:`measure_overlaps`
_CHUNK = 256  # pairs a thread takes at a time
_ASKED = 600  # pixels of a frame that are reprojected for :func:`find_better_centre`
_STEPS = (1, 2, 4)  # from a frame to those it is compared with there
_COMPARED = 60  # pairs of a scene that are
_FEWEST = 6  # below which nothing is said
_TURNED = 40.0  # degrees beyond which two frames hardly overlap
_SHARP = 0.02  # relative depth residual at which a point counts half
_CENTRES = (-0.06, -0.02, 0.02, 0.06)  # fractions of the width
_BETTER, _CERTAIN = 1.04, 4.0  # factor and standard errors; of right recordings it is 1.00 at most
TILE = 8  # pixels; edge of the tiles that keep their nearest and farthest depth


class DepthStack(NamedTuple):
    """N registered depth images of one scene, compact enough to stay in memory."""

    depth: NDArray[np.uint16]  #: (N, h, w) millimetres, 0 = invalid
    intrinsics: NDArray[np.float64]  #: (N, 4) fx, fy, cx, cy in pixels of (h, w)
    world_from_camera: NDArray[np.float64]  #: (N, 4, 4)


class TileRange(NamedTuple):
    """Nearest and farthest valid depth of every tile of N images."""

    near: NDArray[np.uint16]  #: (N, ceil(h / TILE), ceil(w / TILE)) millimetres, 65535 where nothing is valid
    far: NDArray[np.uint16]  #: the same shape, millimetres, 0 where nothing is valid


def tile_ranges(depth: NDArray[np.uint16]) -> TileRange:
    """Depth range of the tiles of ``depth`` (N, h, w) in millimetres, 0 = invalid."""
    n, h, w = depth.shape
    tall, wide = -(-h // TILE), -(-w // TILE)
    near = np.empty((n, tall, wide), np.uint16)
    far = np.empty((n, tall, wide), np.uint16)
    for k in range(n):
        padded = np.pad(depth[k], ((0, tall * TILE - h), (0, wide * TILE - w)))
        tiles = padded.reshape(tall, TILE, wide, TILE)
        far[k] = tiles.max(axis=(1, 3))
        near[k] = np.where(tiles > 0, tiles, np.uint16(65535)).min(axis=(1, 3))
    return TileRange(near, far)


def overlap(
    stack: DepthStack,
    tiles: TileRange,
    i: int,
    j: int,
    *,
    distance: float,
    step: int,
    mode: Mode = "paper",
    relative: bool = False,
) -> float:
    """Overlap 0..1 of frames i and j, asking every ``step``-th pixel in both axes; exact for the pixels asked.

    ``distance`` is the match distance in metres, or, where ``relative``, a share of the asked pixel's depth. Mode
    ``paper``: corresponding pixels of both over valid pixels of both (section 3.1); ``max``: the larger of the two
    frames' shares, as the authors' code has it.
    """
    shares, weights = [], []
    for a, b in ((i, j), (j, i)):
        b_from_a = invert_array(stack.world_from_camera[b]) @ stack.world_from_camera[a]
        source, target = (stack.depth[a], stack.intrinsics[a]), (stack.depth[b], stack.intrinsics[b])
        hits, asked = _hits(*source, b_from_a, *target, tiles.near[b], tiles.far[b], distance, step, relative)
        shares.append(hits / max(asked, 1))
        weights.append(asked)
    if mode == "max":
        return max(shares)
    return float(np.dot(shares, weights) / max(sum(weights), 1))


def query_step(height: int, width: int, queries: int = 4800) -> int:
    """Step in both axes that asks at least ``queries`` pixels of an image: 8 at 640 x 480."""
    return max(1, int(np.sqrt(height * width / queries)))


@njit(cache=True, nogil=True, error_model="numpy")
def _hits(
    depth_a: NDArray[np.uint16],
    intrinsics_a: NDArray[np.float64],
    b_from_a: NDArray[np.float64],
    depth_b: NDArray[np.uint16],
    intrinsics_b: NDArray[np.float64],
    near: NDArray[np.uint16],
    far: NDArray[np.uint16],
    distance: float,
    step: int,
    relative: bool,
) -> tuple[int, int]:
    """Pixels of a, every ``step``-th, that have a point of b within ``distance``; and how many were valid.

    An even step has no middle pixel: the two beside it take turns, else one side of the image would weigh more.
    """
    hits, asked = 0, 0
    point = np.empty(3)
    height, width = depth_a.shape
    for k in range(-(-height // step)):
        row = k * step + (step - k % 2) // 2
        for m in range(-(-width // step)):
            column = m * step + (step - (k + m) % 2) // 2
            if row >= height or column >= width or depth_a[row, column] == 0:
                continue
            z = depth_a[row, column] * 1e-3
            asked += 1
            x = (column + 0.5 - intrinsics_a[2]) / intrinsics_a[0] * z
            y = (row + 0.5 - intrinsics_a[3]) / intrinsics_a[1] * z
            for i in range(3):
                point[i] = b_from_a[i, 0] * x + b_from_a[i, 1] * y + b_from_a[i, 2] * z + b_from_a[i, 3]
            reach = distance * z if relative else distance
            hits += _has_neighbour(point, depth_b, intrinsics_b, near, far, reach)
    return hits, asked


@njit(cache=True, nogil=True, error_model="numpy")
def _span(x: float, z: float, focal: float, centre: float, distance: float, size: int) -> tuple[int, int]:
    """First and last column (or row) whose pixel centre may hold a point within ``distance`` of (x, z)."""
    if z <= distance:  # the point touches the camera's plane: any pixel may be near it
        return 0, size - 1
    middle = x / z * focal + centre - 0.5
    reach = focal * distance * np.sqrt(1.0 + (x / z) ** 2) / (z - distance)
    # Clipped before the conversion: far outside the image the numbers do not fit an integer.
    return int(np.ceil(max(middle - reach, 0.0))), int(np.floor(min(max(middle + reach, -1.0), size - 1.0)))


@njit(cache=True, nogil=True, error_model="numpy")
def _has_neighbour(
    point: NDArray[np.float64],
    depth: NDArray[np.uint16],
    intrinsics: NDArray[np.float64],
    near: NDArray[np.uint16],
    far: NDArray[np.uint16],
    distance: float,
) -> int:
    """1 where some pixel's point lies within ``distance`` of ``point`` (camera frame), else 0."""
    z = point[2]
    if z <= -distance:
        return 0
    left, right = _span(point[0], z, intrinsics[0], intrinsics[2], distance, depth.shape[1])
    top, bottom = _span(point[1], z, intrinsics[1], intrinsics[3], distance, depth.shape[0])
    if left > right or top > bottom:
        return 0
    middle_v, middle_u = (top + bottom) // 2, (left + right) // 2
    if _scan(point, depth, intrinsics, distance, middle_u, middle_u, middle_v, middle_v):
        return 1
    lowest, highest = (z - distance) * 1e3, (z + distance) * 1e3
    for tile_v in range(top // TILE, bottom // TILE + 1):
        for tile_u in range(left // TILE, right // TILE + 1):
            if near[tile_v, tile_u] > highest or far[tile_v, tile_u] < lowest:
                continue
            u0, u1 = max(left, tile_u * TILE), min(right, tile_u * TILE + TILE - 1)
            v0, v1 = max(top, tile_v * TILE), min(bottom, tile_v * TILE + TILE - 1)
            if _scan(point, depth, intrinsics, distance, u0, u1, v0, v1):
                return 1
    return 0


@njit(cache=True, nogil=True, error_model="numpy")
def _scan(
    point: NDArray[np.float64],
    depth: NDArray[np.uint16],
    intrinsics: NDArray[np.float64],
    distance: float,
    left: int,
    right: int,
    top: int,
    bottom: int,
) -> bool:
    """Whether a pixel of the window [left, right] x [top, bottom] has a point within ``distance`` of ``point``."""
    limit = distance * distance
    per_u, per_v = 1.0 / intrinsics[0], 1.0 / intrinsics[1]
    for row in range(top, bottom + 1):
        ray_v = (row + 0.5 - intrinsics[3]) * per_v
        for column in range(left, right + 1):
            z = depth[row, column] * 1e-3
            dz = z - point[2]
            if abs(dz) > distance or z == 0.0:
                continue
            dx = (column + 0.5 - intrinsics[2]) * per_u * z - point[0]
            dy = ray_v * z - point[1]
            if dx * dx + dy * dy + dz * dz <= limit:
                return True
    return False


def estimate_overlaps(stack: DepthStack, cell: float = 0.04, mode: Mode = "paper") -> NDArray[np.float32]:
    """Overlap (N, N) of all frames from shared cells of ``cell`` metres, off by about 0.006; diagonal 1.

    A pixel, every second one at 640 x 480, corresponds where the other frame occupies its cell. The cell is twice the
    match distance: then what the cells' borders miss and what their corners add cancel.
    """
    height, width = stack.depth.shape[1:]
    step = query_step(height, width, queries=76800)  # fewer leave cells empty and the estimate low
    keys = [_cell_keys(depth, k, pose, cell, step) for depth, k, pose in zip(*stack, strict=True)]
    found = [np.unique(key, return_counts=True) for key in keys]
    _, columns = np.unique(np.concatenate([unique for unique, _ in found]), return_inverse=True)
    values = np.concatenate([count for _, count in found]).astype(np.float32)
    starts = np.concatenate(([0], np.cumsum([len(unique) for unique, _ in found])))
    shape = len(keys), int(columns.max(initial=0)) + 1
    counts = sparse.csr_array((values, columns, starts), shape=shape)  # asked pixels of a frame in a cell
    occupied = counts.copy()
    occupied.data = np.ones_like(occupied.data)
    shared = np.asarray((counts @ occupied.T).todense(), dtype=np.float32)  # [a, b]: pixels of a in b's cells
    total = np.maximum(np.diagonal(shared), 1)
    if mode == "max":
        shares = shared / total[:, None]
        return np.maximum(shares, shares.T)
    both: NDArray[np.float32] = (shared + shared.T) / (total[:, None] + total[None, :])
    return both


def measure_overlaps(
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

    While a pair is within ``NEAR_THRESHOLD`` of ``min_overlap``, or of the paper's 0.3 that training asks for later, it
    is measured again with half the step, and the band round the threshold shrinks to a third, as the sampling error
    does. ``distance`` in metres, or a fraction of the depth where ``relative``; ``progress`` is told pairs done and in
    all.
    """
    tiles = tile_ranges(stack.depth)
    height, width = stack.depth.shape[1:]
    step = query_step(height, width)
    thresholds = (min_overlap, max(min_overlap, PAPER_OVERLAP))

    def measure(part: NDArray[np.int32]) -> list[float]:
        values = []
        for i, j in part:
            spacing, band = step, NEAR_THRESHOLD
            value = overlap(stack, tiles, i, j, distance=distance, step=spacing, mode=mode, relative=relative)
            while spacing > 1 and min(abs(value - threshold) for threshold in thresholds) < band:
                spacing, band = spacing // 2, band / 3
                value = overlap(stack, tiles, i, j, distance=distance, step=spacing, mode=mode, relative=relative)
            values.append(value)
        return values

    result: list[float] = []
    progress(0, len(pairs))
    parts = np.array_split(pairs, max(1, -(-len(pairs) // _CHUNK)))
    with ThreadPoolExecutor(threads) as pool:  # the kernel releases the interpreter
        for values in pool.map(measure, parts):
            result += values
            progress(len(result), len(pairs))
    return np.array(result, dtype=np.float32)


def mine_pairs(
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
    reach = distance
    if relative:
        some = stack.depth[:, ::4, ::4]
        reach *= float(np.quantile(some[some > 0], 0.9)) / 1000 if some.any() else 1.0
    guess = estimate_overlaps(stack, cell=2 * reach, mode=mode)
    rows, columns = np.triu_indices(len(stack.depth), k=1)
    worth = guess[rows, columns] >= min(HOPELESS, min_overlap / 4)
    pairs = np.stack((rows, columns), axis=1).astype(np.int32)[worth]
    values = measure_overlaps(
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


class BetterCentre(NamedTuple):
    """A principal point with which the frames of a scene agree better than with the one stated."""

    right: float  #: pixels of the depth image by which it lies to the right
    down: float  #: the same, down
    gain: float  #: factor by which the frames agree better


def find_better_centre(stack: DepthStack) -> BetterCentre | None:
    """Principal point that neighbouring frames surely agree better with, None where the stated one is as good.

    Points of a frame are reprojected into its neighbours and compared with the depth there, once as stated and with the
    centre of all frames moved. On 26 right recordings (docs/results/check.md) no move makes frames agree better, on
    centres that are 2 % of the width off they agree 1.07 to 1.17 times as well with it taken back.
    """
    count = len(stack.depth)
    pairs = np.array([(k, k + step) for step in _STEPS for k in range(count - step)], np.int64).reshape(-1, 2)
    forward = stack.world_from_camera[:, :3, 2]
    cosine = np.einsum("pi,pi->p", forward[pairs[:, 0]], forward[pairs[:, 1]])
    pairs = pairs[cosine > np.cos(np.radians(_TURNED))]
    if len(pairs) < _FEWEST:
        return None
    pairs = pairs[np.linspace(0, len(pairs) - 1, min(len(pairs), _COMPARED)).astype(np.int64)]
    plain, width = _agreement(stack, pairs, 0.0, 0.0), stack.depth.shape[2]
    found = None
    for move in _CENTRES:
        for right, down in ((move * width, 0.0), (0.0, move * width)):
            gain = _agreement(stack, pairs, right, down) - plain
            factor = 1 + float(gain.mean()) / max(float(plain.mean()), 1e-9)
            sure = gain.mean() > _CERTAIN * gain.std() / np.sqrt(len(gain))
            if factor > max(_BETTER, found.gain if found else 0.0) and sure:
                found = BetterCentre(right, down, factor)
    return found


def _agreement(stack: DepthStack, pairs: NDArray[np.int64], right: float, down: float) -> NDArray[np.float64]:
    """How well (P,), 0..1, points of frames ``pairs[:, 0]`` fall on the depth of ``pairs[:, 1]``, centres moved."""
    height, width = stack.depth.shape[1:]
    first, second = pairs.T
    k = stack.intrinsics + np.array((0.0, 0.0, right, down))
    step = query_step(height, width, _ASKED)
    rows, columns = np.arange(step // 2, height, step), np.arange(step // 2, width, step)
    z = stack.depth[first[:, None, None], rows[:, None], columns].reshape(len(pairs), -1) * 1e-3
    x = (np.tile(columns + 0.5, len(rows)) - k[first, 2, None]) / k[first, 0, None] * z
    y = (np.repeat(rows + 0.5, len(columns)) - k[first, 3, None]) / k[first, 1, None] * z
    b_from_a = np.linalg.inv(stack.world_from_camera[second]) @ stack.world_from_camera[first]
    points = np.stack((x, y, z), axis=-1) @ b_from_a[:, :3, :3].transpose(0, 2, 1) + b_from_a[:, None, :3, 3]
    seen = (z > 0) & (points[..., 2] > 1e-3)
    ahead = np.where(seen, points[..., 2], 1.0)
    u = np.where(seen, points[..., 0] / ahead * k[second, 0, None] + k[second, 2, None], -1.0)
    v = np.where(seen, points[..., 1] / ahead * k[second, 1, None] + k[second, 3, None], -1.0)
    inside = (u >= 0) & (v >= 0) & (u < width) & (v < height)
    at = np.where(inside, v, 0).astype(np.int64), np.where(inside, u, 0).astype(np.int64)
    measured = stack.depth[second[:, None], at[0], at[1]] * 1e-3
    landed = inside & (measured > 0)
    residual = np.where(landed, ahead / np.where(landed, measured, 1.0) - 1, 0.0)
    agree = (landed / (1 + (residual / _SHARP) ** 2)).sum(axis=1)
    # A tenth of all points is added: pairs of which few points land say little.
    return np.asarray(agree / np.maximum(landed.sum(axis=1) + 0.1 * (z > 0).sum(axis=1), 1))


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

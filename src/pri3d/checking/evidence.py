"""What a set of assumptions about a recording predicts, against what its other frames show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.checking.shots import Stack
from pri3d.geometry.pose import OPENGL_FLIP
from pri3d.recordings._shared.correction import Correction

SHARP = 0.02  # relative depth residual at which a point counts half
TOLERANCE = 0.04  #: relative depth residual within which a carried point agrees
_FLOOR = 0.1  # share of the points that a pair must land before its agreement counts fully


class Guess(NamedTuple):
    """Assumptions that are tried: a correction, and mistakes that no correction states."""

    correction: Correction = Correction()
    focal: float = 1.0  #: factor of the focal lengths of both cameras
    pose_shift: int = 0  #: the pose that belongs to frame k is stated for frame k + pose_shift
    color_shift: int = 0  #: likewise the colour


class Carried(NamedTuple):
    """P pairs of M points each, carried from one frame into the other."""

    residual: NDArray[np.float64]  #: (P, M) carried depth over measured depth, less 1; nan where there is none
    source: NDArray[np.float64]  #: (P, M, 3) points in the depth camera of the first frame
    target: NDArray[np.float64]  #: (P, M, 3) the same in that of the second
    points: NDArray[np.bool_]  #: (P, M) whether there is a point
    rows: tuple[NDArray[np.int64], NDArray[np.int64]]  #: (P,) rows of the colour images


class Score(NamedTuple):
    """Agreement of P directed pairs."""

    soft: NDArray[np.float64]  #: (P,) 0..1: 1 where all points land and agree exactly
    agree: NDArray[np.int64]  #: (P,) points that agree within the tolerance
    front: NDArray[np.int64]  #: (P,) points in front of what was measured: impossible
    behind: NDArray[np.int64]  #: (P,) points behind it: hidden, or wrong
    landed: NDArray[np.int64]  #: (P,) points that land where depth was measured
    points: NDArray[np.int64]  #: (P,) points


def both_ways(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (P, 2) -> (2 P, 2): each in both directions."""
    return np.concatenate((pairs, pairs[:, ::-1]))


def carry(stack: Stack, pairs: NDArray[np.int64], guess: Guess) -> Carried:
    """Carry the points of frames ``pairs[:, 0]`` into ``pairs[:, 1]`` (frame indices) as ``guess`` assumes it."""
    depth_rows, pose_rows, color_rows = (
        stack.rows(pairs + shift) for shift in (guess.correction.shift, guess.pose_shift, guess.color_shift)
    )
    usable = np.stack((depth_rows, pose_rows, color_rows)).min(axis=(0, 2)) >= 0
    poses = depth_poses(stack, guess.correction)
    k = stack.depth_k * (guess.focal, guess.focal, 1, 1)
    first, second = depth_rows.T
    numbers = stack.points[first]
    points = (numbers >= 0) & usable[:, None]
    row, column = np.divmod(np.maximum(numbers, 0), stack.inverse.shape[2])
    x, y = _rays(column + 0.5, row + 0.5, k[first])
    inverse = stack.inverse[first[:, None], row, column].astype(np.float64)
    z = np.where(points, guess.correction.depth / np.where(inverse > 0, inverse, 1), 0)
    if guess.correction.ray:
        z /= np.sqrt(1 + x**2 + y**2)
    source = np.stack((x * z, y * z, z), axis=-1)
    b_from_a = np.linalg.inv(poses[pose_rows[:, 1]]) @ poses[pose_rows[:, 0]]
    target = source @ b_from_a[:, :3, :3].transpose(0, 2, 1) + b_from_a[:, None, :3, 3]
    measured = _measured(stack.inverse, second, k, target, guess.correction)
    with np.errstate(invalid="ignore"):
        residual = np.where(points & (target[..., 2] > 0), target[..., 2] * measured - 1, np.nan)
    return Carried(residual, source, target, points, (color_rows[:, 0], color_rows[:, 1]))


def depth_poses(stack: Stack, correction: Correction) -> NDArray[np.float64]:
    """Poses (N, 4, 4) of the depth camera, corrected as :meth:`Correction.apply` does it."""
    poses = np.asarray(np.linalg.inv(stack.world_from_camera)) if correction.inverse else stack.world_from_camera
    return (poses @ OPENGL_FLIP if correction.opengl else poses) @ stack.color_from_depth


def _rays(
    u: NDArray[np.float64], v: NDArray[np.float64], k: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """X / z and y / z (P, M) of pixels (P, M) of cameras (P, 4)."""
    return (u - k[:, None, 2]) / k[:, None, 0], (v - k[:, None, 3]) / k[:, None, 1]


def project(points: NDArray[np.float64], k: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels u, v (P, M) of camera points (P, M, 3) with intrinsics (P, 4); nan behind the camera."""
    z = np.where(points[..., 2] > 1e-9, points[..., 2], np.nan)
    return points[..., 0] / z * k[:, None, 0] + k[:, None, 2], points[..., 1] / z * k[:, None, 1] + k[:, None, 3]


def sample(
    images: NDArray[np.float32], rows: NDArray[np.int64], u: NDArray[np.float64], v: NDArray[np.float64], holes: bool
) -> NDArray[np.float64]:
    """Bilinear values (P, M) of images (N, H, W) at pixels (P, M) of rows (P,); nan outside.

    With ``holes`` a value that touches a pixel of 0 is nan too.
    """
    height, width = images.shape[1:]
    with np.errstate(invalid="ignore"):
        inside = (u >= 0.5) & (v >= 0.5) & (u < width - 0.5) & (v < height - 0.5)
    x, y = np.where(inside, u - 0.5, 0), np.where(inside, v - 0.5, 0)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    fx, fy = x - left, y - top
    start = (rows[:, None] * height + top) * width + left
    flat = images.reshape(-1)
    corners = [flat[start + step] for step in (0, 1, width, width + 1)]
    weights = ((1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy)
    value = sum(weight * corner for weight, corner in zip(weights, corners, strict=True))
    if holes:
        inside &= (corners[0] > 0) & (corners[1] > 0) & (corners[2] > 0) & (corners[3] > 0)
    return np.where(inside, value, np.nan)


def _measured(
    inverse: NDArray[np.float32],
    rows: NDArray[np.int64],
    k: NDArray[np.float64],
    points: NDArray[np.float64],
    correction: Correction,
) -> NDArray[np.float64]:
    """Inverse z (P, M) measured where the points (P, M, 3) project to in frames ``rows`` (P,); nan for none."""
    u, v = project(points, k[rows])
    found = sample(inverse, rows, u, v, holes=True) / correction.depth
    if correction.ray:
        x, y = _rays(u, v, k[rows])
        found = found * np.sqrt(1 + x**2 + y**2)
    return found


def geometric(carried: Carried) -> Score:
    """Count how the carried points agree with the depth measured where they land."""
    r = carried.residual
    landed = np.isfinite(r)
    r = np.where(landed, r, np.inf)
    agree = np.abs(r) <= TOLERANCE
    count, total = landed.sum(axis=1), carried.points.sum(axis=1)
    kernel = (1 / (1 + np.minimum(np.abs(r) / SHARP, 1e3) ** 2)) * landed
    soft = kernel.sum(axis=1) / np.maximum(count + _FLOOR * total, 1)
    return Score(
        soft,
        agree.sum(axis=1),
        (r < -TOLERANCE).sum(axis=1),
        (landed & (r > TOLERANCE)).sum(axis=1),
        count,
        total,
    )


def photometric(stack: Stack, carried: Carried) -> NDArray[np.float64]:
    """Correlation (P,) of what both colour images show at points seen by both; nan where there are too few."""
    both = np.abs(np.where(np.isfinite(carried.residual), carried.residual, np.inf)) < 2 * TOLERANCE
    values = []
    for points, rows in ((carried.source, carried.rows[0]), (carried.target, carried.rows[1])):
        m = stack.color_from_depth[rows]
        seen = points @ m[:, :3, :3].transpose(0, 2, 1) + m[:, None, :3, 3]
        u, v = project(seen, stack.color_k[rows])
        values.append(sample(stack.texture, rows, u, v, holes=False))
    return correlation(values[0], values[1], both)


def correlation(
    a: NDArray[np.float64], b: NDArray[np.float64], mask: NDArray[np.bool_], least: int = 30
) -> NDArray[np.float64]:
    """Pearson correlation (P,) along the second axis of (P, M) where ``mask``, nan below ``least`` values."""
    mask = mask & np.isfinite(a) & np.isfinite(b)
    count = mask.sum(axis=1)
    safe = np.maximum(count, 1)[:, None]
    a, b = np.where(mask, a, 0), np.where(mask, b, 0)
    a = (a - a.sum(axis=1, keepdims=True) / safe) * mask
    b = (b - b.sum(axis=1, keepdims=True) / safe) * mask
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where((count >= least) & (norm > 1e-9), (a * b).sum(axis=1) / np.maximum(norm, 1e-9), np.nan)

"""Hypotheses about a recording's poses, axes, units and times, and the consistency of its frames under each.

Under a hypothesis the points of one frame are reprojected into another; there they must meet the depth that was
measured and the colour that was seen. The search finds the hypothesis under which the frames agree best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.checking.evidence import Stack
from pri3d.geometry.pose import OPENGL_FLIP
from pri3d.recordings._shared.correction import Correction

SHARP = 0.02  # relative depth residual at which a point counts half
TOLERANCE = 0.04  #: relative depth residual within which a reprojected point agrees
_FLOOR = 0.1  # fraction of the points that a pair must land before its agreement counts fully
_SCALES = np.geomspace(1 / 4096, 4096, 97)  # factors of 1.19
_NEAR_SCALES = np.geomspace(0.6, 1.7, 7)  # the same, where frames agree so well that no unit can be wrong
_UNDERSTOOD = 0.4  # score from which they do
_FOCALS = np.geomspace(0.4, 2.5, 21)  # factors of 1.1
_FEWER = 4  # the coarse search takes every so many points, and half the pairs
_CERTAIN = 3.5  # standard errors
_GAIN = 1.06  # factor by which an alternative must agree better
_COMMON = 30  # points seen by both, below which their colours tell nothing
_LEAST = 0.25  # score of a recording that is understood
#: factors by which units and conventions differ; one within 3 % of these is taken for it
ROUND = (1000, 500, 256, 100, 39.37, 25.4, 10, 8, 5, 4, 2, 1, 0.5, 0.25, 0.2, 0.125, 0.1, 0.0394, 0.0254, 0.01, 0.001)


class Hypothesis(NamedTuple):
    """Assumptions that are tried: a correction, and errors that no correction states."""

    correction: Correction = Correction()
    focal: float = 1.0  #: factor of the focal lengths of both cameras
    right: float = 0.0  #: by which their centres move, as a fraction of the image's width
    down: float = 0.0  #: likewise
    pose_shift: int = 0  #: the pose that belongs to frame k is stated for frame k + pose_shift
    color_shift: int = 0  #: likewise the colour


class Reprojection(NamedTuple):
    """P pairs of M points each, reprojected from one frame into the other."""

    residual: NDArray[np.float64]  #: (P, M) reprojected depth over measured depth, less 1; nan where there is none
    source: NDArray[np.float64]  #: (P, M, 3) points in the depth camera of the first frame
    target: NDArray[np.float64]  #: (P, M, 3) the same in that of the second
    points: NDArray[np.bool_]  #: (P, M) whether there is a point
    rows: tuple[NDArray[np.int64], NDArray[np.int64]]  #: (P,) rows of the colour images


class Agreement(NamedTuple):
    """Agreement of P directed pairs."""

    soft: NDArray[np.float64]  #: (P,) 0..1: 1 where all points land and agree exactly
    agree: NDArray[np.int64]  #: (P,) points that agree within the tolerance
    front: NDArray[np.int64]  #: (P,) points in front of what was measured: impossible
    behind: NDArray[np.int64]  #: (P,) points behind it: hidden, or wrong
    landed: NDArray[np.int64]  #: (P,) points that land where depth was measured
    points: NDArray[np.int64]  #: (P,) points


def both_directions(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (P, 2) -> (2 P, 2): each in both directions."""
    return np.concatenate((pairs, pairs[:, ::-1]))


def reproject(stack: Stack, pairs: NDArray[np.int64], hypothesis: Hypothesis) -> Reprojection:
    """Reproject the points of frames ``pairs[:, 0]`` into ``pairs[:, 1]`` (frame indices) under ``hypothesis``."""
    depth_rows, pose_rows, color_rows = (
        stack.rows(pairs + shift)
        for shift in (hypothesis.correction.shift, hypothesis.pose_shift, hypothesis.color_shift)
    )
    usable = np.stack((depth_rows, pose_rows, color_rows)).min(axis=(0, 2)) >= 0
    poses = depth_poses(stack, hypothesis.correction)
    width = stack.inverse.shape[2]
    moved = np.array((0, 0, hypothesis.right * width, hypothesis.down * width))
    k = stack.depth_k * (hypothesis.focal, hypothesis.focal, 1, 1) + moved
    first, second = depth_rows.T
    numbers = stack.points[first]
    points = (numbers >= 0) & usable[:, None]
    row, column = np.divmod(np.maximum(numbers, 0), stack.inverse.shape[2])
    x, y = _rays(column + 0.5, row + 0.5, k[first])
    inverse = stack.inverse[first[:, None], row, column].astype(np.float64)
    z = np.where(points, hypothesis.correction.depth / np.where(inverse > 0, inverse, 1), 0)
    if hypothesis.correction.ray:
        z /= np.sqrt(1 + x**2 + y**2)
    source = np.stack((x * z, y * z, z), axis=-1)
    b_from_a = np.linalg.inv(poses[pose_rows[:, 1]]) @ poses[pose_rows[:, 0]]
    target = source @ b_from_a[:, :3, :3].transpose(0, 2, 1) + b_from_a[:, None, :3, 3]
    u, v = project(target, k[second])
    measured = sample(stack.inverse, second, u, v, holes=True) / hypothesis.correction.depth  # inverse z
    if hypothesis.correction.ray:
        x, y = _rays(u, v, k[second])
        measured = measured * np.sqrt(1 + x**2 + y**2)
    with np.errstate(invalid="ignore"):
        residual = np.where(points & (target[..., 2] > 0), target[..., 2] * measured - 1, np.nan)
    return Reprojection(residual, source, target, points, (color_rows[:, 0], color_rows[:, 1]))


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


def measure_agreement(found: Reprojection) -> Agreement:
    """Count how the reprojected points agree with the depth measured where they land."""
    r = found.residual
    landed = np.isfinite(r)
    r = np.where(landed, r, np.inf)
    agree = np.abs(r) <= TOLERANCE
    count, total = landed.sum(axis=1), found.points.sum(axis=1)
    kernel = (1 / (1 + np.minimum(np.abs(r) / SHARP, 1e3) ** 2)) * landed
    soft = kernel.sum(axis=1) / np.maximum(count + _FLOOR * total, 1)
    return Agreement(
        soft,
        agree.sum(axis=1),
        (r < -TOLERANCE).sum(axis=1),
        (landed & (r > TOLERANCE)).sum(axis=1),
        count,
        total,
    )


def correlate_colours(stack: Stack, found: Reprojection) -> NDArray[np.float64]:
    """Pearson correlation (P,) of what both colour images show at points seen by both; nan where there are too few."""
    both = np.abs(np.where(np.isfinite(found.residual), found.residual, np.inf)) < 2 * TOLERANCE
    values = []
    for points, rows in ((found.source, found.rows[0]), (found.target, found.rows[1])):
        m = stack.color_from_depth[rows]
        seen = points @ m[:, :3, :3].transpose(0, 2, 1) + m[:, None, :3, 3]
        u, v = project(seen, stack.color_k[rows])
        values.append(sample(stack.texture, rows, u, v, holes=False))
    a, b = values
    mask = both & np.isfinite(a) & np.isfinite(b)
    count = mask.sum(axis=1)
    safe = np.maximum(count, 1)[:, None]
    a, b = np.where(mask, a, 0), np.where(mask, b, 0)
    a = (a - a.sum(axis=1, keepdims=True) / safe) * mask
    b = (b - b.sum(axis=1, keepdims=True) / safe) * mask
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where((count >= _COMMON) & (norm > 1e-9), (a * b).sum(axis=1) / np.maximum(norm, 1e-9), np.nan)


class Trial(NamedTuple):
    """One set of assumptions, and how well it agrees."""

    hypothesis: Hypothesis
    score: float  #: mean of :attr:`Agreement.soft`


def agreement_under(stack: Stack, pairs: NDArray[np.int64], hypothesis: Hypothesis) -> NDArray[np.float64]:
    """Agreement (P,) of pairs of frame indices (P, 2) under a hypothesis; nan where a frame is missing."""
    score = measure_agreement(reproject(stack, pairs, hypothesis))
    return np.where(score.points > 0, score.soft, np.nan)


def mean_finite(values: NDArray[np.float64]) -> float:
    """Mean of the finite values, 0 for none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else 0.0


def is_better(
    base: NDArray[np.float64], other: NDArray[np.float64], gain: float = _GAIN, certain: float = _CERTAIN
) -> bool:
    """Whether ``other`` (P,) is higher than ``base`` (P,) by the factor ``gain``, and surely so pair by pair."""
    both = np.isfinite(base) & np.isfinite(other)
    if both.sum() < 6:
        return False
    difference = other[both] - base[both]
    error = difference.std() / np.sqrt(both.sum())
    return bool(difference.mean() > certain * error and other[both].mean() > gain * max(base[both].mean(), 0.01))


def search_hypotheses(
    stack: Stack, pairs: NDArray[np.int64], start: Hypothesis, tell: Callable[[int, int], None]
) -> list[Trial]:
    """Find what the frames agree with, one mistake after another, beginning with ``start``.

    Returns the steps taken: the first is ``start``, the last the best; one entry means that nothing better was found.
    """
    directed = both_directions(pairs)
    trials = [Trial(start, mean_finite(agreement_under(stack, directed, start)))]
    for number in range(3):
        tell(number, 3)
        hypothesis = _best_step(stack, directed, trials[-1].hypothesis)
        base = agreement_under(stack, directed, trials[-1].hypothesis)
        other = agreement_under(stack, directed, hypothesis)
        if not is_better(base, other):
            break
        trials.append(Trial(hypothesis, mean_finite(other)))
    if len(trials) == 1 and trials[0].score < _LEAST:
        # One mistake at a time does not help: a shift together with a direction and axes.
        given = start.correction
        hypothesis = _best(
            stack,
            directed,
            [
                start._replace(correction=given._replace(inverse=i, opengl=o, shift=s))
                for i, o, s in product((False, True), (False, True), (-1, 1))
            ],
        )
        base, other = (agreement_under(stack, directed, each) for each in (start, hypothesis))
        if is_better(base, other):
            trials.append(Trial(hypothesis, mean_finite(other)))
    return trials


def _best_step(stack: Stack, directed: NDArray[np.int64], hypothesis: Hypothesis) -> Hypothesis:
    """The best single mistake beyond ``hypothesis``: a flag, a factor of the depth or of the focal length, a shift."""
    few, some = stack._replace(points=stack.points[:, ::_FEWER]), directed[::2]
    given = hypothesis.correction
    scales = _NEAR_SCALES if mean_finite(agreement_under(stack, directed, hypothesis)) > _UNDERSTOOD else _SCALES
    flags = [
        hypothesis._replace(correction=given._replace(inverse=i, opengl=o, ray=r))
        for i, o, r in product((False, True), repeat=3)
    ]
    scaled = [
        g._replace(correction=g.correction._replace(depth=float(given.depth * factor)))
        for g in flags
        for factor in scales
    ]
    focal = [hypothesis._replace(focal=float(hypothesis.focal * factor)) for factor in _FOCALS]
    shifts = [hypothesis._replace(correction=given._replace(shift=given.shift + step)) for step in (-1, 1)]
    best = [_best(stack, directed, flags), _best(stack, directed, shifts)]
    for what, tried in (("focal", focal), ("depth", scaled)):
        coarse = _best(few, some, tried)
        best.insert(0, scale_hypothesis(coarse, what, fit_factor(stack, directed, coarse, what)))
    return _best(stack, directed, best)


def _best(stack: Stack, directed: NDArray[np.int64], hypotheses: Iterable[Hypothesis]) -> Hypothesis:
    return max(hypotheses, key=lambda hypothesis: mean_finite(agreement_under(stack, directed, hypothesis)))


def scale_hypothesis(hypothesis: Hypothesis, what: str, factor: float) -> Hypothesis:
    """``hypothesis`` with ``depth`` or ``focal`` multiplied."""
    if what == "focal":
        return hypothesis._replace(focal=hypothesis.focal * factor)
    return hypothesis._replace(correction=hypothesis.correction._replace(depth=hypothesis.correction.depth * factor))


def measure_residual(found: Reprojection) -> float:
    """Median distance, along z, of reprojected points from the depth measured where they land; nan where none lands.

    In the unit of the depth; of points that are not hidden: those within three times the tolerance.
    """
    near = np.abs(np.where(np.isfinite(found.residual), found.residual, np.inf)) < 3 * TOLERANCE
    apart = np.abs(found.residual / (1 + found.residual) * found.target[..., 2])[near]
    return float(np.median(apart)) if len(apart) else float("nan")


def fit_factor(
    stack: Stack, directed: NDArray[np.int64], hypothesis: Hypothesis, what: str, reach: float = 0.2
) -> float:
    """Return the factor of ``depth`` or ``focal`` beyond ``hypothesis`` under which the frames agree best."""
    centre = 0.0
    for width in (reach, reach / 3, reach / 9, reach / 27):
        at = centre + np.linspace(-width, width, 7)
        values = [
            mean_finite(agreement_under(stack, directed, scale_hypothesis(hypothesis, what, float(np.exp(x)))))
            for x in at
        ]
        centre = float(at[int(np.argmax(values))])
    return float(np.exp(centre))


def round_factor(factor: float) -> float:
    """A factor as people make mistakes: the nearest usual one within 3 %, else three digits."""
    near = min(ROUND, key=lambda value: abs(np.log(factor / value)))
    return float(near) if abs(np.log(factor / near)) < 0.03 else float(f"{factor:.3g}")


def score_alternatives(stack: Stack, pairs: NDArray[np.int64], hypothesis: Hypothesis) -> dict[str, float]:
    """Agreement of the hypothesis as it is, with each flag turned, and with some factors: shown beside the verdict."""
    directed, given = both_directions(pairs), hypothesis.correction
    tried = {
        "as stated": Hypothesis(),
        "poses inverted": hypothesis._replace(correction=given._replace(inverse=not given.inverse)),
        "axes turned": hypothesis._replace(correction=given._replace(opengl=not given.opengl)),
        "both": hypothesis._replace(correction=given._replace(inverse=not given.inverse, opengl=not given.opengl)),
        "ray length turned": hypothesis._replace(correction=given._replace(ray=not given.ray)),
        "depth x 1.1": scale_hypothesis(hypothesis, "depth", 1.1),
        "depth / 1.1": scale_hypothesis(hypothesis, "depth", 1 / 1.1),
        "focal x 1.1": scale_hypothesis(hypothesis, "focal", 1.1),
        "focal / 1.1": scale_hypothesis(hypothesis, "focal", 1 / 1.1),
    }
    return {name: round(mean_finite(agreement_under(stack, directed, trial)), 3) for name, trial in tried.items()}


def correlation_under(stack: Stack, directed: NDArray[np.int64], hypothesis: Hypothesis) -> NDArray[np.float64]:
    """Correlation (P,) of the colours under a hypothesis, nan where too little is seen by both."""
    return correlate_colours(stack, reproject(stack, directed, hypothesis))

"""Colour-to-depth registration: whether both show the same edges, and the fitted colour camera."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pri3d.checking.evidence import Finding, Shots, Stack, rotation_angles
from pri3d.checking.hypotheses import (
    Hypothesis,
    both_directions,
    correlation_under,
    is_better,
    mean_finite,
    project,
    sample,
)
from pri3d.geometry.pose import invert_array
from pri3d.recordings import ChangedScene, Scene
from pri3d.types import Camera, Frame

EDGES = 500  # depth edge pixels of a frame that are looked for in its colour image
_JUMP = 0.06  # relative; a jump of depth
_BLURS = (4.0, 2.0, 1.0)  # pixels by which colour edges are blurred, from coarse to fine
_SAME, _APART = 0.012, 0.02  # displacement in widths up to which colour is registered, and from which it is not
_RESOLVED = 2.0  # pixels of the reduced images below which a displacement is not seen
_TURN, _MOVE = np.radians(1.0), 0.01  # frames that turn, and move by a fraction of the depth, by less show the same
_FEW = 5  # frames with edges below which nothing is said of the registration
_UNRELATED = 0.12  # of edge_agreement and of the correlation, below which two images show different things


class Registration(NamedTuple):
    """A colour camera, against the one that is stated; offsets as shares of the image's width."""

    focal: float = 1.0  #: factor of the colour camera's focal lengths
    right: float = 0.0  #: of the centre
    down: float = 0.0  #: of the centre
    baseline: float = 0.0  #: metres by which depth-camera points move along x into the colour camera


class Edges(NamedTuple):
    """Depth edges of N frames, and the colour edges they should lie on."""

    points: NDArray[np.float64]  #: (N, EDGES, 3) points of the depth camera beside a jump, on the nearer side
    valid: NDArray[np.bool_]  #: (N, EDGES)
    maps: tuple[NDArray[np.float32], ...]  #: (N, H, W) each: strength of colour edges, from coarse to fine
    color_k: NDArray[np.float64]  #: (N, 4)
    color_from_depth: NDArray[np.float64]  #: (N, 4, 4)
    disparity: float  #: typical inverse depth of the edges, 1/m


def find_depth_edges(depth: NDArray[np.float32]) -> NDArray[np.int64]:
    """Flat pixel numbers of depth (h, w) on the nearer side of a jump between measured neighbours two pixels apart."""
    valid = depth > 0
    far = ndimage.maximum_filter(depth, 5)
    near = ndimage.minimum_filter(np.where(valid, depth, np.inf), 3)
    return np.flatnonzero(valid & (far > (1 + 2 * _JUMP) * depth) & (depth < (1 + _JUMP) * near))


def place_edges(depth: NDArray[np.float32], found: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where the jumps beside the pixels ``found`` (N,) lie: column and row (N, 2), half way to the next farther pixel.

    The pixels themselves lie inside of the nearer thing, which would move every outline inwards.
    """
    height, width = depth.shape
    row, column = np.divmod(found, width)
    steps = np.array([(u, v) for u in range(-2, 3) for v in range(-2, 3) if u or v])
    u, v = column[:, None] + steps[:, 0], row[:, None] + steps[:, 1]
    inside = (u >= 0) & (v >= 0) & (u < width) & (v < height)
    beside = depth[v.clip(0, height - 1), u.clip(0, width - 1)]
    far = inside & (beside > (1 + 2 * _JUMP) * depth[row, column][:, None])
    length = np.where(far, (steps**2).sum(axis=1), 99)
    nearest = far & (length == length.min(axis=1, keepdims=True))
    toward = (nearest[..., None] * steps).sum(axis=1) / np.maximum(nearest.sum(axis=1), 1)[:, None]
    return np.asarray(np.stack((column, row), axis=-1) + 0.5 + toward / 2)


def edge_score(edges: Edges, registration: Registration, level: int = 2) -> NDArray[np.float64]:
    """Mean strength (N,) of the colour where the depth edges fall: 0 for chance; nan where few fall into the image."""
    width = edges.maps[level].shape[2]
    m = edges.color_from_depth
    seen = edges.points @ m[:, :3, :3].transpose(0, 2, 1) + m[:, None, :3, 3]
    seen = seen + np.array((registration.baseline, 0, 0))
    k = edges.color_k * (registration.focal, registration.focal, 1, 1)
    k = k + np.array((0, 0, registration.right * width, registration.down * width))
    u, v = project(seen, k)
    values = sample(edges.maps[level], np.arange(len(edges.points)), u, v, holes=False)
    values = np.where(edges.valid, values, np.nan)
    count = np.isfinite(values).sum(axis=1)
    total = np.where(np.isfinite(values), values, 0).sum(axis=1)
    return np.where(count >= 20, total / np.maximum(count, 1), np.nan)


def fit_registration(edges: Edges) -> Registration:
    """Find the colour camera under which the edges agree best, from coarse to fine."""
    ratios = np.geomspace(0.6, 1.6, 21)
    best = max(
        (Registration(float(ratio)) for ratio in ratios),
        key=lambda hypothesis: -abs(np.log(hypothesis.focal)) * 1e-3 + mean_finite(edge_score(edges, hypothesis, 0)),
    )
    unit = 1 / edges.maps[0].shape[2]  # a pixel
    steps = np.array((2 * unit, unit, unit, unit / edges.disparity / edges.color_k[0, 0] / unit))
    for level, sizes in ((0, (4.0, 2.0)), (1, (2.0, 1.0)), (2, (1.0, 0.5, 0.25))):
        for size in sizes:
            best = _descend(edges, best, steps * size, level)
    return best


def _descend(edges: Edges, start: Registration, steps: NDArray[np.float64], level: int) -> Registration:
    """Walk by ``steps`` (4,), one parameter at a time, until nothing improves."""
    best, score = start, mean_finite(edge_score(edges, start, level))
    for _ in range(20):
        before = score
        for axis in range(4):
            for sign in (-1, 1):
                moved = np.array(best)
                moved[axis] += sign * steps[axis]
                hypothesis = Registration(*moved.tolist())
                value = mean_finite(edge_score(edges, hypothesis, level))
                if value > score + 1e-4:
                    best, score = hypothesis, value
        if score == before:
            break
    return best


def measure_displacement(edges: Edges, registration: Registration) -> float:
    """How far the registration moves a point of typical depth: root mean square over the image, shares of its width."""
    height, width = edges.maps[0].shape[1:]
    fx, _, cx, cy = edges.color_k[0]
    u, v = np.meshgrid(np.linspace(0, width, 9) - cx, np.linspace(0, height, 9) - cy)
    scale = registration.focal - 1
    shift = registration.right * width + registration.baseline * edges.disparity * fx * registration.focal
    moved = np.stack((scale * u + shift, scale * v + registration.down * width))
    return float(np.sqrt((moved**2).sum(axis=0).mean()) / width)


def stream_edges(shots: Shots, stack: Stack, hypothesis: Hypothesis) -> Edges:
    """Edges of the frames, each with the depth and the colour that the hypothesis says are its."""
    depths, colors = [], []
    for index in stack.indices.tolist():
        depth, color = shots.kept(index + hypothesis.correction.shift), shots.kept(index + hypothesis.color_shift)
        if depth is not None and color is not None:
            depths.append(depth)
            colors.append(color)
    points = np.zeros((len(depths), EDGES, 3))
    valid = np.zeros((len(depths), EDGES), bool)
    for number, shot in enumerate(depths):
        found = find_depth_edges(shot.depth)
        if len(found) == 0:
            continue
        rng = np.random.default_rng((0, number))
        picked = rng.choice(found, EDGES, replace=len(found) < EDGES)
        camera, z = shot.depth_camera, shot.depth.reshape(-1)[picked].astype(np.float64)
        u, v = place_edges(shot.depth, picked).T
        x, y = (u - camera.cx) / camera.fx * z, (v - camera.cy) / camera.fy * z
        points[number], valid[number] = np.stack((x, y, z), axis=-1), True
    strengths = []
    for shot in colors:  # of colour edges, exposure and local contrast taken out
        image = ndimage.gaussian_filter(shot.color.astype(np.float32), (0.7, 0.7, 0))
        strength = sum(np.hypot(ndimage.sobel(image[..., c], 0), ndimage.sobel(image[..., c], 1)) for c in range(3))
        local = ndimage.gaussian_filter(strength, 10.0)
        strengths.append(np.asarray(np.sqrt(strength / (local + 20.0)), np.float32))
    maps = []
    for blur in _BLURS:
        blurred = [ndimage.gaussian_filter(strength, blur) for strength in strengths]
        normal = [(image - image.mean()) / max(float(image.std()), 1e-6) for image in blurred]
        maps.append(np.stack([np.asarray(image, np.float32) for image in normal]))
    return Edges(
        points,
        valid,
        tuple(maps),
        np.array([shot.color_camera[2:] for shot in colors]),
        np.stack([shot.color_from_depth for shot in depths]),
        float(np.median(1 / points[..., 2][valid])) if valid.any() else 1.0,
    )


def check_colour_registration(
    shots: Shots, stack: Stack, pairs: NDArray[np.int64], hypothesis: Hypothesis
) -> tuple[list[Finding], str]:
    """Whether colour is registered to depth; and, where it is not, the cameras to write."""
    edges = stream_edges(shots, distinct_frames(stack) if len(pairs) else stack, hypothesis)
    plain = edge_score(edges, Registration())
    directed = both_directions(pairs)
    colours = correlation_under(stack, directed, hypothesis)
    if np.isfinite(plain).sum() < _FEW:
        return [Finding("registration", "unknown", "too few depth edges to compare with the colour")], ""
    fit = fit_registration(edges)
    fitted = edge_score(edges, fit)
    moved = measure_displacement(edges, fit)
    width, seen = shots.cameras[0].width, _RESOLVED / min(stack.texture.shape[2], stack.inverse.shape[2])
    offset = f"{moved * width:.1f} px of {width} away"
    figure = (
        f"best alignment of colour and depth edges {offset}: {mean_finite(fitted):.2f} ({mean_finite(plain):.2f} as is)"
    )
    if np.isfinite(colours).any():
        figure += f"; colours of different views correlate by {mean_finite(colours):.2f}"
    gained = mean_finite(fitted) > 2 * _UNRELATED and is_better(plain, fitted, 1.25, 2.0)
    if np.isfinite(colours).sum() >= _FEW:  # edges may agree by chance somewhere; colours of other views then do not
        # The stack with the colour cameras that the edges ask for; the poses of depth stay.
        image = stack.texture.shape[2]
        color_k = stack.color_k * (fit.focal, fit.focal, 1, 1) + np.array((0, 0, fit.right * image, fit.down * image))
        color_from_depth = stack.color_from_depth.copy()
        color_from_depth[:, 0, 3] += fit.baseline
        poses = stack.world_from_camera @ stack.color_from_depth @ np.linalg.inv(color_from_depth)
        asked = stack._replace(color_k=color_k, color_from_depth=color_from_depth, world_from_camera=poses)
        gained = gained and is_better(colours, correlation_under(asked, directed, hypothesis))
    else:
        gained = gained and is_better(plain, fitted, 1.25)
    if gained and moved > max(_APART, seen):
        color, depth = shots.cameras
        registered = color._replace(
            fx=color.fx * fit.focal,
            fy=color.fy * fit.focal,
            cx=color.cx + fit.right * color.width,
            cy=color.cy + fit.down * color.width,
        )
        first = next(shot for k in sorted(shots.asked) if (shot := shots.kept(k)) is not None)
        color_from_depth = first.color_from_depth.copy()
        color_from_depth[0, 3] += fit.baseline
        advice = (
            f"Colour is not registered to depth: focal length x {fit.focal:.3f}, "
            f"centre {fit.right * color.width:+.1f}, "
            f"{fit.down * color.width:+.1f} px, baseline {fit.baseline * 100:+.1f} cm. State both cameras, see below."
        )
        found = Finding("registration", "fault", figure, "colour not registered", advice)
        return [found], advised_yaml(registered, depth, color_from_depth)
    # Edges of other frames of the same room agree a little: it has horizontal and vertical ones everywhere.
    unrelated = mean_finite(plain) < (2 if len(pairs) else 1) * _UNRELATED and mean_finite(colours) < _UNRELATED
    if unrelated and not gained:
        advice = "The colour images do not show what the depth shows: colour of other frames, or of another camera."
        return [Finding("registration", "fault", figure, "colour does not fit", advice)], ""
    if gained and moved > max(_SAME, seen):
        return [Finding("registration", "warning", figure, advice="Colour may be slightly misaligned with depth.")], ""
    return [Finding("registration", "ok", figure)], ""


def distinct_frames(stack: Stack) -> Stack:
    """The frames that do not show what an earlier one shows: only these are evidence of their own."""
    turn = rotation_angles(stack.world_from_camera)
    place = stack.world_from_camera[:, :3, 3]
    move = np.linalg.norm(place[:, None] - place, axis=-1) * float(np.median(stack.inverse[stack.inverse > 0]))
    same = (turn < _TURN) & (move < _MOVE)
    kept: list[int] = []
    for row in range(len(same)):
        if not same[row, kept].any():
            kept.append(row)
    return Stack._make(field[kept] for field in stack)


class RecameredScene(ChangedScene):
    """A scene whose frames have the cameras given; everything else is the scene's own."""

    def __init__(
        self, scene: Scene, color: Camera, depth: Camera, color_from_depth: NDArray[np.float64] | None = None
    ) -> None:
        """``color_from_depth`` (4, 4) None leaves it; else the poses are taken for the depth camera's."""
        super().__init__(scene)
        self._color, self._depth, self._moved = color, depth, color_from_depth

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError where it is unusable."""
        frame = self.scene.frame(index)
        changed: dict[str, Any] = {"color_camera": self._color, "depth_camera": self._depth}
        if self._moved is not None:
            of_depth = frame.world_from_camera @ frame.color_from_depth
            changed |= {
                "color_from_depth": self._moved,
                "world_from_camera": of_depth @ invert_array(self._moved),
            }
        return frame._replace(**changed)


def advised_yaml(color: Camera, depth: Camera, color_from_depth: NDArray[np.float64] | None = None) -> str:
    """What to write into a cameras.yaml; ``color_from_depth`` (4, 4) for two cameras, the poses being of depth."""
    lines = [f"color: {_camera(color)}"]
    if depth != color or color_from_depth is not None:
        lines.append(f"depth: {_camera(depth)}")
    if color_from_depth is not None:
        rows = ", ".join("[" + ", ".join(f"{x:.6g}" for x in row) + "]" for row in color_from_depth)
        lines += [f"color_from_depth: {{matrix: [{rows}]}}", "pose_of: depth"]
    return "\n".join(lines) + "\n"


def _camera(camera: Camera) -> str:
    numbers = ", ".join(f"{name}: {getattr(camera, name):.2f}" for name in ("fx", "fy", "cx", "cy"))
    return f"{{width: {camera.width}, height: {camera.height}, {numbers}}}"

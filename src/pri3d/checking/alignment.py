"""Whether colour and depth of one frame show the same edges at the same place, and where the colour camera must be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pri3d.checking.evidence import project, sample
from pri3d.checking.shots import Shot

EDGES = 500  # depth edge pixels of a frame that are looked for in its colour image
_JUMP = 0.06  # relative; a jump of depth
_BLURS = (4.0, 2.0, 1.0)  # pixels by which colour edges are blurred, from coarse to fine


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


def find_edges(depths: list[Shot], colors: list[Shot], seed: int) -> Edges:
    """Find the edges of N frames: of the depth of ``depths`` and of the colour of ``colors``."""
    points = np.zeros((len(depths), EDGES, 3))
    valid = np.zeros((len(depths), EDGES), bool)
    for number, shot in enumerate(depths):
        found = depth_edges(shot.depth)
        if len(found) == 0:
            continue
        rng = np.random.default_rng((seed, number))
        rows, columns = np.divmod(rng.choice(found, EDGES, replace=len(found) < EDGES), shot.depth.shape[1])
        camera, z = shot.depth_camera, shot.depth[rows, columns].astype(np.float64)
        x, y = (columns + 0.5 - camera.cx) / camera.fx * z, (rows + 0.5 - camera.cy) / camera.fy * z
        points[number], valid[number] = np.stack((x, y, z), axis=-1), True
    strengths = [color_edges(shot.color) for shot in colors]
    return Edges(
        points,
        valid,
        tuple(np.stack([normalised(edge, blur) for edge in strengths]) for blur in _BLURS),
        np.array([shot.color_camera[2:] for shot in colors]),
        np.stack([shot.color_from_depth for shot in depths]),
        float(np.median(1 / points[..., 2][valid])) if valid.any() else 1.0,
    )


def depth_edges(depth: NDArray[np.float32]) -> NDArray[np.int64]:
    """Flat pixel numbers of depth (h, w) on the nearer side of a jump between measured neighbours two pixels apart."""
    valid = depth > 0
    far = ndimage.maximum_filter(depth, 5)
    near = ndimage.minimum_filter(np.where(valid, depth, np.inf), 3)
    return np.flatnonzero(valid & (far > (1 + 2 * _JUMP) * depth) & (depth < (1 + _JUMP) * near))


def color_edges(color: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Strength (H, W) of the edges of RGB (H, W, 3), exposure and local contrast taken out."""
    image = ndimage.gaussian_filter(color.astype(np.float32), (0.7, 0.7, 0))
    strength = sum(np.hypot(ndimage.sobel(image[..., c], 0), ndimage.sobel(image[..., c], 1)) for c in range(3))
    local = ndimage.gaussian_filter(strength, 10.0)
    return np.asarray(np.sqrt(strength / (local + 20.0)), np.float32)


def normalised(edges: NDArray[np.float32], blur: float) -> NDArray[np.float32]:
    """Edges (H, W), blurred, with mean 0 and spread 1."""
    image = ndimage.gaussian_filter(edges, blur)
    return np.asarray((image - image.mean()) / max(float(image.std()), 1e-6), np.float32)


def edge_agreement(edges: Edges, registration: Registration, level: int = 2) -> NDArray[np.float64]:
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
        key=lambda guess: -abs(np.log(guess.focal)) * 1e-3 + mean(edge_agreement(edges, guess, 0)),
    )
    unit = 1 / edges.maps[0].shape[2]  # a pixel
    steps = np.array((2 * unit, unit, unit, unit / edges.disparity / edges.color_k[0, 0] / unit))
    for level, sizes in ((0, (4.0, 2.0)), (1, (2.0, 1.0)), (2, (1.0, 0.5, 0.25))):
        for size in sizes:
            best = _descend(edges, best, steps * size, level)
    return best


def _descend(edges: Edges, start: Registration, steps: NDArray[np.float64], level: int) -> Registration:
    """Walk by ``steps`` (4,), one parameter at a time, until nothing improves."""
    best, score = start, mean(edge_agreement(edges, start, level))
    for _ in range(20):
        before = score
        for axis in range(4):
            for sign in (-1, 1):
                moved = np.array(best)
                moved[axis] += sign * steps[axis]
                guess = Registration(*moved.tolist())
                value = mean(edge_agreement(edges, guess, level))
                if value > score + 1e-4:
                    best, score = guess, value
        if score == before:
            break
    return best


def mean(values: NDArray[np.float64]) -> float:
    """Mean of the finite values, 0 where there is none."""
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else 0.0


def displacement(edges: Edges, registration: Registration) -> float:
    """How far the registration moves a point of typical depth: root mean square over the image, shares of its width."""
    height, width = edges.maps[0].shape[1:]
    fx, _, cx, cy = edges.color_k[0]
    u, v = np.meshgrid(np.linspace(0, width, 9) - cx, np.linspace(0, height, 9) - cy)
    scale = registration.focal - 1
    shift = registration.right * width + registration.baseline * edges.disparity * fx * registration.focal
    moved = np.stack((scale * u + shift, scale * v + registration.down * width))
    return float(np.sqrt((moved**2).sum(axis=0).mean()) / width)

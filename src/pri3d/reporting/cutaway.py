"""A voxel surface drawn as cubes from above; the chunk of one camera is coloured."""

from __future__ import annotations

from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from numpy.typing import NDArray

from pri3d.geometry.voxels import coarsen, crop, frustum_box
from pri3d.reporting.style import ACCENT, MUTED
from pri3d.types import Voxels

_AZIMUTH, _ELEVATION = np.radians(38), np.radians(38)
_HEADROOM = 0.45  #: metres above the camera where the drawing is cut open
_SHADE = (0.72, 0.86, 1.0)  #: brightness of a cube's sides by how much they face up
_MOST_CELLS = 100_000


class Chunk(NamedTuple):
    """A frame and the surface around it."""

    color: NDArray[np.uint8]  #: (H, W, 3) RGB
    depth: NDArray[np.float32]  #: (H, W) metres, 0 = invalid
    intrinsics: NDArray[np.float64]  #: (4,) in pixels of (H, W)
    world_from_camera: NDArray[np.float64]  #: (4, 4)
    surface: Voxels  #: of the whole scene
    up: NDArray[np.float64]  #: (3,) unit, away from the floor, world
    voxel: float  #: metres, edge of the cubes to draw; a multiple of the surface's
    name: str  #: scene/frame


class _Looking(NamedTuple):
    """An orthographic viewpoint: unit world vectors to the right, upwards and away in the drawing."""

    right: NDArray[np.float64]
    above: NDArray[np.float64]
    away: NDArray[np.float64]

    def flat(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """World (..., 3) -> drawing (..., 2), metres."""
        return np.stack((points @ self.right, points @ self.above), axis=-1)


def up_direction(world_from_camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """Up (3,) in the world, from the cameras (N, 4, 4) of a recording that is held upright on the whole.

    The nearest world axis where it is near, as most recordings are levelled.
    """
    mean = -world_from_camera[:, :3, 1].mean(axis=0)
    mean = mean / max(float(np.linalg.norm(mean)), 1e-9)
    axis = int(np.abs(mean).argmax())
    up: NDArray[np.float64] = np.eye(3)[axis] * np.sign(mean[axis]) if abs(mean[axis]) > 0.8 else mean
    return up


def drawable(chunk: Chunk) -> Voxels:
    """Return the surface in cubes of the wanted size, or larger ones where more than 100,000 would be to draw.

    Raises ConfigError where the wanted size is no multiple of the surface's.
    """
    factor, result = 1, coarsen(chunk.surface, chunk.voxel)
    while len(result.cells) > _MOST_CELLS:
        factor += 1
        result = coarsen(chunk.surface, chunk.voxel * factor)
    return result


def seen_cells(chunk: Chunk, surface: Voxels) -> NDArray[np.bool_]:
    """Which cells (V,) of a surface the chunk holds: those in the box of the camera's frustum (paper section 3.2)."""
    box = frustum_box(chunk.depth, chunk.intrinsics, chunk.world_from_camera)
    if box is None:
        return np.zeros(len(surface.cells), bool)
    inside: NDArray[np.bool_] = np.isin(_keys(surface.cells), _keys(crop(surface, *box).cells))
    return inside


def draw_chunk(axes: Axes, chunk: Chunk) -> None:
    """Draw the room in grey, the chunk coloured by height, the camera with its frustum and the box of the chunk.

    The box is the one pre-training crops with (paper section 3.2). Everything more than 45 cm above the camera is
    left away, so that a ceiling does not hide the room.
    """
    # Look over the camera's shoulder, from the side and from above.
    forward = chunk.world_from_camera[:3, 2]
    level = forward - forward @ chunk.up * chunk.up
    if np.linalg.norm(level) < 1e-3:  # it looks straight down: its upper edge tells where ahead is
        level = -chunk.world_from_camera[:3, 1]
        level = level - level @ chunk.up * chunk.up
    level = level / np.linalg.norm(level)
    aside = np.cross(chunk.up, level)
    along = np.cos(_AZIMUTH) * level + np.sin(_AZIMUTH) * aside
    away = np.cos(_ELEVATION) * along - np.sin(_ELEVATION) * chunk.up
    right = np.cross(away, chunk.up)
    right = right / np.linalg.norm(right)
    looking = _Looking(right, np.cross(right, away), away)
    surface = drawable(chunk)
    centre = chunk.world_from_camera[:3, 3]
    height = (surface.cells + 0.5) * surface.size @ chunk.up
    surface = surface._replace(cells=surface.cells[height < centre @ chunk.up + _HEADROOM], color=None)
    box = frustum_box(chunk.depth, chunk.intrinsics, chunk.world_from_camera)
    inside = seen_cells(chunk, surface)
    seen, rest = surface.cells[inside], surface.cells[~inside]
    _draw_cubes(axes, rest, surface.size, np.full((len(rest), 3), 0.96), looking, contrast=0.4)
    height = seen @ chunk.up
    lowest, highest = (height.min(), height.max()) if len(height) else (0.0, 0.0)
    spread = (height - lowest) / max(float(highest - lowest), 1e-9)
    _draw_cubes(axes, seen, surface.size, mpl.colormaps["viridis"](0.08 + 0.86 * spread)[:, :3], looking)
    if box is not None:
        bits = np.stack(np.meshgrid(*([[0, 1]] * 3), indexing="ij"), axis=-1).reshape(-1, 3)
        pairs = [(a, b) for a in bits for b in bits if (b - a).sum() == 1 and (b - a).min() == 0]
        edges = box[0] + np.array(pairs) * (box[1] - box[0])  # (12, 2, 3)
        _draw_lines(axes, looking.flat(edges), MUTED, 0.7, (0, (3, 2)))
        _draw_lines(axes, looking.flat(_frustum(chunk, float(chunk.depth.max()))), ACCENT, 0.8, "-")
    _draw_lines(axes, looking.flat(_frustum(chunk, 0.35)), ACCENT, 2.0, "-")
    u, v = looking.flat(centre)
    axes.scatter(u, v, s=34, color=ACCENT, edgecolors="white", linewidths=1, zorder=5)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.set_axis_off()


def _draw_cubes(
    axes: Axes,
    cells: NDArray[np.int32],
    size: float,
    color: NDArray[np.float64],
    looking: _Looking,
    contrast: float = 1.0,
) -> None:
    """Paint the visible sides of cubes from far to near; ``contrast`` scales the shading of sides and outlines."""
    corners, shades, owner = [], [], []
    order = np.argsort(np.abs(looking.above))  # the side that faces up most is the brightest
    keys = _keys(cells)
    for axis in range(3):
        side = -1 if looking.away[axis] > 0 else 1
        step = np.zeros(3, np.int32)
        step[axis] = side
        free = np.flatnonzero(~np.isin(_keys(cells + step), keys))
        u, v = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
        start = cells[free] + (step > 0)
        corners.append(np.stack((start, start + u, start + u + v, start + v), axis=1) * size)
        shades.append(np.full(len(free), _SHADE[int(np.flatnonzero(order == axis)[0])]))
        owner.append(free)
    quads, shade, rows = np.concatenate(corners), np.concatenate(shades), np.concatenate(owner)
    depth = quads.mean(axis=1) @ looking.away
    far_first = np.argsort(-depth, kind="stable")
    face = (color[rows] * (1 - contrast * (1 - shade[:, None])))[far_first]
    quads = quads[far_first]
    outlines: Any = looking.flat(quads)
    axes.add_collection(
        PolyCollection(outlines, facecolors=face, edgecolors=face * (1 - 0.1 * contrast), linewidths=0.35)
    )


def _draw_lines(axes: Axes, segments: Any, color: str, width: float, dash: Any) -> None:
    axes.add_collection(LineCollection(segments, colors=color, linewidths=width, linestyles=dash, zorder=4))


def _frustum(chunk: Chunk, z: float) -> NDArray[np.float64]:
    """Edges (8, 2, 3) of the view pyramid down to depth ``z``, world metres."""
    height, width = chunk.depth.shape
    fx, fy, cx, cy = chunk.intrinsics
    corners = np.array(
        [((u - cx) / fx, (v - cy) / fy, 1.0) for u, v in ((0, 0), (width, 0), (width, height), (0, height))]
    )
    world = corners * z @ chunk.world_from_camera[:3, :3].T + chunk.world_from_camera[:3, 3]
    tip = np.broadcast_to(chunk.world_from_camera[:3, 3], world.shape)
    return np.concatenate((np.stack((tip, world), axis=1), np.stack((world, np.roll(world, 1, axis=0)), axis=1)))


def _keys(cells: NDArray[np.int32]) -> NDArray[np.int64]:
    """One integer a cell, unique within 2^20 cells of the origin."""
    x, y, z = (cells.astype(np.int64) + (1 << 20)).T
    keys: NDArray[np.int64] = (x << 42) | (y << 21) | z
    return keys

"""Furniture of a room. A category is a shape with random proportions; colour does not depend on it.

Every builder takes a random generator and returns a :class:`Piece` in its own frame: metres, z up, the middle of the
footprint at the origin, the front towards +y (a piece that stands against a wall turns its back, -y, to it).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray


class Shape(NamedTuple):
    """One solid of a piece of furniture."""

    vertices: NDArray[np.float64]  #: (V, 3) metres
    faces: NDArray[np.int64]  #: (F, 3) rows of ``vertices``
    tone: int  #: which of the instance's two materials it wears, 0 or 1


def box(centre: ArrayLike, size: ArrayLike, tone: int = 0) -> Shape:
    """Axis-aligned box with its middle at ``centre`` (3,) and edge lengths ``size`` (3,), metres."""
    vertices, faces = _template("box")
    return Shape(vertices * np.asarray(size) + np.asarray(centre), faces, tone)


def cylinder(foot: ArrayLike, radius: float, height: float, tone: int = 0, taper: float = 1.0) -> Shape:
    """Upright cylinder standing on ``foot`` (3,), metres; its upper radius is ``taper`` times the lower one."""
    vertices, faces = _template("cylinder")
    wide = np.where(vertices[:, 2:] > 0, taper, 1.0) * radius
    scaled = vertices * np.concatenate((wide, wide, np.full_like(wide, height)), axis=1)
    return Shape(scaled + np.asarray(foot) + (0, 0, height / 2), faces, tone)


def ellipsoid(centre: ArrayLike, radii: ArrayLike, tone: int = 0) -> Shape:
    """Ellipsoid with its middle at ``centre`` (3,) and half axes ``radii`` (3,) or one radius, metres."""
    vertices, faces = _template("sphere")
    return Shape(vertices * np.asarray(radii) + np.asarray(centre), faces, tone)


@cache
def _template(kind: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices and faces of a unit solid around the origin: edge, radius and height are 1."""
    if kind == "box":
        mesh = trimesh.creation.box((1, 1, 1))
    elif kind == "cylinder":
        mesh = trimesh.creation.cylinder(radius=1, height=1, sections=20)
    else:
        mesh = trimesh.creation.icosphere(subdivisions=2, radius=1)
    return np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)


class Support(NamedTuple):
    """A level rectangle around the piece's origin that small objects may stand on."""

    height: float  #: metres above the floor
    width: float  #: metres along x
    depth: float  #: metres along y
    headroom: float  #: free metres above it


class Piece(NamedTuple):
    """One piece of furniture."""

    parts: list[Shape]
    width: float  #: footprint along x, metres
    depth: float  #: footprint along y, metres
    supports: tuple[Support, ...] = ()
    at_wall: bool = False  #: stands with its back to a wall


def _legs(width: float, depth: float, height: float, thick: float, round_legs: bool, tone: int) -> list[Shape]:
    """Four legs at the corners of a ``width`` x ``depth`` rectangle."""
    x, y = width / 2 - thick, depth / 2 - thick
    corners = [(sx * x, sy * y) for sx in (-1, 1) for sy in (-1, 1)]
    if round_legs:
        return [cylinder((cx, cy, 0), thick / 2, height, tone) for cx, cy in corners]
    return [box((cx, cy, height / 2), (thick, thick, height), tone) for cx, cy in corners]


def bed(rng: np.random.Generator) -> Piece:
    """Low base with a mattress, pillows and a headboard."""
    w, d, h = rng.uniform(0.9, 1.7), rng.uniform(1.85, 2.1), rng.uniform(0.2, 0.32)
    mattress, head = rng.uniform(0.14, 0.24), rng.uniform(0.7, 1.15)
    parts = [
        box((0, 0, h / 2), (w, d, h)),
        box((0, 0.03, h + mattress / 2), (w - 0.06, d - 0.1, mattress), 1),
        box((0, -d / 2 + 0.03, head / 2), (w + 0.04, 0.06, head)),
    ]
    for x in [-w / 4, w / 4] if w > 1.2 else [0.0]:
        parts.append(ellipsoid((x, -d / 2 + 0.32, h + mattress + 0.04), (min(w / 4.6, 0.34), 0.2, 0.09), 0))
    return Piece(parts, w + 0.04, d, at_wall=True)


def table(rng: np.random.Generator) -> Piece:
    """Thin top, square or round, on four legs."""
    w, d, h, top = rng.uniform(0.8, 1.7), rng.uniform(0.65, 0.95), rng.uniform(0.68, 0.8), rng.uniform(0.025, 0.06)
    if rng.random() < 0.3:
        w = d = rng.uniform(0.8, 1.2)
        parts = [cylinder((0, 0, h - top), w / 2, top), *_legs(w * 0.7, w * 0.7, h - top, 0.05, True, 1)]
        return Piece(parts, w, d, (Support(h, 0.65 * w, 0.65 * d, 0.5),))
    legs = _legs(w, d, h - top, rng.uniform(0.04, 0.09), bool(rng.random() < 0.4), 1)
    return Piece([box((0, 0, h - top / 2), (w, d, top)), *legs], w, d, (Support(h, w - 0.08, d - 0.08, 0.5),))


def chair(rng: np.random.Generator) -> Piece:
    """Seat on four thin legs with a backrest of a panel or bars."""
    w, d = rng.uniform(0.4, 0.52), rng.uniform(0.4, 0.5)
    seat, back = rng.uniform(0.42, 0.5), rng.uniform(0.36, 0.55)
    thick = rng.uniform(0.03, 0.05)
    parts = [box((0, 0, seat - 0.025), (w, d, 0.05)), *_legs(w, d, seat - 0.05, thick, bool(rng.random() < 0.5), 1)]
    y = -d / 2 + 0.02
    if rng.random() < 0.5:
        parts.append(box((0, y, seat + back / 2), (w, 0.04, back)))
    else:
        parts += [box((x, y, seat + back / 2), (0.04, 0.04, back), 1) for x in (-w / 2 + 0.02, w / 2 - 0.02)]
        parts += [box((0, y, seat + back * part), (w, 0.03, 0.1)) for part in (0.45, 0.85)]
    return Piece(parts, w, d)


def sofa(rng: np.random.Generator) -> Piece:
    """Deep seat between two armrests, with a backrest and cushions."""
    w, d, seat = rng.uniform(1.3, 2.2), rng.uniform(0.8, 0.95), rng.uniform(0.36, 0.45)
    arm, back, side = rng.uniform(0.55, 0.66), rng.uniform(0.75, 0.95), rng.uniform(0.14, 0.24)
    parts = [
        box((0, 0, 0.05 + (seat - 0.05) / 2), (w, d, seat - 0.05)),
        box((0, -d / 2 + 0.1, back / 2 + 0.03), (w, 0.2, back - 0.06)),
        *[box((s * (w - side) / 2, 0, arm / 2 + 0.02), (side, d, arm - 0.04)) for s in (-1, 1)],
    ]
    inner, count = w - 2 * side, 2 if w < 1.75 else 3
    for k in range(count):
        x = (k + 0.5) / count * inner - inner / 2
        parts.append(box((x, 0.1, seat + 0.06), (inner / count - 0.03, d - 0.24, 0.12), 1))
        parts.append(ellipsoid((x, -d / 2 + 0.26, seat + 0.28), (inner / count / 2.4, 0.09, 0.18), 1))
    return Piece(parts, w, d, at_wall=True)


def shelf(rng: np.random.Generator) -> Piece:
    """Open rack: two sides, a back and boards that carry small things."""
    w, d, h, boards = rng.uniform(0.6, 1.2), rng.uniform(0.25, 0.4), rng.uniform(1.1, 2.1), int(rng.integers(3, 6))
    parts = [box((s * (w / 2 - 0.015), 0, h / 2), (0.03, d, h)) for s in (-1, 1)]
    parts.append(box((0, -d / 2 + 0.006, h / 2), (w, 0.012, h), 1))
    heights = np.linspace(0.06, h - 0.015, boards + 1)
    parts += [box((0, 0, z), (w, d, 0.03)) for z in heights]
    gap = float(heights[1] - heights[0]) - 0.05
    supports = tuple(Support(float(z) + 0.016, w - 0.1, d - 0.04, gap) for z in heights[:-1])
    return Piece(parts, w, d, (*supports, Support(h, w - 0.06, d - 0.04, 0.3)), at_wall=True)


def cabinet(rng: np.random.Generator) -> Piece:
    """Block, closed, on short feet with doors and knobs."""
    w, d = rng.uniform(0.6, 1.4), rng.uniform(0.38, 0.6)
    h = rng.uniform(0.6, 1.05) if rng.random() < 0.7 else rng.uniform(1.5, 1.9)
    doors = 1 if w < 0.75 else int(rng.integers(2, 4))
    parts = [box((0, 0, 0.06 + (h - 0.06) / 2), (w, d, h - 0.06)), *_legs(w, d, 0.06, 0.06, True, 1)]
    for k in range(doors):
        x = (k + 0.5) / doors * w - w / 2
        parts.append(box((x, d / 2 + 0.01, h / 2 + 0.03), (w / doors - 0.04, 0.02, h - 0.16), 1))
        parts.append(ellipsoid((x + 0.3 * w / doors, d / 2 + 0.035, h * 0.6), 0.022))
    return Piece(parts, w, d + 0.06, (Support(h, w - 0.06, d - 0.06, 0.4),) if h < 1.2 else (), at_wall=True)


def lamp(rng: np.random.Generator) -> Piece:
    """Floor lamp: flat foot, thin pole, tapered shade or globe."""
    h, foot, shade = rng.uniform(1.25, 1.75), rng.uniform(0.12, 0.18), rng.uniform(0.14, 0.24)
    parts = [cylinder((0, 0, 0), foot, 0.03), cylinder((0, 0, 0), rng.uniform(0.014, 0.025), h - 0.1)]
    if rng.random() < 0.7:
        parts.append(cylinder((0, 0, h - 0.3), shade, 0.3, 1, taper=rng.uniform(0.5, 0.8)))
    else:
        parts.append(ellipsoid((0, 0, h - shade), shade, 1))
    wide = 2 * max(foot, shade)
    return Piece(parts, wide, wide)


def plant(rng: np.random.Generator) -> Piece:
    """Tapered pot, stem and a cloud of leaves."""
    pot, pot_h, h = rng.uniform(0.11, 0.18), rng.uniform(0.2, 0.34), rng.uniform(0.8, 1.5)
    crown = rng.uniform(0.2, 0.32)
    parts = [cylinder((0, 0, 0), pot, pot_h, taper=1.3), cylinder((0, 0, pot_h - 0.02), 0.02, h - pot_h - 0.2)]
    for _ in range(int(rng.integers(9, 16))):
        way = rng.normal(size=3)
        way *= rng.uniform(0.3, 0.8) / np.linalg.norm(way)
        centre = np.array([0, 0, h - crown]) + way * (crown, crown, 1.3 * crown)
        parts.append(ellipsoid(centre, rng.uniform(0.25, 0.5, 3) * crown, 1))
    wide = 2.6 * max(crown, pot)
    return Piece(parts, wide, wide)


def stool(rng: np.random.Generator) -> Piece:
    """Round seat without a back on one column."""
    r, h, top = rng.uniform(0.15, 0.22), rng.uniform(0.4, 0.72), rng.uniform(0.03, 0.09)
    foot = r * rng.uniform(0.8, 1.0)
    parts = [
        cylinder((0, 0, h - top), r, top),
        cylinder((0, 0, 0.02), rng.uniform(0.025, 0.05), h - top - 0.02, 1),
        cylinder((0, 0, 0), foot, 0.03, 1, taper=0.8),
    ]
    return Piece(parts, 2 * r, 2 * r)


def clutter(rng: np.random.Generator, largest: float = 0.3) -> Piece:
    """Small thing, box, bottle or ball, at most ``largest`` metres high."""
    kind = int(rng.integers(4))
    if kind == 0:
        w, d, h = rng.uniform(0.06, 0.22), rng.uniform(0.05, 0.18), min(rng.uniform(0.04, 0.28), largest)
        return Piece([box((0, 0, h / 2), (w, d, h))], w, d)
    if kind == 1:
        r, h = rng.uniform(0.03, 0.06), min(rng.uniform(0.18, 0.32), largest)
        return Piece([cylinder((0, 0, 0), r, 0.65 * h), cylinder((0, 0, 0.65 * h), 0.4 * r, 0.35 * h, 1)], 2 * r, 2 * r)
    if kind == 2:
        r = min(rng.uniform(0.05, 0.12), largest / 2)
        return Piece([ellipsoid((0, 0, r), r)], 2 * r, 2 * r)
    w, d, count = rng.uniform(0.15, 0.24), rng.uniform(0.1, 0.18), int(rng.integers(2, 5))
    thick = min(0.04, largest / count)
    books = [box((0, 0, (k + 0.5) * thick), (w * rng.uniform(0.8, 1), d, thick * 0.95), k % 2) for k in range(count)]
    return Piece(books, w, d)


#: category -> builder; the order gives the class ids after wall, floor and ceiling
BUILDERS: dict[str, Callable[[np.random.Generator], Piece]] = {
    "bed": bed,
    "table": table,
    "chair": chair,
    "sofa": sofa,
    "shelf": shelf,
    "cabinet": cabinet,
    "lamp": lamp,
    "plant": plant,
    "stool": stool,
}

"""Solids made of triangles: box, tapered cylinder, ellipsoid; each a unit template that is scaled and moved."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray


class Part(NamedTuple):
    """One solid of a piece of furniture."""

    vertices: NDArray[np.float64]  #: (V, 3) metres
    faces: NDArray[np.int64]  #: (F, 3) rows of ``vertices``
    tone: int  #: which of the instance's two materials it wears, 0 or 1


def box(centre: ArrayLike, size: ArrayLike, tone: int = 0) -> Part:
    """Axis-aligned box with its middle at ``centre`` (3,) and edge lengths ``size`` (3,), metres."""
    vertices, faces = _template("box")
    return Part(vertices * np.asarray(size) + np.asarray(centre), faces, tone)


def cylinder(foot: ArrayLike, radius: float, height: float, tone: int = 0, taper: float = 1.0) -> Part:
    """Upright cylinder standing on ``foot`` (3,), metres; its upper radius is ``taper`` times the lower one."""
    vertices, faces = _template("cylinder")
    wide = np.where(vertices[:, 2:] > 0, taper, 1.0) * radius
    scaled = vertices * np.concatenate((wide, wide, np.full_like(wide, height)), axis=1)
    return Part(scaled + np.asarray(foot) + (0, 0, height / 2), faces, tone)


def ellipsoid(centre: ArrayLike, radii: ArrayLike, tone: int = 0) -> Part:
    """Ellipsoid with its middle at ``centre`` (3,) and half axes ``radii`` (3,) or one radius, metres."""
    vertices, faces = _template("sphere")
    return Part(vertices * np.asarray(radii) + np.asarray(centre), faces, tone)


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

"""First triangle along a ray: embree where its wheel exists, else a compiled loop over the triangles."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import trimesh
from numpy.typing import NDArray

#: origins (N, 3) and directions (N, 3) -> index of the first triangle hit (N,), -1 where there is none
Caster = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.int64]]


def caster(mesh: trimesh.Trimesh, use_embree: bool | None = None) -> Caster:
    """Return the function that casts rays at ``mesh``; ``use_embree`` None takes embree where it is installed."""
    if use_embree is None:
        use_embree = find_spec("embreex") is not None
    if use_embree:
        from trimesh.ray.ray_pyembree import RayMeshIntersector  # noqa: PLC0415  (no wheel for Linux on Arm)

        first: Caster = RayMeshIntersector(mesh).intersects_first
        return first
    from pri3d.rooms.rayloop import first_hits  # noqa: PLC0415  (compiles on first use)

    corners = np.ascontiguousarray(mesh.triangles, dtype=np.float64)

    def cast(origins: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.int64]:
        hits: NDArray[np.int64] = first_hits(corners, np.asarray(origins, float), np.asarray(directions, float))
        return hits

    return cast


def distance(
    mesh: trimesh.Trimesh,
    triangle: NDArray[np.int64],
    origins: NDArray[np.float64],
    directions: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Ray parameter t (N,) where origin + t * direction meets the plane of ``triangle``; 0 for triangle -1.

    Exact to float64: the plane decides, not the float32 hit. With camera rays whose z is 1, t is the depth.
    """
    normal = mesh.face_normals[triangle]
    corner = mesh.vertices[mesh.faces[triangle, 0]]
    along = np.einsum("ij,ij->i", normal, directions)
    valid = (triangle >= 0) & (np.abs(along) > 1e-12)
    t = np.einsum("ij,ij->i", normal, corner - origins) / np.where(valid, along, 1.0)
    return np.where(valid, t, 0.0)

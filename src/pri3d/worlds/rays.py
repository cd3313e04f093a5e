"""First triangle along a ray: embree where its wheel exists, else a compiled loop over the triangles."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

#: origins (N, 3) and directions (N, 3) -> index of the first triangle hit (N,), -1 where there is none
Caster = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.int64]]

_SCALE = 16.0  # embree computes in float32 with absolute tolerances made for scenes about 100 units wide


def caster(corners: NDArray[np.float64], use_embree: bool | None = None) -> Caster:
    """Return the function that casts rays at triangles ``corners`` (F, 3, 3), metres.

    ``use_embree`` None takes embree where it is installed (there is no wheel for Linux on Arm).
    """
    if use_embree is None:
        use_embree = find_spec("embreex") is not None
    return _embree(corners) if use_embree else _loop(corners)


def _embree(corners: NDArray[np.float64]) -> Caster:
    from embreex.mesh_construction import TriangleMesh  # noqa: PLC0415  (optional)
    from embreex.rtcore_scene import EmbreeScene  # noqa: PLC0415

    scene = EmbreeScene()
    vertices = (corners.reshape(-1, 3) * _SCALE).astype(np.float32)
    TriangleMesh(scene, vertices, np.arange(len(vertices), dtype=np.int32).reshape(-1, 3))

    def cast(origins: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.int64]:
        hits: NDArray[np.int64] = scene.run((origins * _SCALE).astype(np.float32), directions.astype(np.float32))
        return hits

    return cast


def _loop(corners: NDArray[np.float64]) -> Caster:
    from pri3d.worlds.rayloop import blocks, first_hits  # noqa: PLC0415  (numba takes seconds to import)

    corners = np.ascontiguousarray(corners, dtype=np.float64)
    boxes = blocks(corners)

    def cast(origins: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.int64]:
        starts, rays = np.ascontiguousarray(origins), np.ascontiguousarray(directions)
        hits: NDArray[np.int64] = first_hits(corners, boxes, starts, rays)
        return hits

    return cast


def triangle_planes(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Planes (F, 4) of triangles (F, 3, 3): unit normal n and offset d with n . x = d on the plane."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return np.concatenate((normal, np.einsum("ij,ij->i", normal, corners[:, 0])[:, None]), axis=1)


def distance(
    planes: NDArray[np.float64], origins: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Ray parameter t (N,) where origin + t * direction meets its plane (N, 4); 0 for parallel rays.

    Exact to float64: the plane decides, not embree's float32. With camera rays whose z is 1, t is the depth.
    """
    along = np.einsum("ij,ij->i", planes[:, :3], directions)
    height = planes[:, 3] - np.einsum("ij,ij->i", planes[:, :3], origins)
    return np.asarray(np.divide(height, along, out=np.zeros_like(along), where=np.abs(along) > 1e-12))

"""The voxelised surface of a scene: from its mesh where the source has one, else fused from the depth images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

from pri3d.errors import DataError
from pri3d.geometry.fusion import REACH, color_cells, fuse_depth, voxelise_triangles
from pri3d.preparation.frames import SceneFrames
from pri3d.store import millimetres
from pri3d.types import Voxels

_MOST_CELLS = 3e7  # 12,000 square metres at 2 cm


def scene_surface(mesh: Path | None, frames: SceneFrames, size: float) -> Voxels:
    """Surface cells of edge ``size`` m with the mean colour of the frames that see them.

    Raises DataError where the mesh cannot be read, has no triangles or lies too far from the origin.
    """
    stack = frames.stack
    if mesh is not None:
        voxels = mesh_cells(mesh, size)
    else:
        voxels = fuse_depth(stack.depth, stack.intrinsics, stack.world_from_camera, size)
    color = [view.color for view in frames.views]
    depth = [millimetres(view.depth) for view in frames.views]
    intrinsics = np.array([view.intrinsics for view in frames.views])
    return color_cells(voxels, color, depth, intrinsics, stack.world_from_camera)


def mesh_cells(path: Path, size: float) -> Voxels:
    """Cells of edge ``size`` m that the mesh file passes through.

    Raises DataError where it is no triangle mesh or has a vertex beyond what the cells reach.
    """
    try:
        mesh = trimesh.load_mesh(path, process=False)
    except Exception as error:  # the parsers of a dozen formats raise what they like
        raise DataError(
            f"{path}: not a readable mesh ({error!r}). Repair it, or remove it to fuse the depth."
        ) from error
    faces = np.asarray(getattr(mesh, "faces", ()))
    if len(faces) == 0:
        raise DataError(f"{path}: holds no triangles. Give a triangle mesh, or remove it to fuse the depth images.")
    cells = float(mesh.area) / size**2
    if not cells < _MOST_CELLS or not np.isfinite(mesh.bounds).all():
        raise DataError(f"{path}: its triangles span {mesh.area:.3g} square metres; is it written in metres?")
    farthest = float(np.abs(mesh.bounds).max())
    if farthest > REACH * size:
        raise DataError(
            f"{path}: a coordinate of {farthest:.6g} m is beyond the {REACH * size:.6g} m that cells of {size:g} m "
            "reach; move the recording, mesh and poses alike, near the origin."
        )
    return voxelise_triangles(np.asarray(mesh.vertices, np.float64), faces.astype(np.int64), size)

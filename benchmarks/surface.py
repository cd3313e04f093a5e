"""How true the fused surface is to the real one, and what it costs.

    PRI3D_REAL_DATA=FOLDER python -m benchmarks.surface

Rooms rendered without noise at 640 x 480; cells of 2 cm. A cell is within one voxel of another where it is the same or
one of its 26 neighbours.
Coverage: share of the cells that hold a back-projected depth pixel and have a fused cell within one voxel.
Precision: share of the fused cells that have a cell of the room's own triangles within one voxel.
Seconds: CPU, one thread, for 100 frames of 640 x 480: the 7-Scenes kitchen of PRI3D_REAL_DATA, else a room.
"""

from __future__ import annotations

import time

import numpy as np
from benchmarks.mining import load_stack, world_points
from numpy.typing import NDArray

from pri3d.geometry.fusion import fuse_depth, voxelise_triangles
from pri3d.preparation.overlap import DepthStack
from pri3d.store import millimetres
from pri3d.worlds.render import render_room
from pri3d.worlds.room import build_room

SIZE = 0.02
ROOMS, FRAMES = 3, 30


def keys(cells: NDArray[np.int64] | NDArray[np.int32]) -> NDArray[np.int64]:
    """One number a cell."""
    x, y, z = cells.astype(np.int64).T
    return (x << 42) + (y << 21) + z


def share_near(cells: NDArray[np.int64] | NDArray[np.int32], others: NDArray[np.int32]) -> float:
    """Share of ``cells`` (n, 3) that have one of ``others`` within one voxel."""
    table = np.sort(keys(others))
    found = np.zeros(len(cells), bool)
    for step in np.ndindex(3, 3, 3):
        found |= np.isin(keys(cells + (np.array(step) - 1)), table, assume_unique=True)
    return float(found.mean())


def room_figures(index: int) -> tuple[float, float, int, int]:
    """Coverage, precision, fused cells and the room's cells of one room."""
    room = build_room(7, index)
    frames = render_room(room, FRAMES, 640, 480, noise=False)
    depth = np.stack([millimetres(f.depth) for f in frames])
    intrinsics = np.array([f.depth_camera[2:] for f in frames])
    stack = DepthStack(depth, intrinsics, np.stack([f.world_from_camera for f in frames]))
    fused = fuse_depth(*stack, SIZE).cells
    points = np.concatenate([world_points(stack, n) for n in range(FRAMES)])
    seen = np.unique(np.floor(points / SIZE).astype(np.int64), axis=0)
    own = voxelise_triangles(room.vertices, room.faces, SIZE).cells
    return share_near(seen, fused), share_near(fused, own), len(fused), len(own)


def run() -> list[tuple[str, str, str]]:
    """Name, measured value and bar of every figure; coverage and precision are the worst of the rooms."""
    coverage, precision, fused, own = zip(*(room_figures(k) for k in range(ROOMS)), strict=True)
    name, stack = load_stack(100)
    start = time.process_time()
    cells = fuse_depth(*stack, SIZE).cells
    took = time.process_time() - start
    return [
        (f"coverage within one voxel, worst of {ROOMS} rooms, %", f"{100 * min(coverage):.2f}", ">= 99"),
        (f"precision within one voxel, worst of {ROOMS} rooms, %", f"{100 * min(precision):.2f}", ">= 98"),
        ("  fused cells / cells of the whole mesh, mean", f"{np.mean(fused):,.0f} / {np.mean(own):,.0f}", ""),
        (f"fusion of 100 frames, s ({name})", f"{took:.2f}", "<= 3.0"),
        ("  cells", f"{len(cells):,}", ""),
    ]


def main() -> None:
    """Print the table."""
    for name, measured, bar in run():
        print(f"{name:92s} {measured:>20s}  {bar}")


if __name__ == "__main__":
    main()

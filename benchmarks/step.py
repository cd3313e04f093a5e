"""Matching and loss of a training step against a plain per-sample loop of the same definitions.

    python -m benchmarks.step

Eight pairs of a rendered room at 320 x 240, features at half resolution, 1024 points, 2 cm voxels, 64 projected
dimensions; the 2D and 3D networks are left out (their outputs are given), the backward pass to them is in.
CPU seconds of one thread, both sides interleaved, the median of the rounds.

Plain loop, for one pair after the other: move every pixel of frame 0 into frame 1, compare 3D points, list the
matches of half-resolution cells, draw 1024, index the feature maps, cross-entropy over the similarity matrix in both
directions. For each frame: project every voxel centre of its chunk, compare with the pixel's point, draw, contrast.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.geometry.camera import back_project, pixel_centres, project
from pri3d.geometry.pose import invert, transform
from pri3d.objectives import Features
from pri3d.objectives.contrast import info_nce
from pri3d.objectives.geometry import GeometryObjective
from pri3d.objectives.view import ViewObjective
from pri3d.types import PairBatch
from pri3d.worlds.render import render_room
from pri3d.worlds.scene import build_room

PAIRS, POINTS, DISTANCE, TEMPERATURE, VOXEL = 8, 1024, 0.02, 0.4, 0.02
WIDTH, HEIGHT = 320, 240
GRID = (HEIGHT // 2, WIDTH // 2)
ROUNDS = 5


def inputs() -> PairBatch:
    """Consecutive frames of a room as pairs, and the occupied 2 cm voxels of each frame's own points and neighbours."""
    frames = render_room(build_room(0, 0), PAIRS + 1, WIDTH, HEIGHT)
    depth = torch.stack([torch.from_numpy(f.depth) for f in frames])
    intrinsics = torch.tensor([f.depth_camera[2:] for f in frames])
    poses = torch.stack([torch.from_numpy(f.world_from_camera) for f in frames]).float()
    pixels = pixel_centres(HEIGHT, WIDTH, like=depth).reshape(-1, 2)
    clouds = transform(poses, back_project(depth.flatten(1), pixels, intrinsics))
    order = [(k, k + 1) for k in range(PAIRS)]
    rows = []
    for chunk, k in enumerate(k for pair in order for k in pair):
        near = torch.cat([clouds[n][depth[n].flatten() > 0] for n in {max(k - 1, 0), k, min(k + 1, PAIRS)}])
        cells = np.unique(np.floor(near.numpy() / VOXEL).astype(np.int64), axis=0)
        rows.append(torch.from_numpy(np.pad(cells, ((0, 0), (1, 0)), constant_values=chunk)))
    index, cells = torch.tensor(order), torch.cat(rows)
    return PairBatch(
        color=torch.empty(PAIRS, 2, 3, HEIGHT, WIDTH),
        depth=depth[index],
        intrinsics=intrinsics[index],
        world_from_camera=poses[index],
        voxel_cells=cells,
        voxel_color=torch.zeros(len(cells), 3),
        voxel_size=torch.tensor(VOXEL),
        seeds=torch.arange(PAIRS),
        names=[str(k) for k in range(PAIRS)],
    )


def plain_contrast(first: Tensor, second: Tensor) -> Tensor:
    """Eq. 1 with cross-entropy, both directions."""
    logits = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / TEMPERATURE
    target = torch.arange(len(logits))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def draw(count: int) -> Tensor:
    """Up to POINTS of ``count`` rows."""
    return torch.randperm(count)[:POINTS]


def inside(pixels: Tensor) -> Tensor:
    """Whether pixels (N, 2) lie in the image."""
    return (pixels >= 0).all(1) & (pixels[:, 0] < WIDTH) & (pixels[:, 1] < HEIGHT)


def plain_view(data: PairBatch, maps: Tensor) -> Tensor:
    """The loop over pairs."""
    depth, intrinsics, poses = data.depth, data.intrinsics, data.world_from_camera
    pixels = pixel_centres(HEIGHT, WIDTH, like=depth).reshape(-1, 2)
    total = maps.new_zeros(())
    for b in range(PAIRS):
        points = [transform(poses[b, v], back_project(depth[b, v].flatten(), pixels, intrinsics[b, v])) for v in (0, 1)]
        there, z = project(transform(invert(poses[b, 1]), points[0]), intrinsics[b, 1])
        there = there.floor().long()
        ok = (depth[b, 0].flatten() > 0) & (z > 0) & inside(there)
        source = ok.nonzero()[:, 0]
        target = there[source, 1] * WIDTH + there[source, 0]
        near = (points[0][source] - points[1][target]).norm(dim=1) < DISTANCE
        near &= depth[b, 1].flatten()[target] > 0
        source, target = source[near], target[near]
        cell = [(p // WIDTH // 2) * GRID[1] + p % WIDTH // 2 for p in (source, target)]
        keep = draw(len(source))
        rows = [maps[b, v].flatten(1)[:, cell[v][keep]].T for v in (0, 1)]
        total = total + plain_contrast(rows[0], rows[1]) / PAIRS
    return total


def plain_geometry(data: PairBatch, maps: Tensor, volume: Tensor, heads: tuple[nn.Module, nn.Module]) -> Tensor:
    """The loop over frames."""
    depth, intrinsics, poses, cells = data.depth, data.intrinsics, data.world_from_camera, data.voxel_cells
    pixels = pixel_centres(HEIGHT, WIDTH, like=depth).reshape(-1, 2)
    total = maps.new_zeros(())
    for chunk in range(2 * PAIRS):
        b, v = divmod(chunk, 2)
        rows = (cells[:, 0] == chunk).nonzero()[:, 0]
        centres = (cells[rows, 1:].float() + 0.5) * VOXEL
        there, z = project(transform(invert(poses[b, v]), centres), intrinsics[b, v])
        there = there.floor().long()
        ok = (z > 0) & inside(there)
        rows, there, centres = rows[ok], there[ok], centres[ok]
        pixel = there[:, 1] * WIDTH + there[:, 0]
        points = transform(poses[b, v], back_project(depth[b, v].flatten(), pixels, intrinsics[b, v]))
        near = ((points[pixel] - centres).norm(dim=1) < VOXEL) & (depth[b, v].flatten()[pixel] > 0)
        rows, pixel = rows[near], pixel[near]
        cell = (pixel // WIDTH // 2) * GRID[1] + pixel % WIDTH // 2
        keep = draw(len(rows))
        first = heads[0](maps[b, v].flatten(1)[:, cell[keep]].T)
        total = total + plain_contrast(first, heads[1](volume[rows[keep]])) / (2 * PAIRS)
    return total


def seconds(step: Callable[[], Tensor]) -> float:
    """CPU seconds of one forward and backward pass."""
    start = time.process_time()
    step().backward()
    return time.process_time() - start


def compare(ours: Callable[[], Tensor], plain: Callable[[], Tensor]) -> tuple[float, float]:
    """Median seconds of both, interleaved, after one round to warm up."""
    rounds = [(seconds(ours), seconds(plain)) for _ in range(ROUNDS + 1)][1:]
    return median(r[0] for r in rounds), median(r[1] for r in rounds)


def gemm_floor(channels: int) -> float:
    """CPU seconds of the three matrix products a contrast of all pairs cannot do without."""
    a, b = torch.randn(PAIRS, POINTS, channels), torch.randn(PAIRS, POINTS, channels)
    s = torch.randn(PAIRS, POINTS, POINTS)
    times = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        for k in range(PAIRS):  # one at a time, as the caches like it best
            a[k] @ b[k].T, s[k] @ b[k], s[k].T @ a[k]
        times.append(time.process_time() - start)
    return median(times[1:])


def run() -> list[tuple[str, str, str]]:
    """Rows: what, measured, bar."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = inputs()
    table = []
    for channels in (32, 128):
        maps = torch.randn(2 * PAIRS, channels, *GRID).to(memory_format=torch.channels_last)
        maps = maps.unflatten(0, (PAIRS, 2)).requires_grad_()
        volume = torch.randn(len(data.voxel_cells), 96, requires_grad=True)
        view = ViewObjective(POINTS, TEMPERATURE, DISTANCE)
        geometry = GeometryObjective(channels, points=POINTS, temperature=TEMPERATURE, net3d="tiny")
        heads = geometry.project_pixels, geometry.project_voxels
        us, loop = compare(lambda: view(Features(maps, []), data).loss, lambda: plain_view(data, maps))
        table.append((f"view step, C={channels}: {us * 1e3:.0f} ms", f"{loop / us:.1f}x", ">= 2.5x"))
        us, loop = compare(
            lambda: view(Features(maps, []), data).loss + geometry.contrast(Features(maps, []), data, volume).loss,
            lambda: plain_view(data, maps) + plain_geometry(data, maps, volume, heads),
        )
        table.append((f"joint step, C={channels}: {us * 1e3:.0f} ms", f"{loop / us:.1f}x", ">= 4x"))
    rows = torch.randn(2, PAIRS, POINTS, 128, requires_grad=True)
    valid = torch.ones(PAIRS, POINTS, dtype=torch.bool)
    core = median(seconds(lambda: info_nce(rows[0], rows[1], valid, TEMPERATURE).loss.sum()) for _ in range(ROUNDS))
    share = gemm_floor(128) / core
    table.append((f"contrast core, C=128: {core * 1e3:.0f} ms", f"{share:.0%} of GEMM floor", ">= 50 %"))
    return table


if __name__ == "__main__":
    print(f"{len(inputs().voxel_cells) // (2 * PAIRS)} voxels a chunk")
    for name, measured, bar in run():
        print(f"{name:32} {measured:20} bar {bar}")

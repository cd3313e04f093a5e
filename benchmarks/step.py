"""Matching and loss of a training step against a plain per-sample loop of the same definitions.

    python -m benchmarks.step

Eight pairs of a rendered room at 320 x 240, features at half resolution, 1024 points, 2 cm voxels, 64 projected
dimensions; the 2D and 3D networks are left out (their outputs are given), the backward pass to them is in.
CPU seconds of one thread, both sides interleaved, the median of the rounds.

Plain loop, for one pair after the other: move every pixel of frame 0 into frame 1, compare 3D points, list the
matches of half-resolution cells, draw 1024, index the feature maps, cross-entropy over the similarity matrix in both
directions. For each frame: project every voxel centre of its chunk, compare with the pixel's point, draw, contrast.
Indexing a sample's map costs the loop a gradient of the size of all maps, zeros but for that sample.

Host syncs are the operators that must hand a value or a shape to the host: on a GPU each of them waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pri3d.geometry.camera import back_project, pixel_centres, project
from pri3d.geometry.matching import Matches, choose, match_pixels
from pri3d.geometry.pose import invert, transform
from pri3d.objectives import Features
from pri3d.objectives.contrast import info_nce
from pri3d.objectives.geometry import GeometryObjective
from pri3d.objectives.view import ViewObjective, pick_views
from pri3d.types import PairBatch
from pri3d.worlds.render import render_room
from pri3d.worlds.room import build_room

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


def plain_loss(matches: Matches, maps: Tensor) -> Tensor:
    """The loop over pairs from given matches on."""
    total, views = maps.new_zeros(()), maps.unbind(1)
    for b in range(PAIRS):
        valid = matches.valid[b]
        cells = matches.first[b, valid], matches.second[b, valid]
        rows = [view[b].flatten(1)[:, cell].T for view, cell in zip(views, cells, strict=True)]
        total = total + plain_contrast(rows[0], rows[1]) / PAIRS
    return total


def fused_loss(matches: Matches, maps: Tensor) -> Tensor:
    """The same by the package."""
    first, second = pick_views(Features(maps, []), {"first": matches.first, "second": matches.second})
    return info_nce(first, second, matches.valid, TEMPERATURE).loss.mean()


class CountSyncs(TorchDispatchMode):
    """Counts the operators whose result or its shape the host must know."""

    tags = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
    count = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        indexed = func._schema.name.startswith("aten::index")  # by a mask or by numbers, only the mask is unknown
        masked = torch.bool in [getattr(leaf, "dtype", None) for leaf in tree_leaves(args[1:])]
        self.count += bool(self.tags & set(func.tags)) and (masked or not indexed)
        return func(*args, **(kwargs or {}))


def count_syncs(step: Callable[[], Tensor]) -> int:
    """Of one forward and backward pass."""
    with CountSyncs() as counter:
        step().backward()
    return counter.count


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


def core_share(channels: int) -> tuple[float, float]:
    """CPU seconds of the contrast of all pairs, and the share of the three matrix products it cannot do without.

    Both interleaved, the median of the rounds.
    """
    rows = [torch.randn(PAIRS, POINTS, channels, requires_grad=True) for _ in range(2)]
    (a, b), s = (side.detach() for side in rows), torch.randn(PAIRS, POINTS, POINTS)
    valid = torch.ones(PAIRS, POINTS, dtype=torch.bool)
    core, floor = [], []
    for _ in range(ROUNDS + 1):
        core.append(seconds(lambda: info_nce(rows[0], rows[1], valid, TEMPERATURE).loss.sum()))
        start = time.process_time()
        for k in range(PAIRS):  # one at a time, as the caches like it best
            a[k] @ b[k].T, s[k] @ b[k], s[k].T @ a[k]
        floor.append(time.process_time() - start)
    return median(core[1:]), median(floor[1:]) / median(core[1:])


def compare_steps(data: PairBatch, channels: int) -> list[tuple[str, str, str]]:
    """Loss alone, view step, joint step and, at the larger size, host syncs; fused against loop."""
    maps = torch.randn(2 * PAIRS, channels, *GRID).to(memory_format=torch.channels_last)
    maps = maps.unflatten(0, (PAIRS, 2)).requires_grad_()
    volume = torch.randn(len(data.voxel_cells), 96, requires_grad=True)
    view = ViewObjective(POINTS, TEMPERATURE, DISTANCE)
    geometry = GeometryObjective(channels, points=POINTS, temperature=TEMPERATURE, net3d="tiny")
    heads = geometry.project_pixels, geometry.project_voxels
    matches = match_pixels(data.depth, data.intrinsics, data.world_from_camera, GRID, DISTANCE)
    matches = choose(matches, POINTS, data.seeds)

    def joint() -> Tensor:
        given = Features(maps, [])
        return view(given, data).loss + geometry.contrast(given, data, volume).loss

    def plain_joint() -> Tensor:
        return plain_view(data, maps) + plain_geometry(data, maps, volume, heads)

    sides = {
        "loss forward+backward": (lambda: fused_loss(matches, maps), lambda: plain_loss(matches, maps)),
        "view step": (lambda: view(Features(maps, []), data).loss, lambda: plain_view(data, maps)),
        "joint step": (joint, plain_joint),
    }
    table = []
    bars = {32: (">= 2x", ">= 2.5x", ">= 4x"), 128: (">= 3x", ">= 3x", ">= 4x")}[channels]
    for (name, (ours, plain)), bar in zip(sides.items(), bars, strict=True):
        us, loop = compare(ours, plain)
        table.append((f"{name}, C={channels}: {us * 1e3:.0f} ms", f"{loop / us:.1f}x", bar))
    if channels == 128:
        measured = f"{count_syncs(joint)} (loop {count_syncs(plain_joint)})"
        table.append(("host syncs of match + loss, joint step", measured, "0"))
    return table


def run() -> list[tuple[str, str, str]]:
    """Rows: what, measured, bar."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = inputs()
    table = [row for channels in (32, 128) for row in compare_steps(data, channels)]
    core, share = core_share(128)
    table.append((f"contrast core, C=128: {core * 1e3:.0f} ms", f"{share:.0%} of GEMM floor", ">= 50 %"))
    return table


if __name__ == "__main__":
    print(f"{len(inputs().voxel_cells) // (2 * PAIRS)} voxels a chunk")
    for name, measured, bar in run():
        print(f"{name:40} {measured:20} bar {bar}")

"""Pairs of a scene with what is one point in both frames: as measured, and as the features of networks say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.data.pairs import PairDataset, PairItem
from pri3d.data.sampler import Draw
from pri3d.geometry.matching import cell_pixels, cell_points, match_pixels
from pri3d.reporting.figures import spread
from pri3d.store import Store

SHOWN = 24  #: matches of a pair, far from each other
#: a predicted place is right within so many pixels of an image 320 wide, as in `pri3d probe`
TOLERANCE, _WIDTH = 10.0, 320
MEASURED = "measured"


#: colours of right and of wrong matches
RIGHT, WRONG = (0, 158, 115), (213, 94, 0)


class Matched(NamedTuple):
    """M points of the first frame and their places in the second."""

    pixels: NDArray[np.float64]  #: (M, 4) u, v in the first and u, v in the second frame
    points: NDArray[np.float64]  #: (M, 2, 3) world, metres, of the two ends; NaN where nothing was measured
    right: NDArray[np.bool_]  #: (M,) whether the place is the measured one, within the tolerance


class ShownPair(NamedTuple):
    """Two frames of a scene, and their matches by name: ``measured``, and those of networks."""

    name: str  #: scene/frame+frame
    rows: tuple[int, int]  #: of the scene's frames
    colors: NDArray[np.uint8]  #: (2, H, W, 3) RGB
    centres: NDArray[np.float64]  #: (2, 3) of the cameras, world, metres
    overlap: float  #: share 0..1
    angle: float  #: radians between the viewing directions
    matches: Mapping[str, Matched]


def pairs_of_scene(store: Store, scene: str, count: int) -> NDArray[np.int64]:
    """Rows of at most ``count`` pairs of a scene, at even ranks of their overlap, so that nobody picks."""
    table = store.pairs()
    rows = np.flatnonzero(table.scene == scene)
    rows = rows[np.argsort(table.overlap[rows], kind="stable")]
    ranks = (np.arange(1, count + 1) / (count + 1) * len(rows)).astype(np.int64)
    return rows[np.unique(ranks)] if len(rows) else rows


def show_pairs(
    folder: Path,
    rows: NDArray[np.int64],
    size: tuple[int, int],
    distance: float,
    networks: Mapping[str, nn.Module],
) -> list[ShownPair]:
    """The pairs in ``rows`` of the store's table, with at most 24 matches each.

    Images are of ``size`` (width, height); points closer than ``distance`` metres are one. A network, RGB 0..1
    (B, 3, H, W) -> features (B, C, h, w), takes the most similar cell of all of the second frame.
    """
    store = Store(folder)
    dataset, table = PairDataset(folder, rows, size, seed=0), store.pairs()
    pairs = []
    for k, row in enumerate(rows.tolist()):
        item = dataset[Draw(0, k)]
        scene = store.scene(str(table.scene[row]))
        ends = int(table.i[row]), int(table.j[row])
        poses = scene.frames.world_from_camera[list(ends)]
        matches = _match(item, poses, distance, networks)
        colors = item.color.permute(0, 2, 3, 1).numpy()
        overlap, angle = float(table.overlap[row]), float(table.angle[row])
        pairs.append(ShownPair(item.name, ends, colors, poses[:, :3, 3], overlap, angle, matches))
    return pairs


def legs(pair: ShownPair, matched: Matched) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Lines (K, 2, 3) from one camera to its point, on to the other frame's point, and to that camera; which are right.

    The two points of a right match are one, or nearly. Points without measured depth have no lines.
    """
    known = np.isfinite(matched.points).all(axis=(1, 2))
    first, second = matched.points[known, 0], matched.points[known, 1]
    eyes = np.broadcast_to(pair.centres[:, None], (2, len(first), 3))
    lines = np.stack(
        [np.stack(ends, axis=1) for ends in ((eyes[0], first), (first, second), (second, eyes[1]))], axis=1
    )
    return lines.reshape(-1, 2, 3), np.repeat(matched.right[known], 3)


def paint(right: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Colours (K, 3) of right and wrong matches."""
    return np.where(right[:, None], RIGHT, WRONG).astype(np.uint8)


def all_legs(pairs: Sequence[ShownPair], name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """:func:`legs` of every pair's matches of one name, joined."""
    found = [legs(pair, pair.matches[name]) for pair in pairs if name in pair.matches]
    lines = [np.zeros((0, 2, 3)), *(one for one, _ in found)]
    return np.concatenate(lines), np.concatenate([np.zeros(0, bool), *(right for _, right in found)])


@torch.no_grad()
def _match(
    item: PairItem, poses: NDArray[np.float64], distance: float, networks: Mapping[str, nn.Module]
) -> dict[str, Matched]:
    """Measured matches, and those that each network makes of the same points of the first frame."""
    features = {name: F.normalize(net(item.color.float() / 255).float(), dim=1) for name, net in networks.items()}
    height, width = item.depth.shape[-2:]
    shapes = {(int(maps.shape[-2]), int(maps.shape[-1])) for maps in features.values()}
    grid = shapes.pop() if len(shapes) == 1 else (-(-height // 2), -(-width // 2))
    found = match_pixels(item.depth[None], item.intrinsics[None], item.world_from_camera[None], grid, distance)
    centres = cell_pixels(grid, item.depth).double().numpy()
    points, z = cell_points(item.depth, item.intrinsics, grid)
    world = np.einsum("kij,knj->kni", poses[:, :3, :3], points.double().numpy()) + poses[:, None, :3, 3]
    world[z.numpy() <= 0] = np.nan
    first, second = (cells[found.valid].numpy() for cells in (found.first, found.second))
    chosen = spread(centres[first], SHOWN)
    first, second = first[chosen], second[chosen]

    def matched(cells: NDArray[np.int64]) -> Matched:
        gap = np.linalg.norm(centres[cells] - centres[second], axis=1) * _WIDTH / width
        ends = np.concatenate((centres[first], centres[cells]), axis=1)
        # At the measured partner it is one point: the cell's own pixel may lie beyond an object's border.
        there = np.where((cells == second)[:, None], world[0, first], world[1, cells])
        return Matched(ends, np.stack((world[0, first], there), axis=1), gap <= TOLERANCE)

    return {MEASURED: matched(second), **{name: matched(_nearest(maps, first)) for name, maps in features.items()}}


def _nearest(maps: Tensor, first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cells of the second of two maps (2, C, h, w) of unit features most similar to cells of the first."""
    one, two = maps.flatten(2)
    cells: NDArray[np.int64] = (one[:, torch.from_numpy(first)].T @ two).argmax(dim=1).numpy()
    return cells

"""The picture at the top of README: one point of view A, and its similarity with view B before and after training.

    python -m benchmarks.similarity STORE RUN docs/similarity.png

STORE is a prepared dataset that the run has not seen, RUN a pre-training run that keeps its start. Nothing is picked by
hand. The rank of a point is how many places of view B are at least as similar to it as the true one; 1 is best. Of many
points of pairs whose views differ by 30 to 60 degrees, the one is shown whose ranks before and after are nearest to the
medians over all points; of equals, that of the pair whose gain in recall is nearest to the median. Points near a border
of an image are not shown, but counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pri3d.data.pairs import PairDataset, collate
from pri3d.data.sampler import Draw
from pri3d.geometry.matching import choose, match_pixels
from pri3d.geometry.resize import resize_nearest
from pri3d.probing.networks import Dense, open_dense
from pri3d.reporting.gather import match_distance
from pri3d.reporting.style import ACCENT, image_grid, png, show, style
from pri3d.runs import RunPaths
from pri3d.store import Store

DEGREES = (30.0, 60.0)
INSIDE = 0.35  #: of the image, to either side of its middle, is where the point shown lies
PIXELS = 10 / 320  #: of the image's width: within this a point counts as found, as in ``pri3d probe``


class View(NamedTuple):
    """What one pair gives: points and, network by network, how similar view B is to each."""

    colors: NDArray[np.uint8]  #: (2, H, W, 3)
    angle: float  #: degrees
    first: NDArray[np.float64]  #: (N, 2) u, v of the points in A, fractions of the image
    second: NDArray[np.float64]  #: (N, 2) of the same points in B
    similarity: NDArray[np.float32]  #: (2 networks, N, h, w) cosine, before and after
    found: NDArray[np.bool_]  #: (2 networks, N)
    ranks: NDArray[np.int64]  #: (2 networks, N)

    @property
    def gain(self) -> float:
        """Recall after less recall before."""
        return float(self.found[1].mean() - self.found[0].mean())


@torch.no_grad()
def look(nets: Sequence[Dense], data: PairDataset, k: int, angle: float, distance: float, points: int) -> View | None:
    """Compare the two networks on one pair; None where it has no matching points."""
    item = data[Draw(0, k)]
    batch = collate([item])
    height, width = batch.color.shape[-2:]
    grid = ((height + 1) // 2, (width + 1) // 2)
    matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, grid, distance)
    matches = choose(matches, points, batch.seeds)
    valid = matches.valid[0]
    first, second = matches.first[0][valid], matches.second[0][valid]
    if not len(first):
        return None
    maps = []
    for net in nets:
        rows = F.normalize(net(batch.color.flatten(0, 1)).flatten(2), dim=1)  # (2, C, h w)
        maps.append(rows[0][:, first].T @ rows[1])
    similarity = torch.stack(maps)  # (2, N, h w)
    true = similarity.gather(2, second.expand(2, -1)[..., None])
    gap = places(similarity.argmax(dim=2), grid) - places(second, grid)
    aspect = torch.tensor((1.0, grid[0] / grid[1]))
    return View(
        item.color.permute(0, 2, 3, 1).numpy(),
        angle,
        places(first, grid).double().numpy(),
        places(second, grid).double().numpy(),
        similarity.unflatten(2, grid).numpy(),
        ((gap * aspect).norm(dim=-1) <= PIXELS).numpy(),
        (similarity >= true).sum(dim=2).numpy(),
    )


def places(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Numbers of cells (...) -> u, v (..., 2) of their centres as fractions of width and height."""
    return torch.stack(((cells % grid[1] + 0.5) / grid[1], (cells // grid[1] + 0.5) / grid[0]), dim=-1)


def choose_point(views: Sequence[View]) -> tuple[int, int]:
    """Which pair and which of its points to show."""
    medians = [np.median(np.concatenate([view.ranks[k] for view in views])) for k in (0, 1)]
    gains = np.array([view.gain for view in views])
    off = np.abs(gains - np.median(gains))
    best = (np.inf, np.inf, 0, 0)
    for k, view in enumerate(views):
        inside = ((np.abs(view.first - 0.5) < INSIDE) & (np.abs(view.second - 0.5) < INSIDE)).all(axis=1)
        far = sum(np.abs(np.log(view.ranks[n] / medians[n])) for n in (0, 1))
        row = int(np.where(inside, far, np.inf).argmin())
        if inside.any():
            best = min(best, (round(float(far[row]), 6), float(off[k]), k, row))
    return best[2:]


def draw(view: View, row: int, names: tuple[str, str]) -> bytes:
    """Return a PNG: view A with the point, view B, and view B coloured by similarity; a cross is the most similar."""
    height, width = view.colors.shape[1:3]
    counted = view.similarity[0, row].size
    titles = ["view A: a point", f"view B, {view.angle:.0f}° away: the same point"]
    titles += [f"{name}: rank {rank} of {counted:,}" for name, rank in zip(names, view.ranks[:, row], strict=True)]
    grey = np.repeat(view.colors[1].mean(axis=2, keepdims=True), 3, axis=2) / 255
    with style():
        figure, axes = image_grid([""], titles, width / height, width=14.0)
        for cell, color in zip(axes[0][:2], view.colors, strict=True):
            show(cell, color, smooth=True)
        for cell, similarity in zip(axes[0][2:], view.similarity[:, row], strict=True):
            # The more similar half of the places is told apart.
            low, high = np.percentile(similarity, (50, 100))
            large = resize_nearest(np.clip((similarity - low) / (high - low), 0, 1), (width, height))
            show(cell, 0.75 * mpl.colormaps["inferno"](large)[..., :3] + 0.25 * grey, smooth=False)
            down, across = np.unravel_index(similarity.argmax(), similarity.shape)
            scale = width / similarity.shape[1]
            cell.scatter(
                (across + 0.5) * scale, (down + 0.5) * scale, s=60, marker="x", color="#56b4e9", linewidths=2.5
            )
        ends = [view.first[row], *[view.second[row]] * 3]
        for k, (cell, end) in enumerate(zip(axes[0], ends, strict=True)):
            u, v = end * (width, height)
            for size, color in ((420, "black"), (340, ACCENT if k < 2 else "white")):
                cell.scatter(u, v, s=size, facecolors="none", edgecolors=color, linewidths=2.2)
        return png(figure)


def main(words: Sequence[str] | None = None) -> None:
    """Draw it, and print by what it was chosen and the numbers over all points."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=99, help="drawn of those 30 to 60 degrees apart")
    parser.add_argument("--points", type=int, default=200, help="a pair")
    parser.add_argument("--size", type=int, nargs=2, default=(160, 120), help="of the images that the networks see")
    parser.add_argument("--names", nargs=2, default=("ImageNet", "ImageNet + Pri3D"))
    given = parser.parse_args(words)
    store = Store(given.store)
    degrees = np.degrees(store.pairs().angle)
    wide = np.flatnonzero((degrees >= DEGREES[0]) & (degrees < DEGREES[1]))
    rows = np.sort(np.random.default_rng(0).permutation(wide)[: given.pairs])
    if not len(rows):
        raise SystemExit(f"{given.store}: no pair is {DEGREES[0]:g} to {DEGREES[1]:g} degrees apart.")
    data = PairDataset(given.store, rows, tuple(given.size), seed=0)
    nets = [open_dense(path, "encoder") for path in (RunPaths(given.run).initial, RunPaths(given.run).weights)]
    distance = match_distance({}, store.manifest["settings"])
    seen = [look(nets, data, k, float(degrees[row]), distance, given.points) for k, row in enumerate(rows)]
    views = [view for view in seen if view is not None]
    k, row = choose_point(views)
    view = views[k]
    given.out.write_bytes(draw(view, row, tuple(given.names)))
    found = [np.concatenate([each.found[k] for each in views]) for k in (0, 1)]
    ranks = [np.concatenate([each.ranks[k] for each in views]) for k in (0, 1)]
    print(f"{len(views)} pairs, {len(found[0]):,} points, before -> after")
    print(f"recall, all points: {found[0].mean():.3f} -> {found[1].mean():.3f}")
    print(f"median rank, all points: {np.median(ranks[0]):.0f} -> {np.median(ranks[1]):.0f}")
    print(f"pair shown: recall {view.found[0].mean():.3f} -> {view.found[1].mean():.3f}, {view.angle:.0f} degrees")
    print(f"point shown: rank {view.ranks[0, row]} -> {view.ranks[1, row]}")


if __name__ == "__main__":
    main()

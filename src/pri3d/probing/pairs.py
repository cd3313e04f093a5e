"""Recall of 3D correspondences of held-out pairs, in two protocols: of true points, and of found matches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from pri3d.data.pairs import PairItem, angle_bins, collate
from pri3d.data.sampler import Draw
from pri3d.geometry.camera import project
from pri3d.geometry.matching import cell_points, choose, match_pixels
from pri3d.geometry.pose import compose, invert, transform
from pri3d.objectives.quality import cell_distance
from pri3d.probing.networks import check_finite
from pri3d.terminal import track
from pri3d.types import PairBatch

PIXELS = (5.0, 10.0, 20.0)  #: errors within which a match is right, pixels of an image 320 wide
METRES = (0.02, 0.05, 0.10)
#: Names of the errors within which a match is right.
THRESHOLDS = (*(f"{end:g} px" for end in PIXELS), *(f"{100 * end:g} cm" for end in METRES))
WIDTH = 320  #: of the image that errors in pixels are stated for
QUERIES = 1200  #: cells of the first view that look for a match, at most: every second of half of 160x120, both ways
_ROWS = 2048  # queries compared with all candidates at a time, which bounds the memory


class Recall(NamedTuple):
    """Share 0..1 of points whose most similar cell in the other view lies within the distance of the true place."""

    mean: float  #: over all points of all pairs
    balanced: float  #: mean of the angle bins that hold points, so that the many near views do not drown the far ones
    by_angle: dict[str, float]  #: bin such as "15-30" degrees between viewing directions -> recall; NaN where empty
    points: int  #: counted
    pairs: int  #: with at least one match


class Correspondence(NamedTuple):
    """Share 0..1 of the best matches of a pair that are right, averaged over pairs; keys such as "10 px", "5 cm"."""

    recall: dict[str, float]  #: over all pairs
    by_angle: dict[str, dict[str, float]]  #: bin of degrees -> the same; NaN where no pair falls in
    pairs_by_angle: dict[str, int]
    matches: int  #: counted
    pairs: int  #: with at least one


class Measure(Protocol):
    """Gathers numbers over pairs on the device; ``result`` brings them home."""

    def update(self, features: Tensor, batch: PairBatch) -> None:
        """Add one pair: features (2, C, h, w) and the batch of that pair."""


class Held(Dataset[PairItem]):
    """Pairs kept in memory, read once for any number of networks."""

    def __init__(self, pairs: Dataset[PairItem]) -> None:
        count = len(pairs)  # type: ignore[arg-type]
        self.items = [pairs[Draw(0, k)] for k in track(range(count), "reading pairs")]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draw: Draw) -> PairItem:
        return self.items[draw.item]


@torch.no_grad()
def measure_pairs(net: nn.Module, pairs: Dataset[PairItem], measures: Sequence[Measure], name: str = "network") -> None:
    """Run a network, RGB 0..1 (B, 3, H, W) -> (B, C, h, w), over all pairs once. Raises WeightsError for NaN."""
    device = next(net.parameters()).device
    count = len(pairs)  # type: ignore[arg-type]
    largest: list[Tensor] = []
    for k in track(range(count), f"matching, {name}"):
        batch = collate([pairs[Draw(0, k)]])
        moved: dict[str, Any] = {key: x.to(device) for key, x in batch._asdict().items() if isinstance(x, Tensor)}
        batch = batch._replace(**moved)
        features = net(batch.color.flatten(0, 1)).float()
        largest.append(features.abs().amax())
        if k == 0:
            check_finite(largest[0], name)
        for measure in measures:
            measure.update(features, batch)
    if largest:
        check_finite(torch.stack(largest), name)  # of all at the end: every question waits for the device


class Matching:
    """Recall of true points: those measured in both views, each looked for among all cells of the second.

    Args:
        pixels: a point is found when the centre of the most similar cell lies within this distance of the true
            pixel, in pixels of an image ``width`` wide.
        distance: metres within which two measured points are the same.
        width: of that image.
        points: matches drawn a pair, the same for every network.
    """

    def __init__(self, pixels: float = 10.0, distance: float = 0.02, width: int = WIDTH, points: int = 1000) -> None:
        self.pixels, self.distance, self.width, self.points = pixels, distance, width, points
        self.counts: list[Tensor] = []  # a pair: found, counted

    def update(self, features: Tensor, batch: PairBatch) -> None:
        """Add one pair: features (2, C, h, w) and the batch of that pair."""
        grid = (int(features.shape[-2]), int(features.shape[-1]))
        matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, grid, self.distance)
        matches = choose(matches, self.points, batch.seeds)
        valid = matches.valid[0]
        gap = cell_distance(features, matches.first[0], matches.second[0])
        found = (gap * (self.width / grid[1]) <= self.pixels) & valid
        self.counts.append(torch.stack((found.sum(), valid.sum())))

    def pairs(self) -> NDArray[np.float64]:
        """(P, 2) of each pair: points found, points counted."""
        return torch.stack(self.counts).double().cpu().numpy()

    def result(self, angles: NDArray[np.float32]) -> Recall:
        """Recall, given the (P,) radians between the viewing directions of the pairs."""
        counts = self.pairs()
        found, counted = counts[:, 0], counts[:, 1]
        by_angle = {}
        for name, inside in angle_bins(np.degrees(angles)).items():
            total = counted[inside].sum()
            by_angle[name] = float(found[inside].sum() / total) if total else math.nan
        total = counted.sum()
        mean = float(found.sum() / total) if total else math.nan
        filled = [value for value in by_angle.values() if not math.isnan(value)]
        balanced = sum(filled) / len(filled) if filled else math.nan
        return Recall(mean, balanced, by_angle, int(total), int((counted > 0).sum()))


def matching_recall(
    net: nn.Module, pairs: Dataset[PairItem], angles: NDArray[np.float32], *args: Any, **options: Any
) -> Recall:
    """Recall of true points of a network over pairs; further arguments are those of :class:`Matching`."""
    matching = Matching(*args, **options)
    measure_pairs(net, pairs, [matching])
    return matching.result(angles)


class Correspondences:
    """Recall of matches, the protocol of probe3d (El Banani et al., "Probing the 3D Awareness of Visual Foundation
    Models", 2024) for ScanNet pairs.

    Every cell of the first view with a depth takes its nearest neighbour by cosine among those of the second: one
    way, not mutual, whether it can be seen there or not. The ``count`` matches of the best ratio test (1 minus the
    cosine distance of the nearest over that of the second nearest) count. A match is right where the point of the
    first cell, moved into the second view, is close enough to the second's point in space, or to its pixel.

    Where the first view has more than ``queries`` cells, every second (third, ...) of each row and column looks for a
    match, and a quarter (a ninth, ...) of ``count`` counts: the same fraction, at that fraction of the cost.
    """  # noqa: D205 (the reference is one sentence)

    def __init__(self, count: int = 1000, queries: int = QUERIES) -> None:
        self.count, self.queries = count, queries
        self.rights: list[Tensor] = []  # a pair: right matches for each of PIXELS and METRES, matches

    def update(self, features: Tensor, batch: PairBatch) -> None:
        """Add one pair: features (2, C, h, w) and the batch of that pair."""
        grid = (int(features.shape[-2]), int(features.shape[-1]))
        points, z = cell_points(batch.depth[0], batch.intrinsics[0], grid)
        step = math.ceil(math.sqrt(grid[0] * grid[1] / self.queries))
        first, second, valid = match_cells(features, z > 0, max(1, self.count // step**2), step)
        poses = batch.world_from_camera
        there = transform(compose(invert(poses[:, 1]), poses[:, 0]), points[:1])[0, first]
        seen = points[1, second]
        camera = batch.intrinsics[0, 1]
        (u_there, z_there), (u_seen, _) = project(there, camera), project(seen, camera)
        pixels = torch.linalg.vector_norm(u_there - u_seen, dim=-1) * (WIDTH / batch.depth.shape[-1])
        pixels = torch.where(z_there > 0, pixels, torch.inf)
        metres = torch.linalg.vector_norm(there - seen, dim=-1)
        right = [pixels < end for end in PIXELS] + [metres < end for end in METRES]
        self.rights.append((torch.stack([*right, torch.ones_like(valid)]) & valid).sum(dim=1))

    def pairs(self) -> NDArray[np.float64]:
        """(P, thresholds + 1) of each pair: matches right within each of ``THRESHOLDS``, matches counted."""
        return torch.stack(self.rights).double().cpu().numpy()

    def result(self, angles: NDArray[np.float32]) -> Correspondence:
        """Recall, given the (P,) radians between the viewing directions of the pairs."""
        counts = self.pairs()
        some = counts[:, -1] > 0
        share = counts[some, :-1] / counts[some, -1:]
        bins = angle_bins(np.degrees(angles[some]))

        def average(share: NDArray[np.float64]) -> dict[str, float]:
            values = share.mean(axis=0) if len(share) else np.full(len(THRESHOLDS), math.nan)
            return dict(zip(THRESHOLDS, values.tolist(), strict=True))

        return Correspondence(
            average(share),
            {name: average(share[inside]) for name, inside in bins.items()},
            {name: int(inside.sum()) for name, inside in bins.items()},
            int(counts[:, -1].sum()),
            int(some.sum()),
        )


def match_cells(features: Tensor, measured: Tensor, count: int, step: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Match the cells of two views by cosine and keep the ``count`` of the best ratio test.

    features (2, C, h, w), measured (2, h*w) bool: which cells take part; of the first view only each ``step``-th of
    both directions -> flat cells of the first and of the second view (n,) and which count (n,) bool, n = min(count,
    cells of the first). None counts where the second view has less than two.
    """
    rows = F.normalize(features.float().flatten(2), dim=1)
    cells = torch.arange(rows.shape[2], device=rows.device).view(features.shape[2:])
    queries = cells[step // 2 :: step, step // 2 :: step].flatten()
    nearest, weight = [], []
    for part in torch.split(rows[0][:, queries].mT, _ROWS):
        similar = (part @ rows[1]).masked_fill_(~measured[1], -2.0)
        best, place = similar.max(dim=1)
        second = similar.scatter_(1, place[:, None], -2.0).amax(dim=1)
        # cosine distances, bounded from below as rounding leaves equal features
        weight.append(1 - (1 - best).clamp(min=1e-9) / (1 - second).clamp(min=1e-9))
        nearest.append(place)
    score = torch.where(measured[0, queries] & (measured[1].sum() > 1), torch.cat(weight), -torch.inf)
    kept, first = score.topk(min(count, len(score)))
    return queries[first], torch.cat(nearest)[first], kept > -torch.inf

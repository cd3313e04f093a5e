"""Diagnostics of feature maps: matching, uniformity on the sphere, effective rank.

Pure functions on tensors without host synchronisation, and :class:`PairQuality`, which gathers them over held-out
pairs. NaN stands for what cannot be measured.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pri3d.api.pretrain import Mode
from pri3d.geometry.matching import choose, match_pixels
from pri3d.objectives import Features
from pri3d.objectives.view import pick_views
from pri3d.types import PairBatch

#: Rows that enter a measure of all pairs of rows; more are thinned evenly.
MOST_ROWS = 2048


def alignment(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Mean squared distance of matched L2-normalised features, 0 (equal) .. 4 (opposite); unrelated ones have 2.

    Wang and Isola, "Understanding Contrastive Representation Learning", 2020, with alpha = 2.
    first, second (..., n, C) row by row, valid (..., n) bool -> () float32, NaN without a valid row.
    """
    return _squared_gap(first, second, valid).sum() / valid.sum()


def uniformity(rows: Tensor, valid: Tensor) -> Tensor:
    """Logarithm of the mean of exp(-2 |x - y|^2) over pairs of different L2-normalised rows; lower is more uniform.

    Wang and Isola 2020, with t = 2: 0 where all rows are equal, about -4 + 8 / C for C >> 1 dimensions filled evenly.
    rows (n, C) of any scale, valid (n,) bool -> () float32, NaN with fewer than two valid rows. Of more than 2048 rows
    every k-th counts.
    """
    step = math.ceil(rows.shape[0] / MOST_ROWS) or 1
    unit, weight = F.normalize(rows[::step].float(), dim=1), valid[::step].float()
    # |x - y|^2 = 2 - 2 cos of unit vectors, between 0 and 4
    with torch.autocast(unit.device.type, enabled=False):
        near = torch.exp(4 * (unit @ unit.mT).clamp(-1, 1) - 4) * (weight[:, None] * weight)
    count = weight.sum()
    return (near.fill_diagonal_(0).sum() / (count * (count - 1))).log()


def feature_rank(rows: Tensor) -> Tensor:
    """Effective rank: exp of the entropy of the singular values over their sum, 1 .. min(n, C).

    Roy and Vetterli, "The effective rank", 2007; as a measure of collapse in Garrido et al., "RankMe", 2023.
    rows (n, C) -> () float32. Rows of zeros change nothing. NaN where all are zero or one is not finite.
    """
    rows = rows.float()
    share = torch.linalg.svdvals(rows.nan_to_num(0.0, 0.0, 0.0))
    share = share / share.sum()
    return torch.where(rows.isfinite().all(), torch.special.entr(share).sum().exp(), torch.nan)


def cell_distance(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Distance (n,) in cells between the most similar cell of view 1 and the true one.

    features (2, C, h, w), first and second (n,) flat cells of the matched points in view 0 and 1.
    """
    rows = F.normalize(features.float().flatten(2), dim=1)
    best = (rows[0][:, first].mT @ rows[1]).argmax(dim=1)
    columns = features.shape[-1]
    return torch.hypot((best % columns - second % columns).float(), (best // columns - second // columns).float())


def _squared_gap(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Squared distances (..., n) of normalised rows (..., n, C), 0 where not valid."""
    gap = F.normalize(first.float(), dim=-1) - F.normalize(second.float(), dim=-1)
    return torch.where(valid, gap.square().sum(dim=-1), 0.0)


class PairPart(NamedTuple):
    """What :class:`PairQuality` keeps of a batch."""

    sums: Tensor  #: (3,) float32: points, points found, squared distances of matched features
    rows: Tensor  #: (n, C) float32 features of the points in the first views
    valid: Tensor  #: (n,) bool


class PairQuality:
    """Quality of features over batches of held-out pairs; nothing leaves the device before :meth:`result`.

    Args:
        pixels: a point is found when the most similar of all cells of the second view lies within this distance of
            its true place, in pixels of an image ``width`` wide.
        width: of that image.
    """

    def __init__(self, pixels: float = 10.0, width: int = 320) -> None:
        self.pixels, self.width = pixels, width
        self.parts: list[PairPart] = []

    @torch.no_grad()
    def update(
        self,
        features: Features,
        batch: PairBatch,
        points: int = 256,
        distance: float = 0.02,
        match: Mode = "point",
    ) -> None:
        """Add a batch of pairs.

        Args:
            features: of both frames.
            batch: the pairs.
            points: matches drawn a pair, the same for every network.
            distance: bound within which two measured points are the same, in metres unless ``match`` says otherwise.
            match: see :func:`pri3d.geometry.matching.match_pixels`.
        """
        # bfloat16 is off by a centimetre in a room, and among thousands of cells it has many equally similar ones.
        with torch.autocast(features.dense.device.type, enabled=False):
            height, width = features.dense.shape[-2:]
            depth, intrinsics, poses = batch.depth, batch.intrinsics, batch.world_from_camera
            matches = match_pixels(depth, intrinsics, poses, (height, width), distance, match)
            matches = choose(matches, points, batch.seeds)
            first, second = pick_views(features, {"first": matches.first, "second": matches.second})
            # A pair at a time: each compares its points with every cell of the other view.
            maps = features.of("first"), features.of("second")
            gaps = [
                cell_distance(torch.stack((one, other)), at, there)
                for one, other, at, there in zip(*maps, matches.first, matches.second, strict=True)
            ]
            found = (torch.stack(gaps) * (self.width / width) <= self.pixels) & matches.valid
            squares = _squared_gap(first, second, matches.valid)
            sums = torch.stack([x.sum().float() for x in (matches.valid, found, squares)])
            self.parts.append(PairPart(sums, first.flatten(0, 1).float(), matches.valid.flatten()))

    @torch.no_grad()
    def result(self) -> dict[str, float]:
        """Return recall (0..1), alignment, uniformity, rank, and the number of points they stand on.

        Recall is that of ``pri3d probe`` over all points; uniformity and rank are those of the normalised features of
        the matched points in the first views. NaN where no pair had a match.
        """
        if not self.parts:
            return {"recall": math.nan, "alignment": math.nan, "uniformity": math.nan, "rank": math.nan, "points": 0.0}
        points, found, squares = torch.stack([part.sums for part in self.parts]).sum(dim=0)
        rows, valid = torch.cat([part.rows for part in self.parts]), torch.cat([part.valid for part in self.parts])
        unit = torch.where(valid[:, None], F.normalize(rows, dim=1), 0.0)
        values = {
            "recall": found / points,
            "alignment": squares / points,
            "uniformity": uniformity(rows, valid),
            "rank": feature_rank(unit),
            "points": points,
        }
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

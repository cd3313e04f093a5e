"""Trivial correspondences: one image recoloured twice, its own pixels as partners (paper section 4, baseline)."""

from __future__ import annotations

import torch
from torch import Tensor

from pri3d.geometry.matching import Matches, cell_pixels, choose
from pri3d.objectives import Features, Terms
from pri3d.objectives.view import PointContrast, pick_views
from pri3d.types import PairBatch


def draw_cells(grid: tuple[int, int], count: int, seeds: Tensor) -> Tensor:
    """Draw feature cells of each sample without replacement, as matches are drawn.

    grid (h, w), seeds (B,) int64 -> flat cells (B, min(count, h * w)) int64; a count of 0 gives every cell.
    Raises ConfigError for a count of 1.
    """
    cells = torch.arange(grid[0] * grid[1], device=seeds.device).expand(seeds.shape[0], -1)
    return choose(Matches(cells, cells, torch.ones_like(cells, dtype=torch.bool)), count, seeds).first


class TrivialObjective(PointContrast):
    """PointInfoNCE between two recoloured copies of the first frame; a point's partner is the same cell.

    The paper's baseline without geometry: it learns to ignore colour and nothing about 3D. Needs neither depth nor
    pose.

    Of excluded negatives a radius in centimetres is not looked at: there is no 3D.
    """

    views = ("first", "copy")

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Contrast the first frames of a batch of pairs with their copies. Raises ConfigError for one point."""
        height, width = features.dense.shape[-2:]
        cells = draw_cells((height, width), self.points, batch.seeds)
        first, copy = pick_views(features, {"first": cells, "copy": cells})
        pixels = cell_pixels((height, width), batch.color)[cells]
        return self.score(first, copy, torch.ones_like(cells, dtype=torch.bool), [pixels])

"""View-invariant contrast: pixels of two frames that see the same point (paper section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pri3d.geometry.matching import Matches, choose, match_pixels
from pri3d.objectives import Terms
from pri3d.objectives.contrast import Contrast, info_nce
from pri3d.types import PairBatch


def flatten_cells(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h*w, C); a view where the map is channels-last in memory."""
    return features.flatten(2).mT


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (B, N, C), index (B, n) -> (B, n, C) by one flat index_select, whose gradient is one index_add."""
    batch, count, channels = rows.shape
    offset = torch.arange(batch, device=rows.device)[:, None] * count
    return rows.reshape(-1, channels).index_select(0, (index + offset).flatten()).view(batch, -1, channels)


def mean_of_samples(contrast: Contrast, valid: Tensor) -> Terms:
    """Mean loss over the samples that have two matches or more (with one, nothing contrasts); 0 where none has."""
    matches = valid.sum(dim=1)
    usable = (matches >= 2).float()
    share = usable / usable.sum().clamp(min=1)
    log = {
        "recall": (contrast.recall * share).sum(),
        "matches": matches.float().mean(),
        # What a network that cannot tell points apart would score: the loss is read against it.
        "chance": (matches.clamp(min=1).float().log() * share).sum(),
    }
    return Terms((contrast.loss * share).sum(), log)


class ViewObjective(nn.Module):
    """PointInfoNCE between matched pixels of the two frames of a pair.

    Args:
        points: matches drawn a pair, without replacement.
        temperature: of the contrast.
        distance: metres within which two measured points are the same.
    """

    def __init__(self, points: int = 1024, temperature: float = 0.4, distance: float = 0.02, **_: Any) -> None:
        super().__init__()
        self.points, self.temperature, self.distance = points, temperature, distance

    def forward(self, features: Tensor, batch: PairBatch) -> Terms:
        """Contrast feature maps (B, 2, C, h, w) of a batch of pairs."""
        height, width = features.shape[-2:]
        matches: Matches = match_pixels(
            batch.depth, batch.intrinsics, batch.world_from_camera, (height, width), self.distance
        )
        matches = choose(matches, self.points, batch.seeds)
        # Both views in one gather: its gradient fills one buffer of the size of the maps, not one a view.
        cells = torch.stack((matches.first, matches.second), dim=1)
        picked = pick(flatten_cells(features.flatten(0, 1)), cells.flatten(0, 1))
        first, second = picked[0::2], picked[1::2]
        return mean_of_samples(info_nce(first, second, matches.valid, self.temperature), matches.valid)

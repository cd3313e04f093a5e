"""View-invariant contrast: pixels of two frames that see the same point (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pri3d.geometry.matching import Matches, choose, match_pixels
from pri3d.objectives import Features, Terms
from pri3d.objectives.contrast import Contrast, info_nce
from pri3d.types import PairBatch


def pick_views(features: Features, cells: Mapping[str, Tensor]) -> list[Tensor]:
    """Features (B, n, C) at the flat cells (B, n) of each named view.

    One gather for all of them: its gradient fills one buffer of the size of the maps, not one a view.
    """
    batch, images, channels, height, width = features.dense.shape
    rows = features.dense.movedim(2, -1).reshape(-1, channels)  # a view where the maps are channels last
    start = torch.arange(batch, device=rows.device)[:, None] * images * height * width
    index = torch.stack([at + start + features.views.index(view) * height * width for view, at in cells.items()])
    return list(rows.index_select(0, index.flatten()).view(len(cells), batch, -1, channels))


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

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Contrast the two frames of a batch of pairs."""
        height, width = features.dense.shape[-2:]
        matches: Matches = match_pixels(
            batch.depth, batch.intrinsics, batch.world_from_camera, (height, width), self.distance
        )
        matches = choose(matches, self.points, batch.seeds)
        first, second = pick_views(features, {"first": matches.first, "second": matches.second})
        return mean_of_samples(info_nce(first, second, matches.valid, self.temperature), matches.valid)

"""Geometric prior: pixels against the voxels of the surface chunk their frame sees (paper section 3.2)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pri3d.geometry.matching import choose, match_voxels
from pri3d.models.resunet3d import build_resunet3d
from pri3d.objectives import VIEWS, Features, Terms
from pri3d.objectives.contrast import info_nce
from pri3d.objectives.view import mean_of_samples, pick_views
from pri3d.types import PairBatch


class GeometryObjective(nn.Module):
    """PointInfoNCE between pixels and voxels, each projected to a common space.

    Args:
        channels: of the 2D feature maps.
        chunks: frames of a pair that have a chunk in the batch; the paper contrasts both, with weights one half.
        points: matches drawn a frame, without replacement.
        temperature: of the contrast.
        net3d: size of the sparse 3D network, see :class:`pri3d.models.resunet3d.build_resunet3d`.
        voxel_input: ``occupancy`` (a one per voxel, the paper) or ``color`` (RGB, the released code).
        projection: dimensions of the common space.
    """

    def __init__(
        self,
        channels: int,
        chunks: int = 2,
        points: int = 1024,
        temperature: float = 0.4,
        net3d: str = "34C",
        voxel_input: Literal["occupancy", "color"] = "occupancy",
        projection: int = 64,
        **_: Any,
    ) -> None:
        super().__init__()
        self.chunks, self.points, self.temperature, self.voxel_input = chunks, points, temperature, voxel_input
        width = 96  # of the 3D features, as in the released code
        self.net3d = build_resunet3d(net3d, 1 if voxel_input == "occupancy" else 3, width)
        self.project_pixels = nn.Linear(channels, projection)
        self.project_voxels = nn.Linear(width, projection)

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Contrast the frames with the chunks of the batch. A batch without any voxel contributes 0 and no gradient."""
        if batch.voxel_cells.shape[0] == 0:
            zero = features.dense.float().sum() * 0
            return Terms(zero, {name: zero.detach() for name in ("recall", "matches", "chance")})
        if self.voxel_input == "occupancy":
            given = batch.voxel_color.new_ones(batch.voxel_cells.shape[0], 1)
        else:
            given = batch.voxel_color
        # On a CPU every new matrix shape costs bf16 a compilation, and the 3D network's shapes are new at every step.
        with torch.autocast(given.device.type, enabled=given.is_cuda and torch.is_autocast_enabled(given.device.type)):
            volume = self.net3d(batch.voxel_cells, given)
        return self.contrast(features, batch, volume)

    def contrast(self, features: Features, batch: PairBatch, volume: Tensor) -> Terms:
        """Match and contrast the frames' feature maps with voxel features (V, 96)."""
        views = slice(self.chunks)
        height, width = features.dense.shape[-2:]
        matches = match_voxels(
            batch.depth[:, views].flatten(0, 1),
            batch.intrinsics[:, views].flatten(0, 1),
            batch.world_from_camera[:, views].flatten(0, 1),
            batch.voxel_cells,
            batch.voxel_size,
            (height, width),
        )
        seeds = torch.stack([batch.seeds + view for view in range(self.chunks)], dim=1).flatten()
        matches = choose(matches, self.points, seeds)
        voxels = volume.index_select(0, matches.second.flatten()).view(*matches.second.shape, -1)
        cells = matches.first.unflatten(0, (-1, self.chunks)).unbind(1)
        picked = pick_views(features, dict(zip(VIEWS, cells, strict=False)))
        first = self.project_pixels(torch.stack(picked, dim=1).flatten(0, 1))
        contrast = info_nce(first, self.project_voxels(voxels), matches.valid, self.temperature)
        return mean_of_samples(contrast, matches.valid)

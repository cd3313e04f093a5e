"""Geometric prior: pixels against the voxels of the surface chunk their frame sees (paper section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pri3d.api.options import Options, option
from pri3d.geometry.matching import cell_pixels, choose, match_voxels
from pri3d.networks.resunet3d import build_resunet3d
from pri3d.objectives import VIEWS, Features, Setup, Terms
from pri3d.objectives.view import PointContrast, pick_views
from pri3d.types import PairBatch


class GeometryOptions(Options):
    """Contrast between pixels and the voxels of the surface that the camera sees."""

    group = "geometry"

    voxel: float = option("edge length of the chunks' voxels in metres, a multiple of the prepared one", default=0.02)
    chunks: Literal[1, 2] = option("number of frames of a pair whose chunk is used; 2 in the paper", default=2)
    net3d: str = option("size of the sparse 3D network: 34C, 18A, 14A, tiny", default="34C")
    voxel_input: Literal["occupancy", "color"] = option(
        "input of the 3D network: occupancy (1 per voxel, the paper) or color (RGB, the released code)",
        default="occupancy",
    )
    max_voxels: int = option(
        "maximum number of voxels per forward pass; larger chunks lose those farthest from their camera, with a "
        "warning. 34C needs 7.4 kB for each in fp32",
        default=4_000_000,
        least=1,
    )
    recompute: bool = option(
        "recompute features of the 3D network in the backward pass instead of storing them (activation checkpointing)",
        default=False,
    )
    projection: int = option("dimensions of the common space of pixels and voxels", default=64, least=1)


class GeometryObjective(PointContrast):
    """PointInfoNCE between pixels and voxels, each projected to a common space."""

    options = GeometryOptions

    def __init__(self, setup: Setup, options: GeometryOptions = GeometryOptions()) -> None:  # noqa: B008 (frozen)
        super().__init__(setup)
        self.chunks, self.voxel_input = options.chunks, options.voxel_input
        self.views = VIEWS[: options.chunks]
        width = 96  # of the 3D features, as in the released code
        self.net3d = build_resunet3d(
            options.net3d, 1 if options.voxel_input == "occupancy" else 3, width, options.recompute
        )
        self.project_pixels = nn.Linear(setup.channels, options.projection)
        self.project_voxels = nn.Linear(width, options.projection)

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Contrast the frames with the chunks of the batch. A batch without any voxel contributes no gradient.

        It takes part all the same, with one voxel that nothing matches: other processes may wait for its gradient,
        and for its share of ``world``.
        """
        batch = batch._replace(voxel_cells=batch.voxel_cells.long())
        if batch.voxel_cells.shape[0] == 0:
            volume = features.dense.new_zeros(1, self.project_voxels.in_features)
            empty = batch._replace(depth=batch.depth * 0, voxel_cells=batch.voxel_cells.new_zeros(1, 4))
            terms = self.contrast(features, empty, volume)
            idle = sum(parameter.float().sum() * 0 for parameter in self.parameters())
            return terms._replace(loss=terms.loss + idle)
        if self.voxel_input == "occupancy":
            given = batch.depth.new_ones(batch.voxel_cells.shape[0], 1)
        else:
            given = batch.voxel_color.to(batch.depth.dtype) / 255
        # On a CPU every new matrix shape costs bf16 a compilation, and the 3D network's shapes are new at every step.
        with torch.autocast(given.device.type, enabled=given.is_cuda and torch.is_autocast_enabled(given.device.type)):
            volume = self.net3d(batch.voxel_cells, given)
        return self.contrast(features, batch, volume)

    def contrast(self, features: Features, batch: PairBatch, volume: Tensor) -> Terms:
        """Match and contrast the frames' feature maps with voxel features (V, 96)."""
        views = slice(self.chunks)
        height, width = features.dense.shape[-2:]
        grid = (height, width)
        matches = match_voxels(
            batch.depth[:, views].flatten(0, 1),
            batch.intrinsics[:, views].flatten(0, 1),
            batch.world_from_camera[:, views].flatten(0, 1),
            batch.voxel_cells,
            batch.voxel_size,
            grid,
        )
        seeds = torch.stack([batch.seeds + view for view in range(self.chunks)], dim=1).flatten()
        matches = choose(matches, self.points, seeds)
        rows = matches.second.flatten()
        voxels = volume.index_select(0, rows).view(*matches.second.shape, -1)
        cells = matches.first.view(-1, self.chunks, matches.first.shape[1]).unbind(1)
        picked = pick_views(features, dict(zip(VIEWS, cells, strict=False)))
        first = self.project_pixels(torch.stack(picked, dim=1).flatten(0, 1))
        second = self.project_voxels(voxels)
        pixels = cell_pixels(grid, batch.depth)[matches.first]
        centres = (batch.voxel_cells.index_select(0, rows)[:, 1:] + 0.5) * batch.voxel_size
        return self.score(
            first, second, matches.valid, [pixels], centres.view(*matches.second.shape, 3), shared=self.chunks
        )

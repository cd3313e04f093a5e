"""Depth and normals from the encoder's maps by a linear map, which a contrast across views alone would remove."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.api.options import Options, option
from pri3d.geometry.matching import Matches, cell_pixels, choose
from pri3d.geometry.normals import surface_normals
from pri3d.networks.encoders import sample_maps
from pri3d.objectives import VIEWS, Features, Objective, Setup, Terms
from pri3d.types import PairBatch

BEGIN = math.log(2.0)  #: logarithm of the depth in metres that is predicted at first, and the camera's axis as normal


class SurfaceOptions(Options):
    """Depth and normals from the encoder's maps."""

    group = "surface"

    points: int = option("measured points per frame that are predicted", default=512, least=2)


class SurfaceObjective(Objective):
    """Logarithm of the depth and surface normal of points of both frames, by one linear map of all encoder maps.

    What changes with the viewpoint is what a contrast across views tells a network to forget; that it can be read off
    the maps is asked for here. Channels are brought to mean 0 and deviation 1 by those of the batch; the linear map
    begins near 0. Points lie on a grid of half the image. The loss is the mean absolute error of the logarithm plus the
    mean of 1 - cosine of the angle between the normals of :func:`pri3d.geometry.normals.surface_normals`.

    Raises ConfigError without an encoder and for numbers that cannot be.
    """

    options = SurfaceOptions
    decodes = False

    def __init__(self, setup: Setup, options: SurfaceOptions = SurfaceOptions()) -> None:  # noqa: B008 (frozen)
        super().__init__(setup)
        encoder = setup.encoder_for("surface", options)
        self.points, self.strides = options.points, encoder.strides
        channels = sum(encoder.channels)
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.head = nn.Linear(channels, 4)
        nn.init.normal_(self.head.weight, std=1e-3)  # not 0, which would leave the encoder without a gradient
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([BEGIN, 0.0, 0.0, -1.0]))

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Predict points of both frames. Logs depth, the mean absolute error of the logarithm, and normals, degrees."""
        with torch.autocast(batch.depth.device.type, enabled=False):
            depth = batch.depth.flatten(0, 1)
            height, width = depth.shape[-2:]
            centres = cell_pixels(((height + 1) // 2, (width + 1) // 2), depth)
            column, row = centres.floor().long().unbind(-1)
            pixels = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
            target = depth.flatten(1)[:, pixels]
            every = torch.arange(len(pixels), device=depth.device).expand_as(target)
            chosen = choose(Matches(every, every, target > 0), self.points, batch.seeds.repeat_interleave(2))
            cells, valid = chosen.first, chosen.valid
            target = torch.where(valid, target.gather(1, cells), 1.0)
            normal = surface_normals(depth, batch.intrinsics.flatten(0, 1), pixels=pixels[cells]).mT
            views = [batch.views.index(view) for view in VIEWS[:2]]
            maps = [x.float().view(len(batch.depth), -1, *x.shape[1:])[:, views].flatten(0, 1) for x in features.maps]
            rows = self.norm(sample_maps(maps, self.strides, centres[cells]).flatten(0, 1))
            predicted = self.head(rows).view(*cells.shape, 4)
            gap = _mean((predicted[..., 0] - target.log()).abs(), valid)
            cosine = F.cosine_similarity(predicted[..., 1:], normal, dim=-1, eps=1e-4)
            known = valid & (normal.square().sum(dim=-1) > 0.5)
            slant = _mean(1 - cosine, known)
        degrees = _mean(torch.rad2deg(torch.arccos(cosine.detach().clamp(-1, 1))), known)
        return Terms(gap + slant, {"depth": gap.detach(), "normals": degrees})


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values that count; 0 where none does."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)

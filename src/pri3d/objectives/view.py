"""View-invariant contrast: pixels of two frames that see the same point (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pri3d.errors import ConfigError
from pri3d.geometry.matching import Mode, cell_pixels, cell_points, choose, match_pixels
from pri3d.geometry.pose import transform
from pri3d.objectives import Features, Terms
from pri3d.objectives.contrast import Contrast, Near, Negatives, info_nce
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
    """Mean loss over the sets that have two matches or more (with one, nothing contrasts); 0 where none has.

    ``valid`` (B, n) of the samples, for the logged number of matches a sample.
    """
    usable = (contrast.points >= 2).float()
    share = usable / usable.sum().clamp(min=1)
    log = {
        "recall": (contrast.recall * share).sum(),
        "matches": valid.sum(dim=1).float().mean(),
        # What a network that cannot tell points apart would score: the loss is read against it.
        "chance": (contrast.chance * share).sum(),
    }
    return Terms((contrast.loss * share).sum(), log)


class PointContrast(nn.Module):
    """The settings of an objective that contrasts matched points, and its last step.

    Args:
        points: matches drawn a sample, without replacement; 0 takes all.
        temperature: of the contrast.
        negatives: other points of the same ``sample`` (the paper), of the ``batch``, or of the batches of all
            processes (``world``; in training only, for processes may evaluate different numbers of batches).
        exclude_px: negatives nearer than this to the partner do not count, in pixels of the batch's images.
        exclude_cm: the same in 3D, centimetres. Both act within a pair: others share no image and no world.
    """

    def __init__(
        self,
        points: int = 1024,
        temperature: float = 0.4,
        negatives: Negatives = "sample",
        exclude_px: float = 0.0,
        exclude_cm: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("exclude_px", exclude_px), ("exclude_cm", exclude_cm)):
            if not value >= 0:
                raise ConfigError(f"{name} = {value}: give a radius of 0 (none) or more.")
        self.points, self.temperature, self.negatives = points, temperature, negatives
        self.exclude_px, self.exclude_cm = exclude_px, exclude_cm

    def score(
        self,
        first: Tensor,
        second: Tensor,
        valid: Tensor,
        pixels: Sequence[Tensor] = (),
        world: Tensor | None = None,
        shared: int = 1,
    ) -> Terms:
        """Contrast matched features (B, n, C) of B samples.

        ``valid`` (B, n); ``pixels``: positions (B, n, 2) in each image concerned; ``world``: points (B, n, 3) in
        metres, ``shared`` consecutive samples being in one frame. They are looked at where negatives are excluded.
        """
        near = [Near(places, self.exclude_px) for places in pixels if self.exclude_px > 0]
        if world is not None and self.exclude_cm > 0:
            near.append(Near(world, self.exclude_cm / 100, shared))
        negatives = "batch" if self.negatives == "world" and not self.training else self.negatives
        return mean_of_samples(info_nce(first, second, valid, self.temperature, negatives, near), valid)


class ViewObjective(PointContrast):
    """PointInfoNCE between matched pixels of the two frames of a pair.

    Args:
        distance: bound within which two measured points are the same, in metres unless ``match`` says otherwise.
        match: see :func:`pri3d.geometry.matching.match_pixels`; ``point`` is the paper's.
        points, temperature, negatives, exclude_px, exclude_cm: see :class:`PointContrast`. A negative is excluded where
            it is near in either frame; its place in 3D is the one measured in the first.
    """

    def __init__(
        self,
        points: int = 1024,
        temperature: float = 0.4,
        distance: float = 0.02,
        match: Mode = "point",
        negatives: Negatives = "sample",
        exclude_px: float = 0.0,
        exclude_cm: float = 0.0,
        **_: Any,
    ) -> None:
        super().__init__(points, temperature, negatives, exclude_px, exclude_cm)
        self.distance, self.match = distance, match

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Contrast the two frames of a batch of pairs."""
        height, width = features.dense.shape[-2:]
        grid = (height, width)
        depth, intrinsics, poses = batch.depth, batch.intrinsics, batch.world_from_camera
        matches = match_pixels(depth, intrinsics, poses, grid, self.distance, self.match)
        matches = choose(matches, self.points, batch.seeds)
        first, second = pick_views(features, {"first": matches.first, "second": matches.second})
        centres, world = cell_pixels(grid, depth), None
        if self.exclude_cm > 0:
            points, _ = cell_points(depth[:, 0], intrinsics[:, 0], grid)
            world = transform(poses[:, 0], points.gather(1, matches.first[..., None].expand(-1, -1, 3)))
        return self.score(first, second, matches.valid, [centres[matches.first], centres[matches.second]], world)

"""View-invariant contrast: pixels of two frames that see the same point (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pri3d.errors import ConfigError
from pri3d.geometry.matching import cell_pixels, cell_points, choose, match_pixels
from pri3d.geometry.pose import transform
from pri3d.objectives import Features, Objective, Setup, Terms
from pri3d.objectives.contrast import Near, info_nce
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


class PointContrast(Objective):
    """An objective that contrasts matched points, by the run's :class:`pri3d.api.pretrain.ContrastOptions`.

    Of ``negatives``, ``world`` holds in training only, for processes may evaluate different numbers of batches. The
    radii of excluded negatives act within a pair: others have no image and no world in common.

    Raises ConfigError for numbers that cannot be.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if wrong := setup.contrast.problems():
            raise ConfigError("; ".join(wrong) + ".")
        self.contrast_options = setup.contrast

    @property
    def points(self) -> int:
        """Matches drawn a sample, without replacement; 0 takes all."""
        points = self.contrast_options.points
        return 0 if points == "all" else points

    def score(
        self,
        first: Tensor,
        second: Tensor,
        valid: Tensor,
        pixels: Sequence[Tensor] = (),
        world: Tensor | None = None,
        shared: int = 1,
    ) -> Terms:
        """Contrast matched features (B, n, C) of B samples. Logs recall, matches a sample, and chance.

        ``valid`` (B, n); ``pixels``: positions (B, n, 2) in each image concerned; ``world``: points (B, n, 3) in
        metres, ``shared`` consecutive samples being in one frame. They are looked at where negatives are excluded.
        """
        options = self.contrast_options
        near = [Near(places, options.exclude_px) for places in pixels if options.exclude_px > 0]
        if world is not None and options.exclude_cm > 0:
            near.append(Near(world, options.exclude_cm / 100, shared))
        negatives = "batch" if options.negatives == "world" and not self.training else options.negatives
        contrast = info_nce(first, second, valid, options.temperature, negatives, near)
        # The mean over the samples that have two matches or more (with one, nothing contrasts); 0 where none has.
        usable = (contrast.points >= 2).float()
        share = usable / usable.sum().clamp(min=1)
        log = {
            "recall": (contrast.recall * share).sum(),
            "matches": valid.sum(dim=1).float().mean(),
            # What a network that cannot tell points apart would score: the loss is read against it.
            "chance": (contrast.chance * share).sum(),
        }
        return Terms((contrast.loss * share).sum(), log)


class ViewObjective(PointContrast):
    """PointInfoNCE between matched pixels of the two frames of a pair (paper section 3.1).

    Which pixels match is the run's :class:`pri3d.api.pretrain.MatchingOptions`. A negative is excluded where it is near
    in either frame; its place in 3D is the one measured in the first.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.matching = setup.matching

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Contrast the two frames of a batch of pairs."""
        height, width = features.dense.shape[-2:]
        grid = (height, width)
        depth, intrinsics, poses = batch.depth, batch.intrinsics, batch.world_from_camera
        matches = match_pixels(depth, intrinsics, poses, grid, self.matching.distance, self.matching.match)
        matches = choose(matches, self.points, batch.seeds)
        first, second = pick_views(features, {"first": matches.first, "second": matches.second})
        centres, world = cell_pixels(grid, depth), None
        if self.contrast_options.exclude_cm > 0:
            points, _ = cell_points(depth[:, 0], intrinsics[:, 0], grid)
            world = transform(poses[:, 0], points.gather(1, matches.first[..., None].expand(-1, -1, 3)))
        return self.score(first, second, matches.valid, [centres[matches.first], centres[matches.second]], world)

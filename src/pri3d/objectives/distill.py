"""Distillation: the targets are the initial features of a point, averaged over the two frames that see it.

The teacher is the network as it was, so nothing is contrasted and nothing starts from random weights. Targets fused
over views are those of Splat-and-Distill (arXiv 2602.06032) for a pair; equal similarity matrices instead of equal
features are those of PaKA (arXiv 2509.05606), here over the points that two frames share.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pri3d.api.options import Options, option
from pri3d.geometry.matching import Matches, choose, match_pixels
from pri3d.objectives import VIEWS, Features, Objective, Setup, Terms
from pri3d.objectives.keep import SMALLEST
from pri3d.types import PairBatch


class DistillOptions(Options):
    """Distillation of the encoder's own first features, fused over the frames of a pair."""

    group = "distill"

    targets: Literal["features", "relations"] = option(
        "what is matched to the teacher: the fused features of a point, or the similarities between points",
        default="features",
    )
    own: float = option(
        "weight of the term that pulls every cell towards the teacher's feature of the same cell; the term of "
        "matched points has weight 1",
        default=0.25,
        least=0,
    )
    free: float = option(
        "fraction of the channels of each map (the last ones) that are left unconstrained",
        default=0.0,
        least=0,
        below=1,
    )
    momentum: float = option(
        "m of teacher = m * teacher + (1 - m) * encoder, once per optimizer step; 1 keeps the teacher fixed",
        default=1.0,
        least=0,
        most=1,
    )
    points: int = option(
        "matches per pair whose similarities are compared, for targets relations", default=256, least=2
    )
    clean: bool = option("the teacher sees the frames without augmentation", default=True)


class DistillObjective(Objective):
    """Pull the encoder's maps towards what a frozen copy of its start says of both frames that see a point.

    At each map the cells of the two frames that see one point (the run's :class:`pri3d.api.pretrain.MatchingOptions`,
    on that map's grid) have as target the normalised mean of the teacher's two features; all cells are held near the
    teacher's own feature by ``own``. The loss is the mean over the maps. The decoder is not looked at.

    The teacher is in evaluation mode, and part of the checkpoint. Raises ConfigError without an encoder and for
    numbers that cannot be.
    """

    options = DistillOptions
    decodes = False

    def __init__(self, setup: Setup, options: DistillOptions = DistillOptions()) -> None:  # noqa: B008 (frozen)
        super().__init__(setup)
        encoder = setup.encoder_for("distill", options)
        self.chosen, self.matching = options, setup.matching
        self._encoder = (encoder,)  # in a tuple PyTorch does not see it
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DistillObjective:
        """Set the mode of the objective; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Compare the maps of both frames with their targets.

        Logs target (the distance from the fused targets, or of the similarities), drift (from the teacher's own
        feature, of the coarsest map) and spread: the distance of the teacher's features of a point from the target,
        what a network that stays as it is would have.
        """
        options, pairs = self.chosen, batch.color.shape[0]
        views = [batch.views.index(view) for view in VIEWS[:2]]
        clean = batch.clean is not None and batch.clean.shape[1] == 2 and options.clean
        seen = batch.clean if clean and batch.clean is not None else batch.color[:, views]
        images = seen.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            maps = self.teacher(self.teacher.normalise(images))
        scores = []
        with torch.autocast(images.device.type, enabled=False):
            for now, before in zip(features.maps, maps, strict=True):
                kept = max(1, round((1 - options.free) * before.shape[1]))
                grid = (before.shape[-2], before.shape[-1])
                mine, theirs = (x[:, :kept].float().flatten(2) for x in (now, before))
                student = F.normalize(mine.view(pairs, -1, *mine.shape[1:])[:, views], dim=2, eps=SMALLEST)
                teacher = F.normalize(theirs.view(pairs, -1, *theirs.shape[1:]), dim=2, eps=SMALLEST)
                depth, intrinsics, poses = batch.depth, batch.intrinsics, batch.world_from_camera
                matches = match_pixels(depth, intrinsics, poses, grid, self.matching.distance, self.matching.match)
                if options.targets == "relations":
                    matches = choose(matches, options.points, batch.seeds)
                    target = relation_distance(student, teacher, matches)
                else:
                    target = fused_distance(student, teacher, matches)
                own = 0.5 * (student - teacher).square().sum(dim=2).mean()
                scores.append(torch.stack((target, own, fused_distance(teacher, teacher, matches))))
        targets, owns, spreads = torch.stack(scores).unbind(dim=1)
        log = {"target": targets.mean(), "drift": owns[-1], "spread": spreads.mean()}
        loss = (targets + options.own * owns).mean()
        return Terms(loss, {name: value.detach() for name, value in log.items()})

    @torch.no_grad()
    def after_step(self) -> None:
        """After an optimizer step: the teacher follows the encoder, its batch-norm statistics with the weights."""
        if self.chosen.momentum == 1:
            return
        states = (net.state_dict().values() for net in (self.teacher, self._encoder[0]))
        for mine, theirs in zip(*states, strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - self.chosen.momentum)


def fuse(teacher: Tensor, matches: Matches) -> Tensor:
    """Targets of matched points: the normalised mean of two unit features.

    teacher (B, 2, C, N), unit along C; matches of N cells, n to a pair -> (B, C, n), unit along C.
    """
    first, second = (pick(teacher[:, k], cells) for k, cells in enumerate((matches.first, matches.second)))
    return F.normalize(first + second, dim=1, eps=SMALLEST)


def pick(rows: Tensor, cells: Tensor) -> Tensor:
    """Features (B, C, n) of maps (B, C, N) at cells (B, n)."""
    return rows.gather(2, cells[:, None].expand(-1, rows.shape[1], -1))


def fused_distance(student: Tensor, teacher: Tensor, matches: Matches) -> Tensor:
    """Mean cosine distance (0..2) of the matched cells of both frames from their fused target; 0 without a match.

    As half the squared distance of unit features, which is the same and exactly 0 for equal ones.

    Args:
        student: (B, 2, C, N) features of the cells of two frames, unit along C.
        teacher: the same of the teacher.
        matches: of the N cells of a pair.

    Returns:
        () in the type of ``student``, differentiable in it.
    """
    target, valid = fuse(teacher, matches), matches.valid
    gaps = [
        0.5 * (pick(student[:, k], cells) - target).square().sum(dim=1)
        for k, cells in enumerate((matches.first, matches.second))
    ]
    return torch.where(valid, gaps[0] + gaps[1], 0.0).sum() / (2 * valid.sum()).clamp(min=1)


def relation_distance(student: Tensor, teacher: Tensor, matches: Matches) -> Tensor:
    """Mean squared difference of cosines between matched points, of the student and of the fused targets.

    The points of both frames stand in one similarity matrix, so that a point of one frame has to resemble all points
    of the other as the teacher's fused features say, itself among them. Turning all features alike changes nothing.
    Arguments and result are those of :func:`fused_distance`; the mean is over the pairs of valid points of all samples.
    """
    count = matches.valid.shape[1]
    cells = torch.stack((matches.first, matches.second), dim=1)
    rows = student.gather(3, cells[:, :, None].expand(-1, -1, student.shape[2], -1))
    rows = rows.transpose(1, 2).flatten(2)  # (B, C, 2 n), the points of the first frame before those of the second
    target = fuse(teacher, matches)
    wanted = target.mT @ target
    gap = (rows.mT @ rows).view(-1, 2, count, 2, count) - wanted[:, None, :, None, :]
    both = matches.valid[:, :, None] & matches.valid[:, None, :]
    squares = torch.where(both, gap.square().sum(dim=(1, 3)), 0.0)
    return squares.sum() / (4 * both.sum()).clamp(min=1)

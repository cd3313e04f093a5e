"""Depth prediction: the paper's baseline, and an auxiliary term of the released code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pri3d.geometry.matching import cell_points
from pri3d.objectives import Features, Objective, Setup, Terms
from pri3d.types import PairBatch

#: Metres added inside the logarithm, which bounds the gradient of small errors.
SOFTENING = 0.5


class DepthLoss(NamedTuple):
    """Result for N images; a part that no cell can measure is 0."""

    distance: Tensor  #: (N,) mean log(|error| + 0.5) of the depth
    normal: Tensor  #: (N,) mean 1 - cosine of the angle between the surface normals
    gradient: Tensor  #: (N,) mean log(|error| + 0.5) of the horizontal derivative, plus that of the vertical one

    @property
    def total(self) -> Tensor:
        """(N,): the sum over three. A perfect prediction scores log 0.5 = -0.69: three logarithms of 0.5, over 3."""
        return (self.distance + self.normal + self.gradient) / 3


def depth_loss(predicted: Tensor, target: Tensor) -> DepthLoss:
    """Compare depth images in distance, slope and edges (Hu et al., "Revisiting Single Image Depth Estimation", 2019).

    Derivatives are 3 x 3 Sobel sums (metres; 8 times the slope per cell), the normal is (-dx, -dy, 1). They count only
    where all nine cells lie inside the image and are measured, so no edge of a hole is taken for one of the scene.

    Args:
        predicted: (N, h, w) metres, float32 or float64; what it holds where ``target`` is 0 has no influence.
        target: (N, h, w) metres, 0 = invalid.
    """
    valid = target > 0
    # Before any arithmetic: not even an infinity in a hole reaches the gradient of another cell.
    predicted = torch.where(valid, predicted, 0.0)
    rows = valid[..., :-2, :] & valid[..., 1:-1, :] & valid[..., 2:, :]
    whole = rows[..., :-2] & rows[..., 1:-1] & rows[..., 2:]
    dx, dy = sobel(predicted)
    tx, ty = sobel(target)
    cosine = (dx * tx + dy * ty + 1) * (dx**2 + dy**2 + 1).rsqrt() * (tx**2 + ty**2 + 1).rsqrt()
    edges = _soft_log(dx - tx) + _soft_log(dy - ty)
    return DepthLoss(
        _masked_mean(_soft_log(predicted - target), valid),
        _masked_mean((1 - cosine).abs(), whole),
        _masked_mean(edges, whole),
    )


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical 3 x 3 Sobel sums without border: (..., h, w) -> two (..., h-2, w-2).

    Sums of slices: a convolution would round to TF32 on a GPU.
    """
    across = image[..., 2:] - image[..., :-2]
    along = image[..., 2:, :] - image[..., :-2, :]
    dx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    dy = along[..., :-2] + 2 * along[..., 1:-1] + along[..., 2:]
    return dx, dy


def _soft_log(error: Tensor) -> Tensor:
    return (error.abs() + SOFTENING).log()


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(N, ...) -> (N,), 0 where nothing counts."""
    mask = mask.flatten(1)
    return torch.where(mask, values.flatten(1), 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class DepthObjective(Objective):
    """Metric depth of both frames from the feature maps by a 1 x 1 convolution, at the resolution of the features.

    The target is the depth of the pixel a feature cell stands for, see :func:`pri3d.geometry.matching.cell_points`.
    The loss is the mean over the images that have any depth, 0 where none has.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.head = nn.Linear(setup.channels, 1)  # of maps that are channels last this is the 1 x 1 convolution

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Predict the depth of both frames of each pair. Logs rmse (m), and delta1: share within a factor of 1.25."""
        height, width = features.dense.shape[-2:]
        # bfloat16 steps by centimetres at 3 m, so the head is float32, too.
        with torch.autocast(features.dense.device.type, enabled=False):
            maps = self.head(features.dense.movedim(2, -1).float())[..., 0]
            predicted = torch.stack([maps[:, features.views.index(view)] for view in self.views], dim=1).flatten(0, 1)
            _, target = cell_points(batch.depth.flatten(0, 1), batch.intrinsics.flatten(0, 1), (height, width))
            target = target.view_as(predicted)
            usable = (target > 0).flatten(1).any(dim=1).sum()  # the others have a loss of 0
            loss = depth_loss(predicted, target).total.sum() / usable.clamp(min=1)
        predicted, valid = predicted.detach(), target > 0
        count = valid.sum().clamp(min=1)
        square = torch.where(valid, (predicted - target) ** 2, 0.0)
        close = valid & (predicted < 1.25 * target) & (target < 1.25 * predicted)
        return Terms(loss, {"rmse": (square.sum() / count).sqrt(), "delta1": close.sum() / count})

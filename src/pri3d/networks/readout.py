"""Read-outs: a linear map from a network's features to depth, normals or classes of every pixel, and its errors.

Fitted by ridge regression in closed form, so that there is nothing to tune and a network can be measured in seconds: by
``pri3d probe`` and by pre-training itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pri3d.errors import DataError
from pri3d.labelled.spaces import IGNORED
from pri3d.networks.encoders import enlarge, sample_maps

CELLS = 20_000  #: pixels that a read-out is fitted to, at most
FOLDS = 5  #: parts of the training frames, contiguous, of cross-validation
DEGREES = (11.25, 22.5, 30.0)
RATIO = 1.25  #: of depths, for delta 1 to 3
#: what the penalty is chosen from, beside squared errors averaged over rows and channels of deviation 1
PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
UNCHOSEN = 1e-2  #: the penalty where all rows are of one fold
_ROWS = 4096  # converted to float64 at a time, which bounds the memory
_CONSTANT = 1e-6  # a channel whose deviation is a smaller share of its size does not vary: that is float32's rounding


class ReadoutTargets(NamedTuple):
    """What is to be read off B images; a task whose target is None is left out."""

    depth: Tensor | None = None  #: (B, H, W) metres, 0 = invalid
    normals: Tensor | None = None  #: (B, 3, H, W) of length 1, 0 = none
    segmentation: Tensor | None = None  #: (B, H, W) class ids, 255 = ignored


class Readout(NamedTuple):
    """One linear map of all maps of a network at every pixel.

    Each map has weights of its own, at its own stride, whose results are enlarged bilinearly to the image and summed:
    exactly one linear map of the enlarged features put behind each other, since both are linear, at a fraction of the
    cost.
    """

    strides: tuple[int, ...]  #: of the maps
    tasks: Mapping[str, int]  #: "depth", "normals", "segmentation" -> its number of outputs, in their order
    shift: Tensor  #: (D,) float32, taken off the channels of all maps
    weight: Tensor  #: (D, outputs) float32, of the shifted channels
    bias: Tensor  #: (outputs,) float32
    penalties: Mapping[str, float]  #: of each task, as chosen

    def predict(self, maps: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Maps (B, C, h, w), finest first -> by task, for images of ``size`` (height, width).

        depth (B, H, W) metres; normals (B, 3, H, W) of length 1; segmentation (B, H, W) int64 class ids.
        """
        widths = [x.shape[1] for x in maps]
        shifts, weights = torch.split(self.shift, widths), torch.split(self.weight, widths)
        total = self.bias[:, None, None]
        for x, shift, weight, stride in zip(maps, shifts, weights, self.strides, strict=True):
            value = torch.einsum("bchw,ct->bthw", x.float() - shift[:, None, None], weight)
            total = total + enlarge(value, stride, size)
        parts = dict(zip(self.tasks, torch.split(total, list(self.tasks.values()), dim=1), strict=True))
        found = {}
        if "depth" in parts:
            found["depth"] = parts["depth"][:, 0]
        if "normals" in parts:
            found["normals"] = F.normalize(parts["normals"], dim=1)
        if "segmentation" in parts:
            found["segmentation"] = parts["segmentation"].argmax(dim=1)
        return found


@torch.no_grad()
def fit_readout(
    batches: Iterable[tuple[Sequence[Tensor], ReadoutTargets]],
    strides: Sequence[int],
    frames: int,
    classes: int = 0,
    cells: int = CELLS,
    seed: int = 0,
) -> Readout:
    """Fit a read-out to the training frames.

    For each task ``cells`` pixels that have a target are drawn with the seed, the same for every network, the same
    number of each frame; their features are those that :func:`pri3d.networks.encoders.enlarge` gives there. Depth is
    fitted in metres, normals as 3-vectors, classes as one-hot vectors, each by :func:`fit_ridge` with
    contiguous fifths of the frames as folds. Memory is that of one batch and of cells x channels numbers a task.

    Args:
        batches: maps (B, C, h, w) of training frames, finest first, and their targets, in the order of time.
        strides: of the maps.
        frames: of all batches together.
        classes: of segmentation.
        cells: at most so many pixels a task.
        seed: of the draw.

    Raises:
        DataError: no pixel of these frames has the target of a task.
    """
    generator = torch.Generator().manual_seed(seed)
    each = -(-cells // frames)
    rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}  # of each task: features, targets, folds
    begun = 0
    for maps, targets in batches:
        found = {task: x for task, x in targets._asdict().items() if x is not None}
        count, *_, height, width = next(iter(found.values())).shape
        order = torch.rand(count, height * width, generator=generator).to(maps[0].device)
        folds = (torch.arange(begun, begun + count, device=order.device) * FOLDS).div(frames, rounding_mode="floor")
        begun += count
        for task, target in found.items():
            flat = target.to(order.device).reshape(count, -1, height * width)
            if task == "normals":
                targeted = flat.square().sum(dim=1) > 0.5  # pixels that have a target (B, pixels)
            else:
                targeted = flat[:, 0] != IGNORED if task == "segmentation" else flat[:, 0] > 0
            drawn = torch.where(targeted, order, -1.0).topk(min(each, height * width), dim=1)
            kept = drawn.values >= 0
            at = torch.stack((drawn.indices % width, drawn.indices.div(width, rounding_mode="floor")), dim=-1) + 0.5
            x = sample_maps(maps, strides, at)
            y = flat.gather(2, drawn.indices[:, None].expand(-1, flat.shape[1], -1)).permute(0, 2, 1)[kept]
            y = F.one_hot(y[:, 0].long(), classes) if task == "segmentation" else y
            rows.setdefault(task, []).append((x[kept], y.float(), folds[:, None].expand_as(kept)[kept]))
    fitted = {}
    for task in list(rows):  # one after the other: memory
        x, y, fold = (torch.cat(parts)[:cells] for parts in zip(*rows.pop(task), strict=True))
        if not len(x):
            raise DataError(
                f"{task}: no pixel of the {frames} frames to learn from has one. Give other frames, or leave it out."
            )
        fitted[task] = fit_ridge(x, y, fold), x.double().mean(dim=0)
    shift = next(mean for _, mean in fitted.values())
    weight = torch.cat([ridge.weight for ridge, _ in fitted.values()], dim=1)
    bias = torch.cat([ridge.bias for ridge, _ in fitted.values()]) + shift @ weight
    return Readout(
        tuple(strides),
        {task: len(ridge.bias) for task, (ridge, _) in fitted.items()},
        shift.float(),
        weight.float(),
        bias.float(),
        {task: ridge.penalty for task, (ridge, _) in fitted.items()},
    )


class Ridge(NamedTuple):
    """A linear map of D channels to T values: ``x @ weight + bias``, exact for channels of any scale and offset."""

    weight: Tensor  #: (D, T) float64; 0 for channels that do not vary
    bias: Tensor  #: (T,) float64
    penalty: float  #: the chosen one

    def __call__(self, x: Tensor) -> Tensor:
        """Rows (N, D) -> (N, T) float64."""
        return x.double() @ self.weight + self.bias


class _Moments(NamedTuple):
    """Sums over rows of standardised channels x and of values y."""

    rows: Tensor
    x: Tensor  # (D,)
    y: Tensor  # (T,)
    xx: Tensor  # (D, D)
    xy: Tensor  # (D, T)
    yy: Tensor  # of all squares


def fit_ridge(x: Tensor, y: Tensor, folds: Tensor) -> Ridge:
    """Fit y by a linear map of x: least mean squared error plus a penalty on the weights, not on the bias.

    Minimises mean |y - (z w + b)|^2 + penalty |w|^2, where z are the channels of x brought to mean 0 and deviation 1.
    Of ``PENALTIES`` that one is taken whose maps, fitted without a fold, have the least squared error on it, over all
    folds. Each such map and its error come from the folds' sums of z, z z^T and z y^T (float64), so no row is looked
    at twice. Takes N D^2 + folds x penalties x D^3 / 3 operations; memory beside x: folds + 4 matrices (D, D).

    Args:
        x: (N, D), any type and scale.
        y: (N, T).
        folds: (N,) int64, which rows belong together; any numbers.

    Returns:
        The map; of no row at all, NaN.
    """
    channels, values = x.shape[1], y.shape[1]
    if not len(x):
        nothing = torch.full((channels + 1, values), math.nan, dtype=torch.float64, device=x.device)
        return Ridge(nothing[1:], nothing[0], math.nan)
    mean = sum((part.double().sum(dim=0) for part in torch.split(x, _ROWS)), x.new_zeros(channels).double()) / len(x)
    gaps = ((part.double() - mean).square().sum(dim=0) for part in torch.split(x, _ROWS))
    deviation = (sum(gaps, torch.zeros_like(mean)) / len(x)).sqrt()
    factor = torch.where(deviation > _CONSTANT * mean.abs(), 1 / deviation, 0.0)
    shift = y.double().mean(dim=0)  # so that sums of large values do not cancel
    parts = []
    for fold in sorted(set(folds.tolist())):
        count, sum_x, sum_y, xx, xy, yy = (mean.new_zeros(size) for size in (
            (), channels, values, (channels, channels), (channels, values), ()))  # fmt: skip
        own = folds == fold
        for part, value in zip(torch.split(x[own], _ROWS), torch.split(y[own], _ROWS), strict=True):
            z, v = (part.double() - mean) * factor, value.double() - shift
            count += len(z)
            sum_x += z.sum(dim=0)
            sum_y += v.sum(dim=0)
            xx.addmm_(z.mT, z)
            xy.addmm_(z.mT, v)
            yy += v.square().sum()
        parts.append(_Moments(count, sum_x, sum_y, xx, xy, yy))
    total = _Moments(*(sum(sums[1:], sums[0]) for sums in zip(*parts, strict=True)))
    errors = total.rows.new_zeros(len(PENALTIES))
    for held in parts if len(parts) > 1 else ():
        rest = _Moments(*(whole - part for whole, part in zip(total, held, strict=True)))
        for k, (weight, bias) in enumerate(_solve(rest, PENALTIES)):
            # sum of |y - z w - b|^2 over the held-out rows, multiplied out
            fitted = (weight * (held.xx @ weight)).sum() + held.rows * bias.square().sum()
            cross = (weight * held.xy).sum() + (bias * held.y).sum() - ((held.x @ weight) * bias).sum()
            errors[k] += held.yy + fitted - 2 * cross
    penalty = PENALTIES[int(errors.argmin())] if len(parts) > 1 else UNCHOSEN
    weight, offset = _solve(total, (penalty,))[0]
    weight = weight * factor[:, None]
    return Ridge(weight, offset + shift - mean @ weight, penalty)


def _solve(sums: _Moments, penalties: tuple[float, ...]) -> list[tuple[Tensor, Tensor]]:
    """Weights (D, T) of standardised channels and bias (T,) for each penalty."""
    x, y = sums.x / sums.rows, sums.y / sums.rows
    covariance = sums.xx / sums.rows - torch.outer(x, x)
    cross = sums.xy / sums.rows - torch.outer(x, y)
    found = []
    for k, penalty in enumerate(penalties):
        covariance.diagonal().add_(penalty - (penalties[k - 1] if k else 0.0))
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(covariance))
        found.append((weight, y - x @ weight))
    return found


class DepthScore(NamedTuple):
    """Predicted against measured depth over all measured pixels."""

    rmse: float  #: metres
    delta1: float  #: share 0..1 of pixels whose larger depth is less than 1.25 times the smaller
    delta2: float  #: 1.25 to the power of 2
    delta3: float
    pixels: int


class NormalScore(NamedTuple):
    """Angle between predicted and measured normals over all pixels that have one."""

    mean: float  #: degrees
    median: float
    below_11: float  #: share 0..1 of pixels with less than 11.25 degrees
    below_22: float  #: 22.5
    below_30: float
    pixels: int


class SegmentationScore(NamedTuple):
    """Classes of labelled pixels."""

    miou: float  #: 0..1, over the classes that occur
    accuracy: float  #: share 0..1 of pixels
    classes: int  #: that occur


class DepthErrors:
    """Gathers :class:`DepthScore` on the device."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Add images of metres (B, H, W). Pixels whose true depth is 0 do not count.

        In ratios a prediction below 1 mm is 1 mm.
        """
        valid = true > 0
        square = torch.where(valid, predicted - true, 0.0).double().square()
        near, true = predicted.clamp(min=1e-3), torch.where(valid, true, 1.0)
        ratio = torch.maximum(near / true, true / near)
        close = [valid & (ratio < RATIO**k) for k in (1, 2, 3)]
        self.sums.append(torch.stack([x.double().sum(dim=(-2, -1)) for x in (square, *close, valid)], dim=-1))

    def frames(self) -> Tensor:
        """(F, 5) float64 of each frame: sum of squares, pixels within 1.25, 1.25^2 and 1.25^3, pixels measured."""
        return torch.cat(self.sums).cpu()

    def result(self) -> DepthScore:
        """Scores, NaN where no pixel was measured."""
        square, *close, count = self.frames().sum(dim=0).tolist()
        if not count:
            return DepthScore(math.nan, math.nan, math.nan, math.nan, 0)
        one, two, three = (x / count for x in close)
        return DepthScore(math.sqrt(square / count), one, two, three, int(count))


class NormalErrors:
    """Gathers :class:`NormalScore` on the device."""

    def __init__(self) -> None:
        self.angles: list[Tensor] = []
        self.sums: list[Tensor] = []

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Add normals (B, 3, H, W): predicted of any length, true of length 1, or 0 where there is none."""
        valid = true.square().sum(dim=1) > 0.5
        # atan2, since arccos of float32 cannot tell angles below 0.02 degrees from 0
        a, b = F.normalize(predicted, dim=1), true
        angle = torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))
        self.angles.append(angle[valid])
        parts = (torch.where(valid, angle, 0.0), *(valid & (angle < end) for end in DEGREES), valid)
        self.sums.append(torch.stack([x.double().sum(dim=(-2, -1)) for x in parts], dim=-1))

    def frames(self) -> Tensor:
        """(F, 5) float64 of each frame: sum of degrees, pixels below 11.25, 22.5, 30 degrees, pixels with normals."""
        return torch.cat(self.sums).cpu()

    def result(self) -> NormalScore:
        """Scores, NaN where no pixel has a normal."""
        total, *close, count = self.frames().sum(dim=0).tolist()
        if not count:
            return NormalScore(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
        one, two, three = (x / count for x in close)
        return NormalScore(total / count, float(torch.cat(self.angles).median()), one, two, three, int(count))


class ClassErrors:
    """Gathers :class:`SegmentationScore` on the device."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.sums: list[Tensor] = []

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Add class ids (B, H, W) of predictions and labels; 255 does not count."""
        valid = label != IGNORED
        hit = valid & (predicted == label)
        counts = []
        for which, of in ((hit, label), (valid, label), (valid, predicted)):
            # one bin a frame and class, and one for what does not count
            frame = torch.arange(len(label), device=label.device)[:, None, None] * self.classes
            code = torch.where(which, frame + of.long(), len(label) * self.classes)
            found = torch.bincount(code.flatten(), minlength=len(label) * self.classes + 1)
            counts.append(found[:-1].view(len(label), self.classes))
        self.sums.append(torch.stack(counts, dim=1).flatten(1).double())

    def frames(self) -> Tensor:
        """(F, 3 x classes) float64 of each frame: of each class pixels right, then labelled, then predicted."""
        return torch.cat(self.sums).cpu()

    def result(self) -> SegmentationScore:
        """Scores, NaN where no pixel has a label."""
        hit, true, said = self.frames().sum(dim=0).view(3, self.classes)
        occurs = true > 0
        if not bool(occurs.any()):
            return SegmentationScore(math.nan, math.nan, 0)
        iou = (hit / (true + said - hit))[occurs]
        return SegmentationScore(float(iou.mean()), float(hit.sum() / true.sum()), int(occurs.sum()))

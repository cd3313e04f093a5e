"""Ridge regression in closed form, with its penalty selected by cross-validation from the sums of the folds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: what the penalty is chosen from, beside squared errors averaged over rows and channels of deviation 1
PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
UNCHOSEN = 1e-2  #: the penalty where all rows are of one fold
_ROWS = 4096  # converted to float64 at a time, which bounds the memory
_CONSTANT = 1e-6  # a channel whose deviation is a smaller share of its size does not vary: that is float32's rounding


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

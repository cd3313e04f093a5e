"""PointInfoNCE (paper Eq. 1) as one fused function: pure, no parameters, no knowledge of images."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pri3d.errors import ConfigError

#: Below this the exponent range of float32 no longer covers logits of -1/t..1/t.
MIN_TEMPERATURE = 0.025


class Contrast(NamedTuple):
    """Result for B samples."""

    loss: Tensor  #: (B,) float32, 0 where a sample has no valid point
    recall: Tensor  #: (B,) share of points whose partner is the most similar of the sample, detached


def info_nce(first: Tensor, second: Tensor, valid: Tensor, temperature: float = 0.4) -> Contrast:
    """Contrast matched features: every other valid point of the sample is a negative (paper Eq. 1).

    Features are L2-normalised, the loss is the mean over points and over both directions (Eq. 1 states the sum of
    one direction of unnormalised features; docs/paper-vs-code.md says why).

    Args:
        first: (B, n, C) features of view 0, any scale.
        second: (B, n, C) features of their partners, row by row.
        valid: (B, n) bool; other rows neither count nor serve as negatives.
        temperature: divides the cosine similarities; >= 0.025.

    Returns:
        Loss and recall of each sample. With m valid points of random features the loss is about ln m.
    """
    if not temperature >= MIN_TEMPERATURE:
        raise ConfigError(f"temperature = {temperature}: give at least {MIN_TEMPERATURE} (the released code has 0.4).")
    with torch.autocast(first.device.type, enabled=False):
        a, b = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
        loss, recall = _Fused.apply(a, b, valid, temperature)
    return Contrast(loss, recall)


class _Fused(torch.autograd.Function):
    """Loss and gradient in one pass over the similarities of a tile of samples.

    Cosines are at most 1, so exp((cos - 1) / t) needs no maximum; the same exponentials serve both directions and the
    gradient, which is formed at once while they are in the cache. A GPU takes all samples as one tile; a CPU takes
    one at a time because its n x n similarities then fit the cache.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, valid: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        grads = torch.empty_like(a), torch.empty_like(b)
        loss, recall = a.new_empty(a.shape[0]), a.new_empty(a.shape[0])
        tile = 1 if a.device.type == "cpu" else max(a.shape[0], 1)
        for start in range(0, a.shape[0], tile):
            part = slice(start, start + tile)
            loss[part], recall[part], grads[0][part], grads[1][part] = _tile(a[part], b[part], valid[part], temperature)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(recall)
        return loss, recall

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_a, grad_b = ctx.saved_tensors
        scale = grad_loss[:, None, None]
        return grad_a * scale, grad_b * scale, None, None


def _tile(a: Tensor, b: Tensor, valid: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss (T,), recall (T,) and gradients (T, n, C) of a tile of T samples.

    The n x n matrix is what costs, so masks act on vectors: invalid columns vanish by the bias of the product, invalid
    rows by weights in the sums.
    """
    mask = valid.float()
    count = mask.sum(dim=1).clamp(min=1)
    bias = torch.where(valid, -1 / temperature, -torch.inf)[:, None, :]
    similar = torch.baddbmm(bias, a, b.mT, alpha=1 / temperature).exp_()
    partner = similar.diagonal(dim1=1, dim2=2)
    hits = ((partner >= similar.amax(dim=2)) & valid).sum(dim=1)
    # An empty sum is 0; 1 in its place keeps the logarithm and the quotient finite, its mask is 0 anyway.
    rows = similar.sum(dim=2) + (1 - mask)
    columns = torch.bmm(mask[:, None, :], similar)[:, 0] + (1 - mask)
    positive = ((a * b).sum(dim=2) - 1) / temperature
    loss = ((0.5 * (rows.log() + columns.log()) - positive) * mask).sum(dim=1) / count
    scale = (mask / (count[:, None] * temperature))[:, :, None]
    weight = similar.mul_(0.5 / rows[:, :, None] + 0.5 / columns[:, None, :])
    grad_a = scale * (torch.bmm(weight, b) - b)
    grad_b = scale * (torch.bmm(weight.mT, a * mask[:, :, None]) - a)
    return loss, hits / count, grad_a, grad_b

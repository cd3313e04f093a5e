"""PointInfoNCE (paper Eq. 1) as one fused function: pure, no parameters, no knowledge of images.

One matrix of similarities, rows of view 0 against columns of view 1, serves both directions and the gradient. Where
it is small it is formed once; where it is large (all points of an image, all pairs of a batch) it is formed block by
block, twice: first for the sums of rows and columns, then for the gradient, so that memory grows with n and not n^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from pri3d.api.pretrain import MIN_TEMPERATURE, Negatives
from pri3d.errors import ConfigError

#: Similarities held at once, on a CPU (its cache) and elsewhere.
BLOCK_CPU, BLOCK = 1 << 22, 1 << 26


class Near(NamedTuple):
    """Where points lie, and how near each other two of them are no negatives."""

    places: Tensor  #: (B, n, D) in any unit
    radius: float  #: in the unit of ``places``
    shared: int = 1  #: so many samples, one after the other, have one frame of reference; others are never near


class Contrast(NamedTuple):
    """Result for each of S sets of points: the B samples, or one of them all."""

    loss: Tensor  #: (S,) at least float32, 0 where a set has no valid point
    recall: Tensor  #: (S,) share of points whose partner is the most similar of what they were contrasted with
    chance: Tensor  #: (S,) mean log of the number of candidates: about the loss of random features
    points: Tensor  #: (S,) how many are valid


def info_nce(
    first: Tensor,
    second: Tensor,
    valid: Tensor,
    temperature: float = 0.4,
    negatives: Negatives = "sample",
    near: Sequence[Near] = (),
) -> Contrast:
    """Contrast matched features: other valid points are negatives (paper Eq. 1), in both directions.

    Features are L2-normalised, the loss is the mean over points and over both directions (Eq. 1 states the sum of
    one direction of unnormalised features; docs/paper-vs-code.md says why). Only ``loss`` has a gradient.

    ``world`` has as loss the mean over the valid points of all processes, the same number in each. Every process
    must call it with the same shapes, holds its own rows of the matrix and has as gradient that of its features
    times the number of processes: averaged over processes, as DDP does, the gradient of parameters is the one a
    single process has of the joint batch. Without a process group, or in a group of one, it is ``batch``.

    Args:
        first: (B, n, C) features of view 0, any scale. float64 stays, everything else is contrasted in float32.
        second: (B, n, C) features of their partners, row by row.
        valid: (B, n) bool; other rows neither count nor serve as negatives.
        temperature: divides the cosine similarities; >= 0.025.
        negatives: ``sample``: points of the same sample (the paper). ``batch``: of all samples, which then are one
            set. ``world``: of all samples of all processes.
        near: point j is no negative of point i, in neither direction, where any of these has both nearer than its
            radius. The partner always counts.

    Returns:
        Result of each set: B for ``sample``, else one. Raises ConfigError for a temperature too low or other negatives.
    """
    if not temperature >= MIN_TEMPERATURE:
        raise ConfigError(f"temperature = {temperature}: give at least {MIN_TEMPERATURE} (the released code has 0.4).")
    if negatives not in get_args(Negatives):
        raise ConfigError(f"negatives = {negatives!r}: choose one of {', '.join(get_args(Negatives))}.")
    world = _World.here() if negatives == "world" else _World()
    with torch.autocast(first.device.type, enabled=False):
        dtype = torch.promote_types(first.dtype, torch.float32)
        a, b = F.normalize(first.to(dtype), dim=-1), F.normalize(second.to(dtype), dim=-1)
        places = [part.places for part in near]
        if negatives != "sample":
            a, b, valid = (tensor.flatten(0, 1)[None] for tensor in (a, b, valid))
            places = [_apart(part, world.rank) for part in near]
        setting = _Setting(temperature, tuple(part.radius for part in near), world)
        return Contrast(*_Fused.apply(a, b, valid, places, setting))


def _apart(near: Near, rank: int) -> Tensor:
    """Places of all samples as one set (1, B * n, D + 1): one more coordinate parts what shares no reference."""
    batch, points, _ = near.places.shape
    reference = torch.arange(batch, device=near.places.device) // near.shared + rank * batch
    further = (reference * (2 * near.radius)).to(near.places.dtype)[:, None, None].expand(-1, points, 1)
    return torch.cat((near.places, further), dim=-1).flatten(0, 1)[None]


class _World(NamedTuple):
    """The processes that share one matrix; alone unless said."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> _World:
        """Of the default process group, if there is one."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def gather(self, own: _Side) -> _Side:
        """The points of all processes in the order of their ranks; one collective for all fields."""
        if self.size == 1:
            return own
        fields = (own.features, own.valid[..., None], *own.places)
        packed = torch.cat([field.to(own.features.dtype) for field in fields], dim=-1)
        parts = [torch.empty_like(packed) for _ in range(self.size)]
        distributed.all_gather(parts, packed)
        features, valid, *places = torch.split(torch.cat(parts, dim=1), [field.shape[-1] for field in fields], dim=-1)
        return _Side(features, valid[..., 0] > 0, places)

    def add(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def add_own(self, tensor: Tensor) -> Tensor:
        """Sum over the processes of (1, size * n, C); returns this process's (1, n, C)."""
        if self.size == 1:
            return tensor
        own = tensor.shape[1] // self.size
        if distributed.get_backend() == "gloo":  # not every version of it can scatter
            return self.add(tensor)[:, self.rank * own : (self.rank + 1) * own]
        result = tensor.new_empty(own, tensor.shape[2])
        distributed.reduce_scatter_tensor(result, tensor[0])
        return result[None]


class _Setting(NamedTuple):
    """What a contrast needs besides tensors."""

    temperature: float
    radii: tuple[float, ...]  #: one for each entry of ``places``
    world: _World


class _Side(NamedTuple):
    """Rows or columns of T matrices."""

    features: Tensor  #: (T, n, C) of unit length
    valid: Tensor  #: (T, n) bool
    places: Sequence[Tensor]  #: (T, n, D) each

    def cut(self, samples: slice, points: slice) -> _Side:
        """Some points of some samples."""
        at = (samples, points)
        return _Side(self.features[at], self.valid[at], [places[at] for places in self.places])


class _Fused(torch.autograd.Function):
    """Loss and gradient in one go: the gradient is formed while the similarities are at hand.

    Cosines are at most 1, so exp((cos - 1) / t) needs no maximum; the same exponentials serve both directions and the
    gradient. A GPU takes all samples as one tile where they fit; a CPU takes one at a time because its n x n
    similarities then fit the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, valid: Tensor, places: Sequence[Tensor], setting: _Setting
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second = _Side(a, valid, places), _Side(b, valid, places)
        grads = torch.empty_like(a), torch.empty_like(b)
        sums = a.new_empty(4, a.shape[0])
        on_cpu = a.device.type == "cpu"
        tile = 1 if on_cpu else max(BLOCK // max(a.shape[1], 1) ** 2, 1)
        for start in range(0, a.shape[0], tile):
            part = (slice(start, start + tile), slice(None))
            own = first.cut(*part), second.cut(*part)
            sums[:, part[0]], grads[0][part], grads[1][part] = _tile(*own, setting, BLOCK_CPU if on_cpu else BLOCK)
        loss, hits, candidates, count = setting.world.add(sums)
        points = count.clamp(min=1)
        ctx.save_for_backward(*grads, valid * (setting.world.size / (points[:, None] * setting.temperature)))
        result = loss / points, hits / points, candidates / points, count
        ctx.mark_non_differentiable(*result[1:])
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_a, grad_b, share = ctx.saved_tensors
        scale = (share * grad_loss[:, None])[:, :, None]
        return grad_a * scale, grad_b * scale, None, None, None


def _similar(rows: _Side, columns: _Side, setting: _Setting, start: int) -> Tensor:
    """exp((cos - 1) / t) (T, r, n) of rows and columns; 0 in invalid columns and where both points are near.

    The partner of row k is column ``start`` + k.
    """
    bias = rows.features.new_full(columns.valid.shape, -1 / setting.temperature)
    bias = bias.masked_fill_(~columns.valid, -torch.inf)[:, None, :]
    similar = torch.baddbmm(bias, rows.features, columns.features.mT, alpha=1 / setting.temperature).exp_()
    for here, there, radius in zip(rows.places, columns.places, setting.radii, strict=True):
        # Differences and not products: a radius of whole pixels meets distances that equal it.
        near = torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist") < radius
        near.diagonal(offset=start, dim1=1, dim2=2).fill_(False)
        similar.masked_fill_(near, 0)
    return similar


def _tile(first: _Side, second: _Side, setting: _Setting, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the points of each of T samples, and gradients of view 0 and 1 (T, n, C) but for their common factor.

    Sums (4, T) are: losses, hits, logarithms of the numbers of candidates, points. The matrix is what costs, so masks
    act on vectors: invalid columns vanish by the bias of the product, invalid rows by weights in the sums.
    """
    tile, points = first.valid.shape
    columns = setting.world.gather(second)
    start, total = setting.world.rank * points, columns.valid.shape[1]
    step = max(block // max(tile * total, 1), 1)
    parts = [slice(k, min(k + step, points)) for k in range(0, points, step)]
    mask = first.valid.to(first.features.dtype)
    row_sums, column_sums = torch.empty_like(mask), mask.new_zeros(tile, total)
    best, candidates = torch.empty_like(mask), columns.valid.sum(dim=1, keepdim=True).expand(tile, points)
    candidates = candidates.to(mask.dtype, copy=True)
    for part in parts:
        similar = _similar(first.cut(slice(None), part), columns, setting, start + part.start)
        row_sums[:, part] = similar.sum(dim=2)
        column_sums += torch.bmm(mask[:, None, part], similar)[:, 0]
        partner = similar.diagonal(offset=start + part.start, dim1=1, dim2=2)
        best[:, part] = partner >= similar.amax(dim=2)
        if setting.radii:  # what counts is above exp(-2 / MIN_TEMPERATURE), far from 0
            candidates[:, part] = similar.count_nonzero(dim=2).to(mask.dtype)
    setting.world.add(column_sums)
    # An empty sum is 0; 1 in its place keeps the logarithm and the quotient finite, its mask is 0 anyway.
    row_sums += 1 - mask
    column_sums += ~columns.valid
    own = column_sums[:, start : start + points]
    positive = ((first.features * second.features).sum(dim=2) - 1) / setting.temperature
    loss = 0.5 * (row_sums.log() + own.log()) - positive
    sums = torch.stack([(value * mask).sum(dim=1) for value in (loss, best, candidates.clamp(min=1).log(), mask)])
    grad_a, grad_b = torch.empty_like(first.features), torch.zeros_like(columns.features)
    for part in parts:
        rows = first.cut(slice(None), part)
        if len(parts) > 1:
            similar = _similar(rows, columns, setting, start + part.start)
        weight = similar.mul_(0.5 / row_sums[:, part, None] + 0.5 / column_sums[:, None, :])
        torch.baddbmm(second.features[:, part], weight, columns.features, beta=-1, out=grad_a[:, part])
        grad_b.baddbmm_(weight.mT, rows.features * mask[:, part, None])
    return sums, grad_a, setting.world.add_own(grad_b) - first.features

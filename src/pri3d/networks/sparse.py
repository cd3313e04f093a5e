"""Sparse 3D convolution in plain torch: nothing to compile, CPU and any accelerator, any odd kernel size.

Occupied voxels are sorted by one int64 key, 16 bits each of batch, x, y and z. A kernel's neighbours are then found by
binary search, once per run of offsets along z; only half of the offsets are searched, the rest is their transpose.
Each convolution gathers, multiplies and adds by offset, in one autograd function that keeps nothing but its input, its
weights and the index lists (sparse convolutions: paper reference [14]).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pri3d.errors import ConfigError, DataError

BITS = 16
MARGIN = 16  #: free cells at the end of each field: a kernel's reach must not run into the next field
RANGE = 2**BITS - MARGIN
TILE = 2048  #: pairs multiplied at a time on a CPU, so that they stay in its cache


@dataclass(frozen=True)
class Pairs:
    """Which input rows feed which output rows, by kernel offset. No offset names an output row twice."""

    rows_out: int  #: number of output rows
    centre: int | None  #: offset that maps every row to itself, kept out of the lists
    lists: list[tuple[int, Tensor, Tensor]]  #: (offset, output rows (P,), input rows (P,)), int64
    mirror: int = 0  #: k^3 where each list also stands for its transpose, under offset k^3 - 1 - offset

    def each(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Every (offset, output rows, input rows), transposes included."""
        for offset, out, inp in self.lists:
            yield offset, out, inp
            if self.mirror:
                yield self.mirror - 1 - offset, inp, out


class Level(NamedTuple):
    """The voxels of one resolution, in key order."""

    keys: Tensor  #: (N,) int64, sorted, unique
    parents: Tensor | None  #: (N,) int64 row of the next coarser level, None on the coarsest
    slots: Tensor | None  #: (N,) int64 place 0..7 in the parent, z fastest


class Geometry:
    """Occupied voxels at ``levels`` resolutions, each half the one before, and their kernel maps, made when asked for.

    ``coords`` is (N, 4) int: batch, x, y, z in cells, unique rows in any order; negative cells are fine. Features of
    level 0 go in as ``feats[geometry.order]`` and come out as ``result[geometry.inverse]``. All tensors stay on the
    coords' device.

    Raises DataError for coords that are empty, of another shape, repeated, or that span more than 65,520 cells.
    """

    def __init__(self, coords: Tensor, levels: int = 5) -> None:
        keys, self.order = torch.sort(_keys(coords, levels))
        if bool((keys[1:] == keys[:-1]).any()):
            raise DataError("coords hold a voxel twice: pass unique rows (torch.unique(coords, dim=0))")
        self.inverse = torch.empty_like(self.order)
        self.inverse[self.order] = torch.arange(len(keys), device=keys.device)
        self.levels: list[Level] = []
        for _ in range(levels - 1):
            # Key of the parent voxel: x, y and z halved, the batch kept.
            low = 2 ** (BITS - 1) - 1
            batch = keys >> 3 * BITS << 3 * BITS
            halved: Tensor = batch | (keys >> 1) & (low << 2 * BITS | low << BITS | low)
            coarse, parents = torch.unique(halved, return_inverse=True)
            # Place of a voxel in its parent: 4 (x mod 2) + 2 (y mod 2) + z mod 2.
            slots = (keys >> 2 * BITS & 1) << 2 | (keys >> BITS & 1) << 1 | keys & 1
            self.levels.append(Level(keys, parents, slots))
            keys = coarse
        self.levels.append(Level(keys, None, None))
        self._maps: dict[tuple[str, int, int], Pairs] = {}

    def same(self, level: int, kernel: int) -> Pairs:
        """Pairs of a kernel^3 convolution whose outputs are its input voxels; offsets run z fastest."""
        return self._cached("same", level, kernel)

    def down(self, level: int) -> Pairs:
        """Pairs of the 2^3 convolution of stride 2 from ``level`` to ``level + 1``."""
        return self._cached("down", level, 2)

    def up(self, level: int) -> Pairs:
        """Pairs of the transposed 2^3 convolution from ``level`` to ``level - 1``."""
        return self._cached("up", level, 2)

    def _cached(self, kind: str, level: int, kernel: int) -> Pairs:
        key = (kind, level, kernel)
        if not 0 <= level - (kind == "up") <= level + (kind == "down") < len(self.levels):
            raise ConfigError(f"no {kind} convolution at level {level} of {len(self.levels)}: build more levels")
        if key not in self._maps:
            if kind == "same":
                self._maps[key] = _same_pairs(self.levels[level].keys, kernel)
            elif kind == "down":
                fine = self.levels[level]
                if fine.parents is None or fine.slots is None:
                    raise ConfigError("the coarsest level has no parents: build the geometry with more levels")
                # Child -> parent, by the child's place.
                slots, children = torch.sort(fine.slots, stable=True)
                counts = torch.bincount(slots, minlength=8).tolist()
                lists = _split(list(range(8)), counts, fine.parents[children], children)
                self._maps[key] = Pairs(len(self.levels[level + 1].keys), None, lists)
            else:
                swapped = [(slot, inp, out) for slot, out, inp in self.down(level - 1).lists]
                self._maps[key] = Pairs(len(self.levels[level - 1].keys), None, swapped)
        return self._maps[key]


class SparseConv(nn.Module):
    """Base of the three convolutions: weight (offsets, inputs, outputs), z fastest; no bias, a norm follows."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(kernel**3, inputs, outputs))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (kernel**3 * inputs)))

    def convolve(self, x: Tensor, pairs: Pairs) -> Tensor:
        """Features (N, inputs) -> (pairs.rows_out, outputs); under autocast in its type, sums kept in float32."""
        weight: Tensor = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        result: Tensor = _Convolution.apply(x, weight, pairs)
        return result


class SubmConv(SparseConv):
    """kernel^3 convolution at the occupied voxels: what a dense one with zero padding gives there."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        if kernel % 2 == 0 or kernel > MARGIN:
            raise ConfigError(f"kernel must be odd and below {MARGIN}, not {kernel}")
        super().__init__(inputs, outputs, kernel)

    def forward(self, x: Tensor, geometry: Geometry, level: int) -> Tensor:
        """Features (N, inputs) of ``level`` -> (N, outputs)."""
        return self.convolve(x, geometry.same(level, self.kernel))


class Down(SparseConv):
    """2^3 convolution of stride 2 to the next coarser level."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2)

    def forward(self, x: Tensor, geometry: Geometry, level: int) -> Tensor:
        """Features (N, inputs) of ``level`` -> (M, outputs) of ``level + 1``."""
        return self.convolve(x, geometry.down(level))


class Up(SparseConv):
    """Transposed 2^3 convolution of stride 2 to the next finer level."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2)

    def forward(self, x: Tensor, geometry: Geometry, level: int) -> Tensor:
        """Features (M, inputs) of ``level`` -> (N, outputs) of ``level - 1``."""
        return self.convolve(x, geometry.up(level))


class _Convolution(torch.autograd.Function):
    """Gather, multiply, add: y[out] += x[in] @ w[offset] for every pair. Keeps x, w and the (shared) pairs only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.pairs = pairs
        with torch.autocast(x.device.type, enabled=False):
            if pairs.centre is None:
                y = x.new_zeros(pairs.rows_out, w.shape[2], dtype=_sum_type(x))
            else:
                y = (x @ w[pairs.centre]).to(_sum_type(x))
            for offset, out, inp in pairs.each():
                y.index_add_(0, out, (x.index_select(0, inp) @ w[offset]).to(y.dtype))
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, w = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        with torch.autocast(x.device.type, enabled=False):
            grad_w = torch.zeros_like(w, dtype=_sum_type(w))
            grad_x = torch.zeros_like(x, dtype=_sum_type(x)) if ctx.needs_input_grad[0] else None
            if pairs.centre is not None:
                grad_w[pairs.centre] = x.mT @ grad
                if grad_x is not None:
                    grad_x += grad @ w[pairs.centre].mT
            for offset, out, inp in pairs.each():
                g = grad.index_select(0, out)
                grad_w[offset] += x.index_select(0, inp).mT @ g
                if grad_x is not None:
                    grad_x.index_add_(0, inp, (g @ w[offset].mT).to(grad_x.dtype))
        return (None if grad_x is None else grad_x.to(x.dtype)), grad_w.to(w.dtype), None


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _keys(coords: Tensor, levels: int) -> Tensor:
    """Coords (N, 4) -> int64 keys (N,). Every batch item is moved so that its cells start near 0."""
    if coords.ndim != 2 or coords.shape[1] != 4 or coords.is_floating_point():
        raise DataError(f"coords must be integers (N, 4): batch, x, y, z; not {coords.dtype} {tuple(coords.shape)}")
    if len(coords) == 0:
        raise DataError("no voxel at all: the caller has to leave such a batch out")
    coords = coords.long()
    batch, cells = coords[:, 0], coords[:, 1:]
    first, last = (int(v) for v in torch.stack((batch.min(), batch.max())).tolist())
    if first < 0 or last >= 2 ** (BITS - 1):
        raise DataError(f"batch indices must lie in 0..{2 ** (BITS - 1) - 1}, not {first}..{last}")
    lowest = cells.new_zeros(last + 1, 3).scatter_reduce_(
        0, batch[:, None].expand(-1, 3), cells, "amin", include_self=False
    )
    # Whole multiples of the coarsest cell: the parents are those of the unmoved cells.
    coarsest = 2 ** (levels - 1)
    cells = cells - torch.div(lowest, coarsest, rounding_mode="floor").mul_(coarsest)[batch]
    if int(cells.max()) >= RANGE:
        raise DataError(
            f"voxels of one batch item span {int(cells.max())} cells, at most {RANGE} fit: take larger voxels"
        )
    return (((batch << BITS | cells[:, 0]) << BITS | cells[:, 1]) << BITS) | cells[:, 2]


def _same_pairs(keys: Tensor, kernel: int) -> Pairs:
    """Neighbour pairs of a kernel^3 kernel; half of the offsets, the transposes stand for the others."""
    if kernel == 1:
        return Pairs(len(keys), 0, [])
    n, r, device = len(keys), kernel // 2, keys.device
    runs = [(x, y) for x in range(r + 1) for y in range(-r, r + 1) if (x, y) > (0, 0)]
    shifts = torch.tensor([(x << 2 * BITS) + (y << BITS) - r for x, y in runs], device=device)
    first = torch.cat((keys + shifts[:, None], keys[None] + 1))  # (runs, N) lowest key of each run; the last is z > 0
    here = torch.arange(1, n + 1, device=device)
    start = torch.cat((torch.searchsorted(keys, first[:-1]), here[None]))
    # Keys of a run are consecutive, so its voxels lie in consecutive rows from its start.
    padded = torch.cat((keys, keys.new_full((kernel,), torch.iinfo(torch.int64).max)))
    hits, row, target = [], start.view(-1).clone(), first.view(-1)
    for z in range(kernel):
        hit = padded.index_select(0, row) == target + z
        if z >= r:
            hit[-n:] = False
        hits.append(hit)
        row += hit
    found = torch.stack(hits)  # (kernel, runs * N)
    before = found.cumsum(0, dtype=torch.uint8).sub_(found.view(torch.uint8))
    flat = found.view(-1).nonzero()[:, 0]
    groups = kernel * len(start)
    edges = torch.searchsorted(flat, torch.arange(groups + 1, device=device) * n)
    counts = edges.diff()
    group = torch.repeat_interleave(counts, output_size=len(flat))
    inp = start.view(-1).index_select(0, flat - group // len(start) * start.numel())
    inp += before.view(-1).index_select(0, flat)
    bases = [((x + r) * kernel + y + r) * kernel for x, y in runs] + [kernel**3 // 2 + 1]
    offsets = [base + z for z in range(kernel) for base in bases]
    return Pairs(n, kernel**3 // 2, _split(offsets, counts.tolist(), flat - group * n, inp), kernel**3)


def _split(offsets: list[int], counts: list[int], out: Tensor, inp: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Cut joined lists into one per offset, on a CPU into tiles that stay in its cache; empty ones are left out."""
    tiled = out.device.type == "cpu"
    sizes, names = [], []
    for offset, count in zip(offsets, counts, strict=True):
        step = TILE if tiled else max(count, 1)
        cut = [min(step, count - begin) for begin in range(0, count, step)]
        sizes += cut
        names += [offset] * len(cut)
    return list(zip(names, torch.split(out, sizes), torch.split(inp, sizes), strict=True))

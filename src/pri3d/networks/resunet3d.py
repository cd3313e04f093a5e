"""The 3D network of the geometric prior: a residual U-Net of sparse convolutions.

Paper, "Architecture for Pre-training". 34C is the topology the authors ran; 18A and 14A are its smaller sisters,
tiny is for demonstrations on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pri3d.errors import ConfigError, DataError
from pri3d.networks.sparse import Down, Geometry, SubmConv, Up


class Size(NamedTuple):
    """Plain figures of a network: one entry per stage, the encoder's first, then the decoder's."""

    blocks: tuple[int, ...]
    planes: tuple[int, ...]
    stem_channels: int = 32
    stem_kernel: int = 5


SIZES = {
    "34C": Size((2, 3, 4, 6, 2, 2, 2, 2), (32, 64, 128, 256, 256, 128, 96, 96)),
    "18A": Size((2, 2, 2, 2, 2, 2, 2, 2), (32, 64, 128, 256, 128, 128, 96, 96)),
    "14A": Size((1, 1, 1, 1, 1, 1, 1, 1), (32, 64, 128, 256, 128, 128, 96, 96)),
    "tiny": Size((1, 1, 1, 1, 1, 1), (32, 64, 96, 64, 32, 32), stem_channels=16, stem_kernel=3),
}


class Norm(nn.BatchNorm1d):
    """Batch norm that takes its running statistics where a level has a single voxel, which has no deviation."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (N, C) -> (N, C)."""
        if self.training and len(input) == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class ResUNet3d(nn.Module):
    """Occupied voxels with features -> one feature per voxel, in the caller's row order.

    ``blocks`` and ``planes`` have one entry per stage: half of them go down a level each, half come back up. With
    ``recompute`` a stage keeps what goes in alone, and the backward pass computes its features again (activation
    checkpointing): the same gradients with less memory. Raises ConfigError where blocks and planes do not pair up.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 96,
        blocks: Sequence[int] = SIZES["34C"].blocks,
        planes: Sequence[int] = SIZES["34C"].planes,
        stem_channels: int = 32,
        stem_kernel: int = 5,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        if len(blocks) != len(planes) or len(blocks) % 2:
            raise ConfigError(
                f"blocks {tuple(blocks)} and planes {tuple(planes)} need the same, even number of entries"
            )
        self.in_channels = in_channels
        self.depth = len(planes) // 2
        self.stem = SubmConv(in_channels, stem_channels, stem_kernel)
        self.stem_norm = Norm(stem_channels)
        widths = [stem_channels, *planes[: self.depth]]
        self.encoder = nn.ModuleList(
            Stage(Down(widths[i], widths[i]), widths[i], 0, widths[i + 1], blocks[i]) for i in range(self.depth)
        )
        self.decoder = nn.ModuleList()
        width = widths[-1]
        for i in range(self.depth):
            plane, skip = planes[self.depth + i], widths[self.depth - 1 - i]
            self.decoder.append(Stage(Up(width, plane), plane, skip, plane, blocks[self.depth + i]))
            width = plane
        self.head = nn.Linear(width, out_channels)

    def forward(self, coords: Tensor, feats: Tensor) -> Tensor:
        """Voxels (N, 4) int (batch, x, y, z in cells, unique rows) and features (N, in_channels) -> (N, out_channels).

        Raises DataError for an empty set (leave such a batch out), repeated or out-of-range coords, or features that
        do not belong to them.
        """
        if feats.shape != (len(coords), self.in_channels):
            raise DataError(
                f"feats must be ({len(coords)}, {self.in_channels}), one row a voxel; not {tuple(feats.shape)}"
            )
        return self.features(Geometry(coords, self.depth + 1), feats)

    def features(self, geometry: Geometry, feats: Tensor) -> Tensor:
        """Map features (N, in_channels) on a ready geometry of ``depth + 1`` levels, both in the caller's row order."""
        x = F.relu(self.stem_norm(self.stem(feats.index_select(0, geometry.order), geometry, 0)))
        skips = [x]
        for level, stage in enumerate(self.encoder):
            x = self._pass(stage, x, geometry, level, level + 1)
            skips.append(x)
        for i, stage in enumerate(self.decoder):
            level = self.depth - i
            x = self._pass(stage, x, geometry, level, level - 1, skips[level - 1])
        return self.head(x).index_select(0, geometry.inverse)  # type: ignore[no-any-return]

    def _pass(self, stage: nn.Module, *given: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(stage, *given, use_reentrant=False)
            return recomputed
        whole: Tensor = stage(*given)
        return whole


class Stage(nn.Module):
    """One change of level, then residual blocks; coming up, the skipped features are put beside first."""

    def __init__(self, move: Down | Up, moved: int, skip: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.move = move
        self.norm = Norm(moved)
        widths = [moved + skip, *[outputs] * blocks]
        self.blocks = nn.ModuleList(ResidualBlock3d(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor, geometry: Geometry, source: int, target: int, skip: Tensor | None = None) -> Tensor:
        """Features of level ``source`` -> features of level ``target``."""
        x = F.relu(self.norm(self.move(x, geometry, source)))
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        for block in self.blocks:
            x = block(x, geometry, target)
        return x


class ResidualBlock3d(nn.Module):
    """Two 3^3 convolutions and a shortcut, projected where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = SubmConv(inputs, outputs)
        self.norm1 = Norm(outputs)
        self.conv2 = SubmConv(outputs, outputs)
        self.norm2 = Norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Linear(inputs, outputs, bias=False), Norm(outputs))

    def forward(self, x: Tensor, geometry: Geometry, level: int) -> Tensor:
        """Features (N, inputs) -> (N, outputs) of the same level."""
        y = F.relu(self.norm1(self.conv1(x, geometry, level)))
        y = self.norm2(self.conv2(y, geometry, level))
        return F.relu(y + self.shortcut(x))


def build_resunet3d(
    size: str = "34C", in_channels: int = 1, out_channels: int = 96, recompute: bool = False
) -> ResUNet3d:
    """Build a network by size; 1 input channel is occupancy (paper), 3 are RGB 0..1.

    Raises ConfigError for an unknown size.
    """
    if size not in SIZES:
        raise ConfigError(f"unknown 3D network size {size!r}. Choices: {', '.join(SIZES)}.")
    return ResUNet3d(in_channels, out_channels, *SIZES[size], recompute=recompute)

"""Retention: how far an encoder's features and weights have moved from others, such as the initial ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pri3d.errors import ConfigError
from pri3d.networks.encoders import Encoder
from pri3d.networks.load import FeatureNet
from pri3d.terminal import track

BATCH = 8  #: images at a time


class Retention(NamedTuple):
    """What is left of a reference; of each of the encoder's maps, by its name such as "map 0, stride 2"."""

    cosine: dict[str, float]  #: mean over cells of the cosine of both networks' features, 1 where none moved
    cka: dict[str, float]  #: linear CKA over all cells, 0..1; 1 where they agree up to rotation and scale
    weight_change: float  #: norm of the difference of the encoder's parameters, over the norm of the reference's


class LinearCKA:
    """Linear centred kernel alignment of rows X (n, C) and Y (n, D), gathered over batches in float64.

    ||Y^T X||^2 / (||X^T X|| ||Y^T Y||) of centred columns with Frobenius norms (Kornblith et al., "Similarity of
    Neural Network Representations Revisited", 2019).
    """

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []  # X^T X, Y^T Y, X^T Y, and the sums of both

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows x (n, C) and y (n, D)."""
        x, y = x.double(), y.double()
        new = [x.mT @ x, y.mT @ y, x.mT @ y, x.sum(dim=0), y.sum(dim=0)]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(x)

    def result(self) -> float:
        """0..1; NaN where a side does not vary."""
        xx, yy, xy, x, y = self.sums
        products = ((xx, x, x), (yy, y, y), (xy, x, y))
        norms = [float((a - torch.outer(b, c) / self.count).norm()) for a, b, c in products]
        below = norms[0] * norms[1]
        return norms[2] ** 2 / below if below > 0 else math.nan


@torch.no_grad()
def retention(net: FeatureNet, reference: FeatureNet, color: Tensor, name: str = "network") -> Retention:
    """Compare the encoders of two networks on images (N, 3, H, W) uint8.

    Each image is normalised as its network was made for. Raises ConfigError where the encoders are different ones.
    """
    one, other = net.encoder, reference.encoder
    check_same(one, other, name)
    device = next(net.parameters()).device
    names = [f"map {k}, stride {stride}" for k, stride in enumerate(one.strides)]
    cosines: list[Tensor] = []
    alignments = [LinearCKA() for _ in names]
    for part in track(torch.split(color, BATCH), f"retention, {name}"):
        images = part.to(device).float() / 255
        pairs = zip(one(one.normalise(images)), other(other.normalise(images)), strict=True)
        rows = [tuple(x.float().permute(0, 2, 3, 1).flatten(0, 2) for x in pair) for pair in pairs]
        cosines.append(torch.stack([torch.cosine_similarity(x, y, dim=1).mean() * len(part) for x, y in rows]))
        for alignment, (x, y) in zip(alignments, rows, strict=True):
            alignment.update(x, y)
    cosine = (torch.stack(cosines).sum(dim=0) / len(color)).tolist()
    return Retention(
        dict(zip(names, cosine, strict=True)),
        {key: alignment.result() for key, alignment in zip(names, alignments, strict=True)},
        weight_change(one, other),
    )


def check_same(one: Encoder, other: Encoder, name: str) -> None:
    """Raise ConfigError where two encoders have different parameters."""
    shapes = [{key: x.shape for key, x in encoder.named_parameters()} for encoder in (one, other)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"{name}: its encoder is {one.name}, that of the reference {other.name}. Give a --reference of the same "
            "encoder, or leave retention out of --tasks."
        )


@torch.no_grad()
def weight_change(one: Encoder, other: Encoder) -> float:
    """Norm of the difference of all parameters over the norm of the second's; statistics of batch norm do not count."""
    initial = dict(other.named_parameters())
    moved = sum(float((x - initial[key]).double().square().sum()) for key, x in one.named_parameters())
    whole = sum(float(x.double().square().sum()) for x in initial.values())
    return math.sqrt(moved / whole) if whole else math.nan

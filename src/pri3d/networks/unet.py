"""The 2D network of pre-training: encoder + decoder -> one feature per cell of half the image's resolution.

Paper, "Architecture for Pre-training": a U-Net with residual connections, a ResNet as encoder, a decoder of
convolutions and bilinear interpolation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.errors import ConfigError
from pri3d.networks.encoders import Encoder, build_encoder

Size = tuple[int, int]


class UNet(nn.Module):
    """Images (B, 3, H, W), RGB 0..1 -> features (B, channels, ceil(H / 2), ceil(W / 2)).

    ``channels`` "auto" is what the released code has: 128 where the encoder's last map has 2048, else 32. ``decoder``
    is "paper" (5 x 5 up-projections; takes the published checkpoints) or "slim" (64 channels, 3 x 3; for
    small machines). Normalisation happens inside. Raises ConfigError for an unknown decoder.
    """

    def __init__(self, encoder: Encoder, decoder: str = "paper", channels: int | Literal["auto"] = 32) -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise ConfigError(f"unknown decoder {decoder!r}. Choices: {', '.join(DECODERS)}.")
        self.encoder = encoder
        self.decoder_name = decoder
        if channels == "auto":
            channels = 128 if encoder.channels[-1] >= 2048 else 32
        self.channels = channels
        build, widths, step = DECODERS[decoder]
        one_stride = len(set(encoder.strides)) == 1 and encoder.strides[0] > 2
        self.decoder = FusionDecoder(encoder, channels, widths, step) if one_stride else build(encoder, channels)

    def forward(self, images: Tensor) -> Tensor:
        """RGB 0..1 (B, 3, H, W) -> features (B, channels, ceil(H / 2), ceil(W / 2))."""
        return self.forward_maps(images)[0]

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """RGB 0..1 (B, 3, H, W) -> (features as :meth:`forward`, the encoder's maps as :class:`Encoder`)."""
        maps = self.encoder(self.encoder.normalise(images))
        half = ((images.shape[-2] + 1) // 2, (images.shape[-1] + 1) // 2)
        features: Tensor = self.decoder(maps, half)
        return features, maps


class UpProjection(nn.Module):
    """Resize, then a residual block: 5 x 5 and 3 x 3 convolution beside a 5 x 5 shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv1_2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1_2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Map (B, inputs, h, w) -> (B, outputs, *size)."""
        # align_corners: the published weights were trained so; it also keeps cell i of a strided convolution over
        # cell 2 i of the finer map.
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        main = self.bn1_2(self.conv1_2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(main + self.bn2(self.conv2(x)))


class PaperDecoder(nn.Module):
    """Up-projections from the coarsest map to half resolution, each finer map of stride 4 or more added on the way.

    For a ResNet this is the network of the published checkpoints, module names included (up1 to up4, conv0). Where an
    encoder leaves a gap (ConvNeXt has no map of stride 2), up-projections that halve the stride and the channels fill
    it. Encoders of one stride have a decoder of their own, :class:`FusionDecoder`.
    """

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        levels = [k for k, stride in enumerate(encoder.strides) if stride > 2] or [len(encoder.strides) - 1]
        width = encoder.channels[levels[-1]]
        self.start = levels[-1]
        self.steps: list[tuple[str, int]] = []  # (module, index of the map to add) in order
        for k in reversed(levels[:-1]):
            self._append(width, encoder.channels[k], k)
            width = encoder.channels[k]
        self.fill: list[tuple[str, int]] = []  # (module, stride of its output)
        for stride in _halvings(encoder.strides[levels[0]]):
            narrow = max(width // 2, 16)
            self.fill.append((self._append(width, narrow), stride))
            width = narrow
        self.conv0 = nn.Conv2d(width, channels, 1)

    def _append(self, inputs: int, outputs: int, skip: int | None = None) -> str:
        name = f"up{sum(1 for _ in self.children()) + 1}"
        self.add_module(name, UpProjection(inputs, outputs))
        if skip is not None:
            self.steps.append((name, skip))
        return name

    def forward(self, maps: list[Tensor], half: Size) -> Tensor:
        """Turn the encoder's maps, finest first, into (B, channels, *half)."""
        x = maps[self.start]
        for name, k in self.steps:
            x = getattr(self, name)(x, _size(maps[k])) + maps[k]
        for name, stride in self.fill:
            x = getattr(self, name)(x, _size_at(stride, half))
        features: Tensor = self.conv0(x)
        if _size(features) != half:  # an encoder whose only maps are of stride 1 or 2
            features = F.interpolate(features, size=half, mode="bilinear", align_corners=False)
        return features


class SlimDecoder(nn.Module):
    """Laterals of 64 channels added top-down, a 3 x 3 convolution at each level, the last one at half resolution."""

    WIDTH = 64

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        width = self.WIDTH
        self.coarse = [k for k, stride in enumerate(encoder.strides) if stride > 2]
        self.fine = [k for k, stride in enumerate(encoder.strides) if stride <= 2]
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in encoder.channels)
        self.smooth = nn.ModuleDict({str(k): _conv_bn(width, width) for k in self.coarse})
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, maps: list[Tensor], half: Size) -> Tensor:
        """Turn the encoder's maps, finest first, into (B, channels, *half)."""
        width = self.WIDTH
        x = maps[-1].new_zeros(maps[-1].shape[0], width, *_size(maps[-1]))
        for k in reversed(self.coarse):
            x = self.smooth[str(k)](self.laterals[k](maps[k]) + _resize(x, _size(maps[k])))
        x = _resize(x, half)
        for k in reversed(self.fine):
            x = x + _resize(self.laterals[k](maps[k]), half)
        features: Tensor = self.out(x)
        return features


class FusionDecoder(nn.Module):
    """For maps that share one stride, as a ViT's: projected to one width, summed, then brought to half resolution.

    ``widths`` are the channels after the sum and after each step; a step halves the stride, the last width is kept for
    further ones. ``step`` builds one: (inputs, outputs) -> module (map, size) -> map.
    """

    def __init__(self, encoder: Encoder, channels: int, widths: Sequence[int], step: Callable[[int, int], nn.Module]):
        super().__init__()
        strides = _halvings(encoder.strides[0])
        widths = [*widths, *[widths[-1]] * len(strides)][: len(strides) + 1]
        self.laterals = nn.ModuleList(nn.Conv2d(c, widths[0], 1, bias=False) for c in encoder.channels)
        self.norm = nn.BatchNorm2d(widths[0])
        self.steps = nn.ModuleList(step(a, b) for a, b in pairwise(widths))
        self.strides = strides  #: stride of each step's output
        self.out = nn.Conv2d(widths[-1], channels, 1)

    def forward(self, maps: list[Tensor], half: Size) -> Tensor:
        """Turn the encoder's maps into (B, channels, *half)."""
        projected = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        x = F.relu(self.norm(torch.stack(projected).sum(0)))
        for stride, step in zip(self.strides, self.steps, strict=True):
            x = step(x, _size_at(stride, half))
        features: Tensor = self.out(x)
        return features


class SlimStep(nn.Module):
    """Resize, then a 3 x 3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.smooth = _conv_bn(inputs, outputs)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Map (B, inputs, h, w) -> (B, outputs, *size)."""
        y: Tensor = self.smooth(_resize(x, size))
        return y


class _Decoder(NamedTuple):
    """How a decoder is built on an encoder."""

    build: Callable[[Encoder, int], nn.Module]  #: of several strides
    widths: tuple[int, ...]  #: of one stride: of its :class:`FusionDecoder`
    step: Callable[[int, int], nn.Module]  #: the same


DECODERS = {
    "paper": _Decoder(PaperDecoder, (256, 128, 64, 32), UpProjection),
    "slim": _Decoder(SlimDecoder, (SlimDecoder.WIDTH,), SlimStep),
}


def build_unet(encoder: str = "resnet18", decoder: str = "paper", channels: int | None = None) -> UNet:
    """Untrained U-Net by name; ``channels`` None is "auto".

    Raises ConfigError for an unknown encoder or decoder.
    """
    return UNet(build_encoder(encoder), decoder, channels or "auto")


def _halvings(stride: int) -> list[int]:
    """Strides on the way from ``stride`` to 2: 8, 4, 2 from 16 and 7, 3, 2 from 14."""
    strides = []
    while stride > 2:
        stride = max(2, stride // 2)
        strides.append(stride)
    return strides


def _size_at(stride: int, half: Size) -> Size:
    """Size of a map of ``stride`` where that of stride 2 has ``half``."""
    # Rounded up by adding: ONNX divides negative numbers to the other side.
    return (2 * half[0] + stride - 1) // stride, (2 * half[1] + stride - 1) // stride


def _conv_bn(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _size(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]  # not through int(), which would fix the size in a traced network


def _resize(x: Tensor, size: Size) -> Tensor:
    return x if _size(x) == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)

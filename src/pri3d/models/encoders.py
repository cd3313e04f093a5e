"""Image encoders behind one contract: they state their channels and strides, the decoder asks.

The ResNets are torchvision's (paper, "Architecture for Pre-training") and keep its parameter names; any other name
goes to timm. An encoder of one's own is a line in ``ENCODERS`` or an entry point ``pri3d.encoders``: a callable
``(name, pretrained) -> Encoder``. Its tests are inherited from ``tests/models/encoder_contract.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d import registry
from pri3d.errors import ConfigError, WeightsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ENCODERS = {
    "resnet18": "pri3d.models.encoders:ResNetEncoder",
    "resnet34": "pri3d.models.encoders:ResNetEncoder",
    "resnet50": "pri3d.models.encoders:ResNetEncoder",
    "resnet101": "pri3d.models.encoders:ResNetEncoder",
}

#: timm source module -> what makes its networks take any image size
FREE_SIZE: dict[str, dict[str, Any]] = {
    "timm.models.vision_transformer": {"dynamic_img_size": True},
    "timm.models.eva": {"dynamic_img_size": True},
    "timm.models.deit": {"dynamic_img_size": True},
    "timm.models.swin_transformer": {"strict_img_size": False},
    "timm.models.swin_transformer_v2": {"strict_img_size": False},
}


class Encoder(nn.Module):
    """Images -> feature maps. A subclass sets the three fields and writes ``forward``.

    ``forward`` takes normalised images (B, 3, H, W) of any H, W and returns one map (B, channels[k],
    ceil(H / strides[k]), ceil(W / strides[k])) per entry of ``strides``, finest first. A network of a single scale
    may state one stride several times; none has to have a stride of 2.
    """

    name: str  #: what :func:`build_encoder` was asked for
    channels: tuple[int, ...]  #: channels of each map
    strides: tuple[int, ...]  #: pixels per cell of each map, ascending
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        # Not persistent: the state dict stays key-identical to the library's own.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """RGB 0..1 (B, 3, H, W) -> what the network was made for: ImageNet's mean and deviation, or timm's own."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> maps, see the class."""
        raise NotImplementedError


class ResNetEncoder(Encoder):
    """torchvision's ResNet without its classifier: same parameter names, maps of strides 2, 4, 8, 16 and 32."""

    strides = (2, 4, 8, 16, 32)
    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, name: str, pretrained: bool = False) -> None:
        super().__init__()
        self.name = name
        weights = "IMAGENET1K_V1" if pretrained else None
        try:
            net = torchvision.models.get_model(name, weights=weights)
        except OSError as error:
            raise _no_weights(name, error) from error
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(part, getattr(net, part))
        last = int(net.fc.in_features)
        self.channels = (int(net.conv1.out_channels), last // 8, last // 4, last // 2, last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> five maps, see :class:`Encoder`."""
        x = self.relu(self.bn1(self.conv1(images)))
        maps = [x]
        x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class TimmEncoder(Encoder):
    """Any timm network with ``features_only``; padded to whole strides, cropped back, always channels first."""

    def __init__(self, name: str, pretrained: bool = False) -> None:
        net = _timm_features(name, pretrained)
        config = getattr(net, "pretrained_cfg", None) or {}
        super().__init__(config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD))
        self.name = name
        self.net = net
        self.channels = tuple(int(c) for c in net.feature_info.channels())
        self.strides = tuple(int(s) for s in net.feature_info.reduction())
        self.channels_last = str(getattr(net, "output_fmt", "NCHW")).upper().endswith("NHWC")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> one map per stride, see :class:`Encoder`."""
        height, width = images.shape[-2:]
        step = max(self.strides)
        padded = F.pad(images, (0, -width % step, 0, -height % step))
        maps = self.net(padded)
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2).contiguous() for x in maps]
        return [x[:, :, : -(-height // s), : -(-width // s)] for x, s in zip(maps, self.strides, strict=True)]


def build_encoder(name: str, pretrained: bool = False) -> Encoder:
    """Build an encoder by name: a key of ``ENCODERS``, an entry point ``pri3d.encoders``, or any timm name.

    ``pretrained`` fetches the library's ImageNet weights. Raises ConfigError for an unknown name, with the closest
    ones, and WeightsError where the weights cannot be fetched.
    """
    own = registry.names("encoders", ENCODERS)
    if name in own:
        encoder: Encoder = registry.load("encoders", ENCODERS, name)(name, pretrained)
        return encoder
    if timm.is_model(name):
        return TimmEncoder(name, pretrained)
    close = difflib.get_close_matches(name, [*own, *timm.list_models()], n=5)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    raise ConfigError(f"unknown encoder {name!r}.{hint} Choices: {', '.join(own)}, or any name of timm.list_models().")


def _timm_features(name: str, pretrained: bool) -> Any:
    """Build timm's network by name with feature maps as outputs, free of a fixed image size where it can be."""
    options = FREE_SIZE.get(timm.models.model_entrypoint(name).__module__, {})
    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:
        if pretrained:
            raise _no_weights(name, error) from error
        raise ConfigError(f"encoder {name!r}: timm gives no feature maps for it ({error}); take another") from error


def _no_weights(name: str, error: Exception) -> WeightsError:
    reason = str(error).splitlines()[0]
    return WeightsError(
        f"the ImageNet weights of {name!r} cannot be fetched ({reason}). Download them where there is a network and "
        "give the file with --init PATH, or start with --init scratch"
    )

"""Image encoders behind one contract: they state their channels and strides, the decoder asks.

The ResNets are torchvision's (paper, "Architecture for Pre-training") and keep its parameter names; any other name
goes to timm. An encoder of one's own is a line in ``ENCODERS`` or an entry point ``pri3d.encoders``: a callable
``(name, pretrained) -> Encoder``. Its tests are inherited from ``tests/models/encoder_contract.py``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torchvision
from timm.models.hiera import Reroll, Unroll
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

#: timm source modules of plain ViTs, which take any image size when told so
VITS = frozenset({"timm.models.vision_transformer", "timm.models.eva", "timm.models.deit"})

#: timm source module -> what makes its networks take any image size
FREE_SIZE: dict[str, dict[str, Any]] = {
    "timm.models.swin_transformer": {"strict_img_size": False},
    "timm.models.swin_transformer_v2": {"strict_img_size": False},
}

#: timm source modules whose networks are tied to the image size they were made for (tried at 240 x 320)
ONE_SIZE = frozenset(
    f"timm.models.{name}"
    for name in (
        *("beit", "byoanet", "cait", "coat", "convit", "crossvit", "efficientformer", "efficientformer_v2", "gcvit"),
        *("levit", "maxxvit", "mlp_mixer", "mvitv2", "nest", "pit", "swin_transformer_v2_cr", "tnt", "visformer"),
        *("vision_transformer_hybrid", "vision_transformer_relpos", "vitamin", "volo"),
    )
)

LEVELS = 4  #: maps taken from a network of one scale, evenly spaced in depth


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
    """A timm network as feature maps; padded to whole strides, cropped back, always channels first."""

    def __init__(self, name: str, pretrained: bool = False) -> None:
        net = _timm_net(name, pretrained, features_only=True, **FREE_SIZE.get(_source(name), {}))
        self._take(name, net, net.feature_info.channels(), net.feature_info.reduction())
        self.channels_last = str(getattr(net, "output_fmt", "NCHW")).upper().endswith("NHWC")

    def _take(self, name: str, net: Any, channels: Sequence[int], strides: Sequence[int]) -> None:
        """Become ``net`` with the normalisation it was made for."""
        config = getattr(net, "pretrained_cfg", None) or {}
        Encoder.__init__(self, config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD))
        self.name = name
        self.net = net
        self.channels = tuple(int(c) for c in channels)
        self.strides = tuple(int(s) for s in strides)
        self.channels_last = False

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> one map per stride, see :class:`Encoder`."""
        height, width = images.shape[-2:]
        step = max(self.strides)
        maps = self.maps(F.pad(images, (0, -width % step, 0, -height % step)))
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2).contiguous() for x in maps]
        return [x[:, :, : -(-height // s), : -(-width // s)] for x, s in zip(maps, self.strides, strict=True)]

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) of whole strides -> the network's own maps, channels where it has them."""
        maps: list[Tensor] = self.net(images)
        return maps


class ViTEncoder(TimmEncoder):
    """timm's plain ViT: the patches of the last block of each quarter of its depth, all after its final norm.

    Not by timm's features_only: that leaves the final norm out, and the weights would not be the whole network's.
    """

    def __init__(self, name: str, pretrained: bool = False) -> None:
        net = _timm_net(name, pretrained, num_classes=0, dynamic_img_size=True)
        depth = len(net.blocks)
        levels = sorted({math.ceil(depth * (k + 1) / LEVELS) - 1 for k in range(LEVELS)})  # 2, 5, 8, 11 of 12
        net.prune_intermediate_layers(levels, prune_norm=False)  # drops the head: one that pools has parameters
        info = [net.feature_info[k] for k in levels]
        self._take(name, net, [i["num_chs"] for i in info], [i["reduction"] for i in info])
        self.levels = levels

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) of whole patches -> one map (B, C, h, w) per level."""
        options = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        maps: list[Tensor] = self.net.forward_intermediates(images, indices=self.levels, **options)
        return maps


class HieraEncoder(TimmEncoder):
    """timm's Hiera at any image size: its position embedding is resized, its token order made for each size.

    The network itself keeps both for one size. Where it has a window embedding beside the global one, that is tiled,
    not resized (Bolya et al., "Window Attention is Bugged", arXiv 2311.05613).
    """

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) of whole strides -> one map (B, C, h, w) per stage."""
        net = self.net.model
        size = (int(images.shape[-2]), int(images.shape[-1]))
        merges = [net.q_stride] * (len(net.stage_ends) - 1)
        x = net.patch_embed(images)
        x = x + self._position([n // s for n, s in zip(size, net.patch_stride, strict=True)])
        x = Unroll(size, net.patch_stride, merges)(x)
        reroll = Reroll(size, net.patch_stride, merges, net.stage_ends, net.q_pool)
        maps = []
        for i, block in enumerate(net.blocks):
            x = block(x)
            if i in net.stage_ends:
                maps.append(reroll(x, i).permute(0, 3, 1, 2).contiguous())
        return maps

    def _position(self, tokens: list[int]) -> Tensor:
        """Position embedding (1, h * w, C) for h x w tokens."""
        net = self.net.model
        embedding: Tensor = net.pos_embed
        if net.pos_embed_win is None:
            embedding = embedding.mT.reshape(1, -1, *net.tokens_spatial_shape)
        if list(embedding.shape[-2:]) != tokens:
            embedding = F.interpolate(embedding, size=tokens, mode="bicubic", antialias=True)
        if net.pos_embed_win is not None:
            windows = [n // m for n, m in zip(tokens, net.mask_unit_size, strict=True)]
            embedding = embedding + net.pos_embed_win.tile(windows)
        return embedding.flatten(2).transpose(1, 2)


def build_encoder(name: str, pretrained: bool = False) -> Encoder:
    """Build an encoder by name: a key of ``ENCODERS``, an entry point ``pri3d.encoders``, or any timm name.

    ``pretrained`` fetches the library's ImageNet weights. Raises ConfigError for an unknown name, with the closest
    ones, and for a network of one image size only; WeightsError where the weights cannot be fetched.
    """
    own = registry.names("encoders", ENCODERS)
    if name in own:
        encoder: Encoder = registry.load("encoders", ENCODERS, name)(name, pretrained)
        return encoder
    if timm.is_model(name):
        return _timm_class(name)(name, pretrained)
    close = difflib.get_close_matches(name, [*own, *timm.list_models()], n=5)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    raise ConfigError(f"unknown encoder {name!r}.{hint} Choices: {', '.join(own)}, or any name of timm.list_models().")


def _source(name: str) -> str:
    """Module of timm that builds ``name``."""
    return str(timm.models.model_entrypoint(name).__module__)


def _timm_class(name: str) -> type[TimmEncoder]:
    """What timm's ``name`` is wrapped in. Raises ConfigError for a network that takes one image size only."""
    source = _source(name)
    if source in ONE_SIZE:
        raise ConfigError(
            f"encoder {name!r} takes images of the one size it was made for, pri3d's have any. "
            "Take a ResNet, ConvNeXt, Swin, Hiera or plain ViT, such as vit_small_patch14_dinov2"
        )
    if source == "timm.models.hiera":
        return HieraEncoder
    return ViTEncoder if source in VITS else TimmEncoder


def _timm_net(name: str, pretrained: bool, **options: Any) -> Any:
    """Build timm's network by name. Raises WeightsError without its weights, ConfigError where timm refuses."""
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
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

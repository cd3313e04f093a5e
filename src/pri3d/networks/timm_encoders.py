"""timm's networks as encoders; the only file of the models that needs timm."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import timm
import torch
from timm.models.hiera import Reroll, Unroll
from torch import Tensor
from torch.nn import functional as F

from pri3d.errors import ConfigError
from pri3d.networks.encoders import IMAGENET_MEAN, IMAGENET_STD, Encoder, ResNetEncoder, no_weights

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

#: timm's networks of feature maps join the number of a stage to its name
JOINED = re.compile(r"^([a-z]+)[._](\d+)\.")

LEVELS = 4  #: maps taken from a network of one scale, evenly spaced in depth


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
        # Rounded up by adding: ONNX divides negative numbers to the other side. As multiples of the stride, so that
        # every later size simplifies where height and width are symbols: a Swin's graph takes a third of the time.
        bottom = (height + step - 1) // step * step - height
        right = (width + step - 1) // step * step - width
        maps = self.maps(F.pad(images, (0, right, 0, bottom)))
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2).contiguous() for x in maps]
        sizes = [((height + s - 1) // s, (width + s - 1) // s) for s in self.strides]
        return [x[:, :, :h, :w] for x, (h, w) in zip(maps, sizes, strict=True)]

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


def build_timm_encoder(name: str, pretrained: bool, others: Sequence[str]) -> TimmEncoder:
    """Build an encoder of a timm name.

    Raises ConfigError for an unknown name, with the closest ones among timm's and ``others``, and for a network of
    one image size only; WeightsError where ``pretrained`` weights cannot be fetched.
    """
    if timm.is_model(name):
        source = _source(name)
        if source in ONE_SIZE:
            raise ConfigError(
                f"encoder {name!r} takes images of the one size it was made for, pri3d's have any. "
                "Take a ResNet, ConvNeXt, Swin, Hiera or plain ViT, such as vit_small_patch14_dinov2"
            )
        if source == "timm.models.hiera":
            return HieraEncoder(name, pretrained)
        return (ViTEncoder if source in VITS else TimmEncoder)(name, pretrained)
    close = difflib.get_close_matches(name, dict.fromkeys([*others, *timm.list_models()]), n=5)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    choices = f"{', '.join(others)}, or any name of timm.list_models()"
    raise ConfigError(f"unknown encoder {name!r}.{hint} Choices: {choices}.")


def from_release(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network's original release -> timm's names and shapes for ``name``, by timm's own rules.

    Empty where timm has no rules for the network, or they do not take these tensors.
    """
    rule = getattr(import_module(_source(name)), "checkpoint_filter_fn", None)
    if rule is None:
        return {}
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
    try:
        with redirect_stdout(None):  # rules print what they miss
            return dict(rule(dict(state), net))
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError):  # what rules do with foreign tensors
        return {}


def whole_options(encoder: Encoder) -> dict[str, Any]:
    """What makes timm's whole network of an encoder take any image size, where it can."""
    return {"dynamic_img_size": True} if isinstance(encoder, ViTEncoder) else FREE_SIZE.get(_source(encoder.name), {})


def native_size(encoder: Encoder) -> tuple[int, int] | None:
    """Height and width that timm's own network of an encoder was made for, where by default it takes no other."""
    if not isinstance(encoder, TimmEncoder) or not (isinstance(encoder, HieraEncoder) or whole_options(encoder)):
        return None
    _, height, width = encoder.net.pretrained_cfg["input_size"]
    return height, width


def match_whole(encoder: Encoder, full: Mapping[str, Tensor]) -> dict[str, str]:
    """Key of an encoder -> key of timm's whole network, whose state dict is ``full``.

    Raises ConfigError where a key has no counterpart of its shape.
    """
    plain = {JOINED.sub(r"\1.\2.", key): key for key in full}
    names = {}
    for key, value in encoder.state_dict().items():
        inner = key if isinstance(encoder, ResNetEncoder) else key.removeprefix("net.").removeprefix("model.")
        name = plain.get(JOINED.sub(r"\1.\2.", inner))
        if name is None or full[name].shape != value.shape:
            raise ConfigError(f"timm has no tensor for {key} of {encoder.name}; use --to safetensors")
        names[key] = name
    return names


def map_indices(encoder: Encoder) -> list[int]:
    """Which of timm's intermediate maps the encoder's are."""
    if isinstance(encoder, ViTEncoder):
        return encoder.levels
    if isinstance(encoder, TimmEncoder):
        return list(encoder.net.feature_info.out_indices)
    return list(range(len(encoder.strides)))


def _source(name: str) -> str:
    """Module of timm that builds ``name``."""
    return str(timm.models.model_entrypoint(name).__module__)


def _timm_net(name: str, pretrained: bool, **options: Any) -> Any:
    """Build timm's network by name. Raises WeightsError without its weights, ConfigError where timm refuses."""
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:
        if pretrained:
            raise no_weights(name, error) from error
        raise ConfigError(f"encoder {name!r}: timm gives no feature maps for it ({error}); take another") from error

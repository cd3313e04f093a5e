"""Segmentation networks on any encoder: the pre-trained U-Net, PSPNet, DeepLabV3 and DeepLabV3+.

Paper, section 5.1 (2D semantic segmentation) and its table of other networks; widths, strides and rates are those of
the networks' own papers: PSPNet arXiv 1612.01105, DeepLabV3 arXiv 1706.05587, DeepLabV3+ arXiv 1802.02611.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d import registry
from pri3d.errors import ConfigError
from pri3d.networks.encoders import Encoder, ResNetEncoder
from pri3d.networks.unet import UNet

BINS = (1, 2, 3, 6)  #: cells a side of PSPNet's pooled maps
RATES = (6, 12, 18)  #: dilations of DeepLab's branches at output stride 16
DROPOUT = 0.1  #: before the classifier
ASPP_WIDTH = 256  #: channels of DeepLab's features


class SegmentationNet(nn.Module):
    """Images (B, 3, H, W) of any size, RGB 0..1 -> class scores (B, classes, H, W) float32. Normalises inside.

    ``body`` is the network up to its features: of ``unet`` the :class:`UNet` of pre-training, which takes the weights
    of one. PSPNet has an auxiliary classifier on the encoder's last map but one, of use in training alone.
    """

    def __init__(self, network: str, body: UNet | ContextNet, classes: int, auxiliary: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.body = body
        self.classifier = nn.Conv2d(body.channels, classes, kernel_size=1)
        self.auxiliary = auxiliary

    @property
    def encoder(self) -> Encoder:
        """The backbone."""
        return self.body.encoder

    def forward(self, images: Tensor, every: bool = False) -> Tensor | list[Tensor]:
        """RGB 0..1 (B, 3, H, W) -> scores (B, classes, H, W); with ``every`` a list.

        The list has the auxiliary scores after the main ones while training.
        Raises ConfigError for a single image in training where a batch norm follows the pooling to one cell.
        """
        norms = (m for m in self.body.decoder.modules() if isinstance(m, nn.BatchNorm2d))  # synchronised ones are not
        if self.training and len(images) < 2 and self.network in CONTEXT and any(m.training for m in norms):
            raise ConfigError(
                f"{self.network} cannot train on {len(images)} image at a time: a batch norm follows its pooling to "
                "one cell. Raise --micro-batch to 2 or more, or take --network unet."
            )
        features, maps = self.body.forward_maps(images)
        scores = [_enlarge(self.classifier(features), images)]
        if every and self.training and self.auxiliary is not None:
            scores.append(_enlarge(self.auxiliary(maps[-2:][0]), images))
        return scores if every else scores[0]


class ContextNet(nn.Module):
    """An encoder and a head that looks at its maps: images -> features (B, channels, h, w) of the head's stride."""

    def __init__(self, encoder: Encoder, decoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.channels = channels

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """RGB 0..1 (B, 3, H, W) -> (features, the encoder's maps as :class:`Encoder`)."""
        maps = self.encoder(self.encoder.normalise(images))
        features: Tensor = self.decoder(maps)
        return features, maps


class PyramidHead(nn.Module):
    """PSPNet's: the last map beside its means over 1, 4, 9 and 36 regions, merged to a quarter of its channels."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        width = encoder.channels[-1]
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), *_conv_bn(width, width // len(BINS), 1)) for bins in BINS
        )
        joined = width + len(BINS) * (width // len(BINS))
        self.merge = nn.Sequential(*_conv_bn(joined, width // 4, 3), nn.Dropout2d(DROPOUT))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Encoder's maps, finest first -> (B, channels / 4, h, w) of the last map's size."""
        last = maps[-1]
        pooled = [_resize(branch(last), last) for branch in self.branches]
        features: Tensor = self.merge(torch.cat([last, *pooled], dim=1))
        return features


class DeepLabPlusHead(nn.Module):
    """DeepLabV3+'s: dilated branches on the last map, enlarged and joined with the first map of stride 4 or more."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.fine = next((k for k, stride in enumerate(encoder.strides) if stride >= 4), len(encoder.strides) - 1)
        last, fine = encoder.channels[-1], encoder.channels[self.fine]
        self.parts = DeepLabV3PlusDecoder(
            encoder_channels=(last, last, fine, last),  # it reads the third and the last
            encoder_depth=5,
            out_channels=ASPP_WIDTH,
            atrous_rates=RATES,
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=DROPOUT,
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Encoder's maps, finest first -> (B, 256, h, w) of the fine map's size."""
        # Not by the decoder's own forward: it enlarges by 4 sharp, which misses a fine map of odd size.
        fine = self.parts.block1(maps[self.fine])
        features: Tensor = self.parts.block2(torch.cat([_resize(self.parts.aspp(maps[-1]), fine), fine], dim=1))
        return features


class _Recipe(NamedTuple):
    """How a network is put on an encoder."""

    stride: int  #: of the last map, where the encoder is a ResNet
    build: Callable[[Encoder], tuple[nn.Module, int]]  #: encoder -> head, its channels
    auxiliary: bool = False


CONTEXT = {
    "pspnet": _Recipe(8, lambda encoder: (PyramidHead(encoder), encoder.channels[-1] // 4), auxiliary=True),
    "deeplabv3": _Recipe(
        16,
        lambda encoder: (
            DeepLabV3Decoder(
                encoder.channels[-1], ASPP_WIDTH, atrous_rates=RATES, aspp_separable=False, aspp_dropout=DROPOUT
            ),
            ASPP_WIDTH,
        ),
    ),
    "deeplabv3plus": _Recipe(16, lambda encoder: (DeepLabPlusHead(encoder), ASPP_WIDTH)),
}
NETWORKS = ("unet", *CONTEXT)


def build_segmentation(
    network: str, encoder: Encoder, classes: int, decoder: str = "paper", channels: int | Literal["auto"] = 32
) -> SegmentationNet:
    """Put a segmentation network of ``classes`` classes on an encoder, which becomes part of it.

    ``unet`` takes ``decoder`` and ``channels`` as :class:`UNet`; the others have their own head. PSPNet wants an
    output stride of 8, the DeepLabs of 16: a ResNet is dilated to it in place (:func:`dilate`), other encoders (ViT,
    ConvNeXt) keep the strides they have. Raises ConfigError for an unknown network or decoder.
    """
    if network == "unet":
        return SegmentationNet(network, UNet(encoder, decoder, channels), classes)
    if network not in CONTEXT:
        raise registry.unknown("network", NETWORKS, network)
    recipe = CONTEXT[network]
    if isinstance(encoder, ResNetEncoder):
        dilate(encoder, recipe.stride)
    auxiliary = None
    if recipe.auxiliary:
        width = encoder.channels[-2:][0]
        head = (*_conv_bn(width, width // 4, 3), nn.Dropout2d(DROPOUT))
        auxiliary = nn.Sequential(*head, nn.Conv2d(width // 4, classes, 1))
    return SegmentationNet(network, ContextNet(encoder, *recipe.build(encoder)), classes, auxiliary)


def dilate(encoder: ResNetEncoder, stride: int) -> None:
    """Give a ResNet's last map an output stride of 8 or 16, in place: later strides become dilations.

    Parameters stay as they are, and every cell of the undilated network keeps its value at the cell of the finer map
    it lies on. So the convolution that loses its stride keeps the dilation before it, as in torchvision's
    ``replace_stride_with_dilation``; those after it are dilated. Raises ConfigError for another stride, and for an
    encoder that is dilated already.
    """
    if stride not in {8, 16}:
        raise ConfigError(f"an output stride of {stride}: a ResNet can be dilated to 8 or 16.")
    if encoder.strides != ResNetEncoder.strides:
        raise ConfigError(f"{encoder.name} is dilated already, to strides {encoder.strides}: build a fresh one.")
    dilation = 1
    for layer, own in ((encoder.layer3, 16), (encoder.layer4, 32)):
        if own > stride:
            before, dilation = dilation, 2 * dilation
            for conv in layer.modules():
                if isinstance(conv, nn.Conv2d):
                    reach = before if conv.stride == (2, 2) else dilation
                    conv.stride = (1, 1)
                    if conv.kernel_size == (3, 3):
                        conv.dilation = conv.padding = (reach, reach)
    encoder.strides = (2, 4, 8, min(16, stride), stride)


def _conv_bn(inputs: int, outputs: int, size: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _enlarge(scores: Tensor, images: Tensor) -> Tensor:
    """Scores (B, K, h, w) -> float32 of the images' size."""
    return _resize(scores.float(), images)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)

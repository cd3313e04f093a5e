"""pri3d's own names: for pri3d.load and for any reader of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from pri3d import __version__
from pri3d.exporting.base import PARTS, ExportFormat, maps_of
from pri3d.networks.load import FeatureNet, load
from pri3d.networks.weights import save_state

SNIPPET = """\
import pri3d
net = pri3d.load({path!r})
# outputs = net(images), images RGB 0..1 (B, 3, H, W) -> {outputs}"""


class SafetensorsFormat(ExportFormat):
    """Encoder or U-Net as a state dict whose header holds the record."""

    file = "{part}.safetensors"
    parts: ClassVar[tuple[str, ...]] = PARTS

    @property
    def reader(self) -> str:
        """pri3d, by the version of the code and not of what was installed at some time."""
        return f"pri3d {__version__}"

    @property
    def normalised_inside(self) -> bool:
        """The network takes RGB 0..1."""
        return True

    def write(self, source: FeatureNet, path: Path) -> None:
        """Write the state dict and the record."""
        save_state(source.net.state_dict(), path, self.record)

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Outputs of what :func:`pri3d.load` makes of the file."""
        return maps_of(load(path)(images))

    def snippet(self, path: Path) -> str:
        """Load the file."""
        return SNIPPET.format(path=str(path), outputs=self.outputs)

"""segmentation-models-pytorch: its own ResNets, and networks of timm under ``tu-NAME``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import segmentation_models_pytorch as smp
from safetensors.torch import load_file
from torch import Tensor

from pri3d.errors import WeightsError
from pri3d.exporting.base import ExportFormat, Probe
from pri3d.networks.encoders import ResNetEncoder
from pri3d.networks.load import FeatureNet
from pri3d.networks.timm_encoders import TimmEncoder, ViTEncoder, native_size
from pri3d.networks.weights import save_state

SNIPPET = """\
import segmentation_models_pytorch as smp
from safetensors.torch import load_file
net = smp.Unet({name!r}, encoder_weights=None, classes=20)
net.encoder.load_state_dict(load_file({path!r}))  # raises where a tensor is missing or left over
# input: RGB 0..1, then torchvision.transforms.v2.Normalize({mean}, {std})"""

#: strides of the maps that smp's wrapper of timm takes
PYRAMIDS = {(2, 4, 8, 16, 32), (4, 8, 16, 32)}


class SmpFormat(ExportFormat):
    """The encoder of smp's networks."""

    file = "encoder_smp.safetensors"
    consumer = "segmentation-models-pytorch"

    def __init__(self, source: FeatureNet, to: str) -> None:
        super().__init__(source, to)
        encoder = source.encoder
        self.own = isinstance(encoder, ResNetEncoder)
        pyramid = isinstance(encoder, TimmEncoder) and not isinstance(encoder, ViTEncoder) and self.strides in PYRAMIDS
        if not self.own and not pyramid:
            raise self.refuse("ResNets and timm's networks whose maps have strides 4 to 32")
        self.size = native_size(encoder) or (64, 96)
        self.name = self.name if self.own else f"tu-{self.name}"

    def probes(self) -> Sequence[Probe]:
        """The one size that smp's network takes, where it takes one."""
        return [(2, *self.size)]

    def write(self, source: FeatureNet, path: Path) -> None:
        """Write the encoder under smp's names."""
        state = source.encoder.state_dict()
        if not self.own:
            state = {f"model.{key.removeprefix('net.')}": value for key, value in state.items()}
        save_state(state, path, self.record)

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Maps of smp's encoder; raises WeightsError where a tensor did not arrive."""
        encoder = smp.encoders.get_encoder(self.name, weights=None)
        state = load_file(path)
        try:
            encoder.load_state_dict(dict(state))  # a copy: it takes keys out of what it is given
        except RuntimeError as error:
            raise WeightsError(f"smp does not take the file: {error}") from error
        maps: list[Tensor] = encoder.eval()(self.normalise(images))
        return maps[-len(self.strides) :]  # the image comes first, and an empty map where there is none of stride 2

    def snippet(self, path: Path) -> str:
        """Build a U-Net of smp's and load the file into its encoder."""
        return SNIPPET.format(name=self.name, path=str(path), mean=self.mean, std=self.std)

"""torchvision's names: its ResNets have them already, timm's ConvNeXt is renamed to torchvision's."""

from __future__ import annotations

from pathlib import Path

import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from pri3d.exporting._shared import resnet_maps
from pri3d.exporting.base import ExportFormat, fill
from pri3d.networks.encoders import ResNetEncoder
from pri3d.networks.load import FeatureNet
from pri3d.networks.naming import to_torchvision_convnext
from pri3d.networks.weights import save_state

SNIPPET = """\
import torchvision
from safetensors.torch import load_file
net = torchvision.models.{name}()
print(net.load_state_dict(load_file({path!r}), strict=False))  # missing: {missing} and nothing else
# input: RGB 0..1, then torchvision.transforms.v2.Normalize({mean}, {std})"""

CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")


class TorchvisionFormat(ExportFormat):
    """The encoder of a ResNet or of a ConvNeXt that torchvision has too."""

    file = "encoder_torchvision.safetensors"
    consumer = "torchvision"

    def __init__(self, source: FeatureNet, to: str) -> None:
        super().__init__(source, to)
        if not isinstance(source.encoder, ResNetEncoder) and base_name(self.name) not in CONVNEXTS:
            raise self.refuse(f"ResNets and {', '.join(CONVNEXTS)}")
        self.name = base_name(self.name)
        self.head = "fc." if isinstance(source.encoder, ResNetEncoder) else "classifier."

    def write(self, source: FeatureNet, path: Path) -> None:
        """Write the encoder under torchvision's names."""
        state = source.encoder.state_dict()
        save_state(state if self.head == "fc." else to_torchvision_convnext(state), path, self.record)

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Maps of torchvision's own network, stage by stage."""
        net = torchvision.models.get_model(self.name, weights=None)
        fill(net, load_file(path), "torchvision", [self.head])
        return (
            resnet_maps(net, self.normalise(images))
            if self.head == "fc."
            else _convnext_maps(net, self.normalise(images))
        )

    def snippet(self, path: Path) -> str:
        """Build torchvision's network and load the file."""
        missing = "fc.weight, fc.bias" if self.head == "fc." else "those of classifier"
        return SNIPPET.format(name=self.name, path=str(path), missing=missing, mean=self.mean, std=self.std)


def base_name(name: str) -> str:
    """Name of an encoder without timm's tag of the weights: convnext_tiny.fb_in1k -> convnext_tiny."""
    return name.partition(".")[0]


def _convnext_maps(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Normalised images (B, 3, H, W) -> four maps of torchvision's ConvNeXt: stages stand at odd places."""
    maps, x = [], images
    for number, part in enumerate(dict(net.named_children())["features"].children()):
        x = part(x)
        if number % 2:
            maps.append(x)
    return maps

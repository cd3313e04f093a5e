"""torchvision's names: its ResNets have them already, timm's ConvNeXt is renamed to torchvision's."""

from __future__ import annotations

import re
from pathlib import Path

import torchvision
from safetensors.torch import load_file
from torch import Tensor

from pri3d.exporting._shared import resnet_maps
from pri3d.exporting.base import ExportFormat, fill
from pri3d.networks.encoders import ResNetEncoder
from pri3d.networks.load import FeatureNet
from pri3d.networks.naming import CONVNEXT_BLOCK
from pri3d.networks.weights import save_state

SNIPPET = """\
import torchvision
from safetensors.torch import load_file
net = torchvision.models.{name}()
print(net.load_state_dict(load_file({path!r}), strict=False))  # missing: {missing} and nothing else
# input: RGB 0..1, then torchvision.transforms.v2.Normalize({mean}, {std})"""

#: names in timm's ConvNeXt
CONVNEXT = re.compile(
    r"(?:net\.)?(?:stem[._](?P<stem>[01])|stages[._](?P<stage>[0-3])\.(?:downsample\.(?P<down>[01])"
    r"|blocks\.(?P<block>\d+)(?:\.(?P<part>[\w.]+))?))\.(?P<leaf>weight|bias|gamma)"
)
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
        if self.head == "fc.":
            save_state(state, path, self.record)
            return
        renamed = {}
        for key, value in state.items():
            m = CONVNEXT.fullmatch(key)
            if m is None:
                raise KeyError(key)
            if m["stem"]:
                name = f"features.0.{m['stem']}.{m['leaf']}"
            elif m["down"]:
                name = f"features.{2 * int(m['stage'])}.{m['down']}.{m['leaf']}"
            else:
                part = "layer_scale" if m["leaf"] == "gamma" else f"{CONVNEXT_BLOCK[m['part']]}.{m['leaf']}"
                name = f"features.{2 * int(m['stage']) + 1}.{m['block']}.{part}"
            renamed[name] = value.view(-1, 1, 1) if m["leaf"] == "gamma" else value
        save_state(renamed, path, self.record)

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Maps of torchvision's own network, stage by stage."""
        net = torchvision.models.get_model(self.name, weights=None)
        fill(net, load_file(path), "torchvision", [self.head])
        x = self.normalise(images)
        if self.head == "fc.":
            return resnet_maps(net, x)
        maps = []
        for number, part in enumerate(dict(net.named_children())["features"].children()):
            x = part(x)
            if number % 2:  # the stages of torchvision's ConvNeXt stand at odd places
                maps.append(x)
        return maps

    def snippet(self, path: Path) -> str:
        """Build torchvision's network and load the file."""
        missing = "fc.weight, fc.bias" if self.head == "fc." else "those of classifier"
        return SNIPPET.format(name=self.name, path=str(path), missing=missing, mean=self.mean, std=self.std)


def base_name(name: str) -> str:
    """Name of an encoder without timm's tag of the weights: convnext_tiny.fb_in1k -> convnext_tiny."""
    return name.partition(".")[0]

"""Small runs of each kind of network, and what each library makes of an export."""

from __future__ import annotations

import torch
import torchvision.transforms.v2
from torch import nn

from pri3d.exporting.base import maps_of
from pri3d.networks.encoders import Encoder
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import save_model

IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(7))


class TinyEncoder(Encoder):
    """Two convolutions: maps of stride 2 and 4, for formats that are slow to write."""

    channels, strides = (4, 8), (2, 4)

    def __init__(self, name, pretrained=False):
        super().__init__()
        self.name = name
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def forward(self, images):
        fine = self.first(images)
        return [fine, self.second(fine)]


def make_run(folder, name, **record):
    """Write a run whose batch norms are away from their start; return its folder."""
    torch.manual_seed(0)
    unet = build_unet(name, "slim", 8)
    unet(torch.rand(2, 3, 64, 64))
    save_model(unet, folder / "weights.safetensors", {"preset": "view", "steps": 5, "data_hash": "abc", **record})
    return folder


def run_snippet(printed):
    """Execute what `export` printed after its first paragraph; return ``net`` and the text."""
    snippet = printed.split("\n\n", 1)[1]
    names = {}
    exec(snippet, names)
    return names["net"], snippet


@torch.no_grad()
def last_map(to, net, images, encoder):
    """Mean of the last map (B, C) by what the target library calls its features."""
    if to in ("safetensors", "torchscript"):
        return maps_of(net(images))[-1].mean((2, 3))
    if to == "onnx":
        return torch.from_numpy(net.run(None, {"images": images.numpy()})[-1]).mean((2, 3))
    x = torchvision.transforms.v2.functional.normalize(
        images, encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()
    )
    net.eval()
    if to == "smp":
        return net.encoder(x)[-1].mean((2, 3))
    if to in ("timm", "hf"):
        y = net.forward_features(x)
        return y[:, 1:].mean(1) if y.ndim == 3 else y.mean((2, 3))  # a ViT's first token is no patch
    if hasattr(net, "features"):
        return net.features(x).mean((2, 3))
    net.fc = torch.nn.Identity()
    return net(x)

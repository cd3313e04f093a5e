"""A backbone of a moment, images to embed, and what their features must be."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pri3d.networks.encoders import Encoder
from pri3d.networks.unet import UNet, build_unet
from pri3d.networks.weights import load_model, save_model
from pri3d.registry import ENCODERS

FLAGS: dict[str, Any] = {"precision": "fp32", "batch": 2, "workers": 2}
SIZES = [(64, 48), (48, 64), (64, 48), (33, 50), (64, 48), (48, 64), (64, 48)]  # width, height


class Tiny(Encoder):
    """Three convolutions."""

    name, channels, strides = "tiny", (4, 6, 10), (2, 4, 8)

    def __init__(self, name: str, pretrained: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise((3, *self.channels)))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]).relu())
        return maps[1:]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "tiny", "tiny_backbone:Tiny")


@pytest.fixture
def weights(tmp_path: Path, tiny: None) -> Path:
    torch.manual_seed(0)
    save_model(build_unet("tiny", "slim", 8), tmp_path / "run" / "weights.safetensors", {})
    return tmp_path / "run"


@pytest.fixture
def unet(weights: Path) -> UNet:
    return load_model(weights)[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven images of three sizes, some in a subfolder."""
    return photos(tmp_path / "in", [("sub/" if k % 3 == 2 else "") + f"{k}.png" for k in range(7)], SIZES)


def photos(folder: Path, names: list[str], sizes: list[tuple[int, int]]) -> Path:
    """Images of noise over a shade of their own."""
    rng = np.random.default_rng(0)
    for k, (name, (width, height)) in enumerate(zip(names, sizes, strict=True)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (height, width, 3)) + 20 * (k % 7)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    return folder


@torch.no_grad()
def alone(unet: UNet, image: NDArray[np.uint8], level: int | str = -1) -> NDArray[np.float32]:
    """Map (h, w, C) of one image by the network itself."""
    x = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    found = unet(x) if level == "features" else unet.encoder(unet.encoder.normalise(x))[level]
    return found[0].permute(1, 2, 0).numpy()


def listed(source: Path) -> dict[str, Path]:
    """Name -> image, in order."""
    return {str(p.relative_to(source).with_suffix("")): p for p in sorted(source.rglob("*.png"))}


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def near(found: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

"""What ``pri3d probe`` looks at: the networks, opened alike, and their features on one grid."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.networks.encoders import Encoder, enlarge, join_maps
from pri3d.networks.load import HUB_NAME, STARTS, FeatureNet, Part, WeightsSource
from pri3d.runs import RunPaths

Kind = Literal["unet", "encoder"]

_FILES = (".safetensors", ".pth", ".pt", ".pkl", ".tar", ".bin", ".ckpt")


class Dense(nn.Module):
    """RGB 0..1 (B, 3, H, W) -> one feature a cell of half the image, whatever the network.

    A U-Net's map is taken as it is, of an encoder all maps by :func:`pri3d.networks.encoders.join_maps`.
    """

    def __init__(self, net: FeatureNet) -> None:
        super().__init__()
        self.net = net
        self.strides = net.strides

    @property
    def about(self) -> str:
        """Which features: the U-Net's or the encoder's, and their channels."""
        kind = "encoder" if isinstance(self.net.net, Encoder) else "U-Net"
        return f"{kind} {self.net.encoder.name}, {'+'.join(map(str, self.net.channels))} channels"

    def maps(self, images: Tensor) -> list[Tensor]:
        """RGB 0..1 (B, 3, H, W) -> maps (B, C, h, w) at their own strides, float32: of a U-Net one."""
        found = self.net(images)
        return [x.float() for x in (found if isinstance(found, list) else [found])]

    def forward(self, images: Tensor) -> Tensor:
        """RGB 0..1 (B, 3, H, W) -> features (B, C, ceil(H / 2), ceil(W / 2)) float32."""
        half = ((images.shape[-2] + 1) // 2, (images.shape[-1] + 1) // 2)
        maps = self.maps(images)
        if len(maps) == 1:
            return enlarge(maps[0], self.strides[0] / 2, half)
        return join_maps(maps, self.strides, half)


def name_sources(weights: list[Path]) -> dict[str, Path]:
    """Name in the tables -> source; a run folder gives its network before and after training.

    Raises DataError for a file that does not exist, ConfigError for none at all.
    """
    if not weights:
        raise ConfigError("--weights: name at least one run, weights file, or scratch, imagenet, timm:NAME.")
    sources: dict[str, Path] = {}
    for path in weights:
        check_source(path)
        name = str(path) if [other.name for other in weights].count(path.name) > 1 else path.name
        before = RunPaths(path).initial
        if path.is_dir() and before.is_file():
            sources[f"{name} before"] = before
            sources[f"{name} after"] = path
        else:
            sources[name] = path
    return sources


def check_source(path: Path) -> None:
    """Raise DataError where ``path`` is no file, folder, start or possible name on the hub."""
    text = path.as_posix()  # names have slashes on every system
    on_hub = path.suffix not in _FILES and HUB_NAME.fullmatch(text)
    if not (path.exists() or text in STARTS or text.startswith("timm:") or on_hub):
        raise DataError(
            f"{path}: no such run or weights file. Give one, a name on the hub (user/name), or one of "
            f"{', '.join(STARTS)}, timm:NAME."
        )


def open_dense(source: Path, features: Kind = "unet", encoder: str = "resnet18", seed: int = 0) -> Dense:
    """Open a network on the GPU where there is one, in eval mode.

    Args:
        source: run folder, weights file, export, name on the hub; ``scratch``, ``imagenet`` or ``timm:NAME``.
        features: ``unet`` the U-Net's where there is one, else the encoder's; ``encoder`` the encoder's always.
        encoder: what ``scratch``, ``imagenet`` and files that do not say it are made for.
        seed: of random weights.

    Raises:
        ConfigError, WeightsError: there is no such network, or its weights do not fit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    opened = WeightsSource(source)
    part: Part | None = "all" if features == "unet" and opened.holds_unet else "encoder"
    net = opened.features(part, encoder=encoder, seed=seed)
    return Dense(net).eval().requires_grad_(False).to(device)


def check_finite(features: Tensor, name: str) -> None:
    """Raise WeightsError where a network gives features that are no numbers."""
    if not bool(torch.isfinite(features).all()):
        raise WeightsError(f"{name}: its features are not finite. The weights are damaged, or training diverged.")

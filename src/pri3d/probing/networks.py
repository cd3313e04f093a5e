"""Networks of ``pri3d probe``: opened in the same way, with their features on one grid."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.networks.load import HUB_NAME, STARTS, Dense, Kind, WeightsSource
from pri3d.runs import RunPaths

_FILES = (".safetensors", ".pth", ".pt", ".pkl", ".tar", ".bin", ".ckpt")


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
    return WeightsSource(source).dense(features, encoder, seed).to(device)


def check_finite(features: Tensor, name: str) -> None:
    """Raise WeightsError where a network gives features that are no numbers."""
    if not bool(torch.isfinite(features).all()):
        raise WeightsError(f"{name}: its features are not finite. The weights are damaged, or training diverged.")

"""Turn a run's weights into a file other programs load, and prove it before saying so."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from pri3d.errors import ConfigError, WeightsError
from pri3d.models.encoders import Encoder, ResNetEncoder, build_encoder
from pri3d.models.unet import UNet
from pri3d.models.weights import MODEL_FILE, load_model, save_state

#: largest difference between the run's features and those of the reloaded file
TOLERANCE = 1e-5

TORCHVISION_SNIPPET = """\
import torchvision
from safetensors.torch import load_file
net = torchvision.models.{name}()
print(net.load_state_dict(load_file({path!r}), strict=False))  # missing: fc.weight, fc.bias and nothing else
# input: RGB 0..1, then torchvision.transforms.v2.Normalize({mean}, {std})"""

ENCODER_SNIPPET = """\
from safetensors.torch import load_file
from pri3d.models.encoders import build_encoder
net = build_encoder({name!r})
print(net.load_state_dict(load_file({path!r})))
# maps = net(net.normalise(images)), images RGB 0..1 (B, 3, H, W)"""

MODEL_SNIPPET = """\
from pathlib import Path
from pri3d.models.weights import load_model
net, record = load_model(Path({path!r}))
# features = net(images), images RGB 0..1 (B, 3, H, W)"""


def export(
    run: Path,
    to: Literal["torchvision", "safetensors"] = "torchvision",
    out: Path | None = None,
    part: Literal["encoder", "all"] = "encoder",
) -> Path:
    """Write a run's weights for use elsewhere, compare the reloaded file with the run's network, print how to load it.

    ``run`` is a run folder or its weights file. ``torchvision`` writes the encoder under torchvision's names (ResNets
    only); ``safetensors`` writes the encoder of any network, or with ``part="all"`` the whole U-Net, under pri3d's own
    names. The header keeps the run's record (encoder, preset, steps, init, data hash, version). ``out`` defaults to
    ``encoder_torchvision.safetensors``, ``encoder.safetensors`` or ``model.safetensors`` beside it.
    Returns the file.

    Raises ConfigError for a combination that does not exist, WeightsError for a damaged run, or where the reloaded
    features differ from the run's by more than 1e-5; then nothing is left at ``out``.
    """
    unet, record = load_model(run)
    _check(unet.encoder, to, part)
    folder = run if run.is_dir() else run.parent
    names = {"torchvision": "encoder_torchvision", "safetensors": "encoder" if part == "encoder" else "model"}
    out = out or folder / f"{names[to]}.safetensors"
    if out.resolve() == (run / MODEL_FILE if run.is_dir() else run).resolve():
        raise ConfigError(f"--out {out} is the run's own file: choose another name")
    probe = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    temporary = out.with_name(f".{out.name}.unchecked.safetensors")
    save_state((unet if part == "all" else unet.encoder).state_dict(), temporary, {**record, "part": part})
    try:
        difference = _difference(unet, temporary, to, part, probe)
        if not difference <= TOLERANCE:
            raise WeightsError(f"{out}: the reloaded features differ from the run's by {difference:.1e}; not written")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    snippet = _snippet(to, part).format(**_facts(unet.encoder, out))
    sys.stdout.write(f"{out}: checked, largest difference to the run's features {difference:.1e}\n\n{snippet}\n")
    return out


def _check(encoder: Encoder, to: str, part: str) -> None:
    """Refuse what cannot be written, naming what can."""
    if to not in ("torchvision", "safetensors"):
        raise ConfigError(f"unknown --to {to!r}. Choices: torchvision, safetensors.")
    if part not in ("encoder", "all"):
        raise ConfigError(f"unknown --part {part!r}. Choices: encoder, all.")
    if to == "torchvision" and not isinstance(encoder, ResNetEncoder):
        raise ConfigError(f"--to torchvision: torchvision has no {encoder.name} of these names; use --to safetensors")
    if to == "torchvision" and part == "all":
        raise ConfigError("--to torchvision --part all: torchvision knows no decoder; use --to safetensors")


@torch.no_grad()
def _difference(unet: UNet, path: Path, to: str, part: str, probe: Tensor) -> float:
    """Largest absolute difference on a probe image (B, 3, H, W) between the run's network and the reloaded file."""
    if part == "all":
        reloaded, _ = load_model(path)
        return float((unet(probe) - reloaded(probe)).abs().max())
    images = unet.encoder.normalise(probe)
    expected = unet.encoder(images)
    state = load_file(path)
    if to == "torchvision":
        return float((expected[-1] - _torchvision_features(unet.encoder.name, state, images)).abs().max())
    encoder = build_encoder(unet.encoder.name).eval()
    encoder.load_state_dict(state)
    return max(float((a - b).abs().max()) for a, b in zip(expected, encoder(images), strict=True))


def _torchvision_features(name: str, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Last map of torchvision's own network with ``state``; raises WeightsError unless only fc is missing."""
    net = torchvision.models.get_model(name, weights=None)
    left = net.load_state_dict(state, strict=False)
    if left.unexpected_keys or set(left.missing_keys) != {"fc.weight", "fc.bias"}:
        raise WeightsError(f"torchvision's {name} does not take the file: {left}")
    body = nn.Sequential(*list(net.children())[:-2])  # without pooling and classifier
    features: Tensor = body.eval()(images)
    return features


def _snippet(to: str, part: str) -> str:
    if to == "torchvision":
        return TORCHVISION_SNIPPET
    return MODEL_SNIPPET if part == "all" else ENCODER_SNIPPET


def _facts(encoder: Encoder, out: Path) -> dict[str, Any]:
    mean, std = ([round(v, 4) for v in x.flatten().tolist()] for x in (encoder.mean, encoder.std))
    return {"name": encoder.name, "path": str(out), "mean": mean, "std": std}

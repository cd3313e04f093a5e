"""How Detectron2 and MMEngine read a checkpoint, if they are not installed: their documented rules.

Written from their sources, apart from what writes the files: neither shares a table of names with the other, so that a
wrong belief of the writer shows. Both load what they find by name and keep random values elsewhere without an error:
here whatever is left over is NaN, and so is every map that depends on it.

Detectron2 (checkpoint/detection_checkpoint.py, c2_model_loading.py, fvcore's checkpoint.py, config/defaults.py,
modeling/backbone/resnet.py, layers/batch_norm.py); MMEngine (runner/checkpoint.py, model/weight_init.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.errors import WeightsError
from pri3d.networks.resnet import SIZES

#: what Detectron2 takes where a configuration says nothing
DEFAULTS: dict[str, Any] = {
    "INPUT": {"FORMAT": "BGR"},
    "MODEL": {
        "PIXEL_MEAN": [103.53, 116.28, 123.675],
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "RESNETS": {"DEPTH": 50, "STRIDE_IN_1X1": True, "RES2_OUT_CHANNELS": 256},
    },
}


class FrozenNorm(nn.Module):
    """Batch norm of fixed statistics: four buffers and no counter."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.full((channels,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        """Map -> map of the same shape."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(-1, 1, 1) + (self.bias - self.running_mean * scale).view(-1, 1, 1)


class ConvNorm(nn.Conv2d):
    """A convolution with its norm inside, under the name ``norm``."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int) -> None:
        super().__init__(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.weight.data.fill_(torch.nan)
        self.norm = FrozenNorm(outputs)

    def forward(self, input: Tensor) -> Tensor:
        """Map -> map."""
        return self.norm(super().forward(input))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A basic block of two convolutions, or with ``width`` a bottleneck of three."""

    def __init__(self, inputs: int, outputs: int, stride: int, width: int | None, stride_in_1x1: bool) -> None:
        super().__init__()
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if inputs != outputs else None
        if width is None:
            self.conv1 = ConvNorm(inputs, outputs, 3, stride)
            self.conv2 = ConvNorm(outputs, outputs, 3, 1)
            self.conv3 = None
        else:
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            self.conv1 = ConvNorm(inputs, width, 1, first)
            self.conv2 = ConvNorm(width, width, 3, second)
            self.conv3 = ConvNorm(width, outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map -> map."""
        y = self.conv2(F.relu(self.conv1(x)))
        if self.conv3 is not None:
            y = self.conv3(F.relu(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Trunk(nn.Module):
    """Detectron2's ResNet of a configuration: ``stem``, ``res2`` to ``res5``."""

    def __init__(self, depth: int, outputs: int, stride_in_1x1: bool) -> None:
        super().__init__()
        _, counts = SIZES[f"resnet{depth}"]
        width = 64 if depth >= 50 else None
        self.stem = nn.Module()
        self.stem.conv1 = ConvNorm(3, 64, 7, 2)
        inputs = 64
        for stage, count in enumerate(counts, start=2):
            blocks = []
            for k in range(count):
                blocks.append(Block(inputs, outputs, 2 if k == 0 and stage > 2 else 1, width, stride_in_1x1))
                inputs = outputs
            self.add_module(f"res{stage}", nn.Sequential(*blocks))
            outputs, width = 2 * outputs, width and 2 * width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> maps of stride 4 to 32."""
        x = F.max_pool2d(F.relu(self.stem.conv1(x)), 3, 2, 1)  # type: ignore[operator]
        maps = []
        for stage in range(2, 6):
            x = self.get_submodule(f"res{stage}")(x)
            maps.append(x)
        return maps


def detectron2_maps(path: Path, config: Path, images: Tensor) -> list[Tensor]:
    """RGB 0..1 (B, 3, H, W) -> maps res2 to res5 of a detector's trunk that begins with the file and configuration.

    Raises WeightsError, naming the tensors, where any of the trunk would keep its random values.
    """
    given = yaml.safe_load(config.read_text(encoding="utf-8"))
    merged = {key: {**DEFAULTS[key], **given.get(key, {})} for key in DEFAULTS}
    resnets = {**DEFAULTS["MODEL"]["RESNETS"], **merged["MODEL"]["RESNETS"]}
    trunk = Trunk(resnets["DEPTH"], resnets["RES2_OUT_CHANNELS"], resnets["STRIDE_IN_1X1"])
    detector = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": trunk})})  # below an FPN
    taken = read_by_detectron2(path, detector.state_dict())
    _check_all({key: value.shape for key, value in detector.state_dict().items()}, taken, f"Detectron2 ({path})")
    detector.load_state_dict(taken)
    pixels = 255 * (images if merged["INPUT"]["FORMAT"] == "RGB" else images.flip(1))
    mean, std = (torch.tensor(merged["MODEL"][key]).view(3, 1, 1) for key in ("PIXEL_MEAN", "PIXEL_STD"))
    maps: list[Tensor] = trunk.eval()((pixels - mean) / std)
    return maps


def read_by_detectron2(path: Path, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What Detectron2's checkpointer gives to a model whose state dict is ``model``; the model keeps the rest.

    A ``.pth`` is taken by exact names; by the ends of names, the longest that fits, only if it says so.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    content = content if "model" in content else {"model": content}
    given: Mapping[str, Tensor] = content["model"]
    source = {key: key for key in model if key in given}
    if content.get("matching_heuristics", False):
        ends = {key: [name for name in given if key == name or key.endswith(f".{name}")] for key in model}
        source = {key: max(names, key=len) for key, names in ends.items() if names}
        if len(set(source.values())) < len(source):
            raise WeightsError(f"Detectron2 refuses {path}: one of its tensors fits several of the model")
    return {key: given[name] for key, name in source.items() if given[name].shape == model[key].shape}


def mmengine_state(path: Path, wanted: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """What ``init_cfg=dict(type="Pretrained")`` gives to a backbone with tensors of the names and shapes ``wanted``.

    The entry ``state_dict`` of the file, if it has one, by exact names after a leading ``module.``; counters may be
    absent. Raises WeightsError, naming the tensors, where any would keep its random values.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    given = {key.removeprefix("module."): value for key, value in content.get("state_dict", content).items()}
    taken = {key: given[key] for key, shape in wanted.items() if key in given and given[key].shape == shape}
    _check_all(wanted, taken, f"MMEngine ({path})")
    return taken


def _check_all(wanted: Mapping[str, torch.Size], taken: Mapping[str, Tensor], what: str) -> None:
    """Raises WeightsError unless all tensors but counters are taken."""
    left = [key for key in wanted if key not in taken and not key.endswith("num_batches_tracked")]
    if left:
        raise WeightsError(
            f"{what} would keep random values in {len(left)} of {len(wanted)} tensors: {', '.join(left[:5])}"
        )

"""Detectron2 and MMSegmentation: weights under their names, and the part of a configuration that must go with them.

Both take ResNets. Neither is on the package index, so the file is compared with the names that each documents, and
its tensors, renamed back, with torchvision's network. Sources: Detectron2's docs/tutorials/configs and
tools/convert-torchvision-to-d2; its checkpointer reads a ``.pth`` of tensors under ``model`` and finds each by the
end of its name. MMSegmentation: ``ResNet`` (not ``ResNetV1c``, whose stem is another) has torchvision's names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import ClassVar

import torch
import torchvision
import yaml
from torch import Tensor

from pri3d.errors import WeightsError
from pri3d.exporting.base import Format, fill
from pri3d.exporting.torchvision import resnet_maps
from pri3d.networks.encoders import ResNetEncoder
from pri3d.networks.load import FeatureNet
from pri3d.networks.weights import read_state

#: blocks of each stage, by depth
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

NORM = ("weight", "bias", "running_mean", "running_var")  #: tensors of a batch norm

DETECTRON2 = """\
from detectron2 import model_zoo
from detectron2.config import get_cfg
cfg = get_cfg()
cfg.merge_from_file(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
cfg.merge_from_file({config!r})  # weights, RGB, mean and deviation, stride in the 3x3 convolution
# from detectron2.engine import DefaultTrainer; DefaultTrainer(cfg).resume_or_load(resume=False)"""

MMSEG = """\
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
register_all_modules()
cfg = Config.fromfile({config!r})  # put a _base_ of MMSegmentation at its top for a whole network
net = MODELS.build(cfg.model["backbone"])
net.init_weights()"""

MMSEG_CONFIG = """\
# A backbone for MMSegmentation 1.x or MMDetection 3.x. For a whole network put a line such as
# _base_ = ["pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py"] above it; its strides and dilations stay.
# Heads on the last map take {last} channels, those on the one before it {before}.
model = dict(
    pretrained=None,
    data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb=True),
    backbone=dict(
        type="ResNet",
        depth={depth},
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint={path!r}),
    ),
)
"""


class ToolboxFormat(Format):
    """A ResNet as a torch file of plain tensors, whose names are compared with the documented ones."""

    nest: ClassVar[str]  #: key of the state dict in the file

    def __init__(self, source: FeatureNet, to: str) -> None:
        super().__init__(source, to)
        if not isinstance(source.encoder, ResNetEncoder):
            raise self.refuse("ResNets")
        self.depth = int(self.name.removeprefix("resnet"))

    def write(self, source: FeatureNet, path: Path) -> None:
        """Write tensors and the record as text: nothing that a safe reader would refuse."""
        state = {self.rename(key): value for key, value in source.encoder.state_dict().items() if not _counter(key)}
        torch.save({self.nest: state, "pri3d": json.dumps(self.record, sort_keys=True)}, path)

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Maps of torchvision's network with the tensors renamed back; raises WeightsError for any other name."""
        state = read_state(path)
        if wrong := sorted(self.documented() ^ set(state)):
            raise WeightsError(f"{path}: {', '.join(wrong[:5])} differ from the names that {self.to} documents")
        back = {self.rename(key): key for key in documented_torchvision(self.depth)}
        net = torchvision.models.get_model(self.name, weights=None)
        counters = [key for key in net.state_dict() if _counter(key)]
        fill(net, {back[key]: value for key, value in state.items()}, "torchvision", ["fc.", *counters])
        return resnet_maps(net, self.normalise(images))

    def rename(self, key: str) -> str:
        """Key of torchvision -> the toolbox's."""
        return key

    def documented(self) -> set[str]:
        """All names the toolbox's ResNet of this depth has."""
        return documented_torchvision(self.depth)


class Detectron2Format(ToolboxFormat):
    """Detectron2's ResNet, and the YAML without which its defaults (BGR, no deviation, stride in 1x1) would apply."""

    file = "encoder_detectron2.pth"
    nest = "model"
    note = "The configuration beside the weights is needed: Detectron2's defaults are those of other weights."

    def rename(self, key: str) -> str:
        """layer1.0.downsample.1.bias -> res2.0.shortcut.norm.bias, conv1.weight -> stem.conv1.weight."""
        key = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key) if key.startswith("layer") else f"stem.{key}"
        key = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)
        return key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")

    def documented(self) -> set[str]:
        """Names of detectron2.modeling.backbone.ResNet with its BasicStem."""
        return detectron2_names(self.depth)

    def companions(self, path: Path) -> dict[str, str]:
        """Configuration to merge over one of Detectron2's."""
        resnets = {"DEPTH": self.depth, "STRIDE_IN_1X1": False}
        if self.depth < 50:
            resnets["RES2_OUT_CHANNELS"] = 64  # Detectron2 asks for it
        model = {
            "WEIGHTS": str(path),
            "PIXEL_MEAN": _pixels(self.mean),
            "PIXEL_STD": _pixels(self.std),
            "RESNETS": resnets,
        }
        text = yaml.safe_dump({"MODEL": model, "INPUT": {"FORMAT": "RGB"}}, sort_keys=False, default_flow_style=None)
        return {config_name(path, ".yaml"): text}

    def snippet(self, path: Path) -> str:
        """Merge the configuration beside the weights."""
        return DETECTRON2.format(config=str(path.with_name(config_name(path, ".yaml"))))


class MmsegFormat(ToolboxFormat):
    """MMSegmentation's plain ResNet, and the Python configuration that builds it."""

    file = "encoder_mmseg.pth"
    nest = "state_dict"
    note = "The backbone is ResNet, not the ResNetV1c of most of MMSegmentation's configurations."

    def companions(self, path: Path) -> dict[str, str]:
        """Configuration to put over one of MMSegmentation's."""
        before, last = self.channels[-2:]
        facts = {"mean": _pixels(self.mean), "std": _pixels(self.std), "depth": self.depth, "path": str(path)}
        return {config_name(path, ".py"): MMSEG_CONFIG.format(**facts, before=before, last=last)}

    def snippet(self, path: Path) -> str:
        """Build the backbone of the configuration beside the weights."""
        return MMSEG.format(config=str(path.with_name(config_name(path, ".py"))))


def config_name(path: Path, suffix: str) -> str:
    """Name of the configuration beside weights at ``path``."""
    return path.with_suffix(suffix).name


def documented_torchvision(depth: int) -> set[str]:
    """Names of torchvision's ResNet without classifier and counters, which MMSegmentation's has too."""
    norms = [("bn1", "conv1")]
    shortcuts = []
    for stage, block, convs, first in _blocks(depth):
        norms += [(f"layer{stage}.{block}.bn{k}", f"layer{stage}.{block}.conv{k}") for k in convs]
        shortcuts += [f"layer{stage}.{block}.downsample"] if first else []
    norms += [(f"{name}.1", f"{name}.0") for name in shortcuts]
    return {f"{conv}.weight" for _, conv in norms} | {f"{norm}.{leaf}" for norm, _ in norms for leaf in NORM}


def detectron2_names(depth: int) -> set[str]:
    """Names of Detectron2's ResNet: each convolution has a weight and its norm inside."""
    convs = ["stem.conv1"]
    for stage, block, numbers, first in _blocks(depth):
        convs += [f"res{stage + 1}.{block}.conv{k}" for k in numbers]
        convs += [f"res{stage + 1}.{block}.shortcut"] if first else []
    return {f"{conv}.{leaf}" for conv in convs for leaf in ("weight", *(f"norm.{part}" for part in NORM))}


def _blocks(depth: int) -> list[tuple[int, int, tuple[int, ...], bool]]:
    """Stage 1 to 4, block, its convolutions, and whether it has a shortcut of its own, for all blocks of a ResNet."""
    convs = (1, 2, 3) if depth >= 50 else (1, 2)
    return [
        (stage, block, convs, block == 0 and (depth >= 50 or stage > 1))
        for stage, blocks in enumerate(DEPTHS[depth], start=1)
        for block in range(blocks)
    ]


def _counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _pixels(values: list[float]) -> list[float]:
    """Statistics of 0..1 -> of 0..255."""
    return [round(255 * value, 3) for value in values]

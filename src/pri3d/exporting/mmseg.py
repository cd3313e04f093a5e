"""MMSegmentation and MMDetection: weights under the names of their ``ResNet``, and a configuration for each.

``ResNet`` (not ``ResNetV1c``, whose stem is another) has torchvision's names. Both begin a backbone with
``init_cfg=dict(type="Pretrained")``; MMSegmentation's base configurations state ``pretrained`` beside it, which must be
taken back, and MMDetection's detectors have no such argument.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from pri3d.exporting._rules import mmengine_state
from pri3d.exporting._shared import ToolboxFormat, beside, resnet_maps
from pri3d.exporting.base import fill
from pri3d.networks.load import FeatureNet

SNIPPET = """\
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
register_all_modules()
cfg = Config.fromfile({config!r})  # put a _base_ of MMSegmentation at its top for a whole network
net = MODELS.build(cfg.model["backbone"])
net.init_weights()
# MMDetection: put {detection!r} below a _base_ such as mask-rcnn_r50_fpn_1x_coco.py"""

SEGMENTATION = """\
# A backbone for MMSegmentation 1.x. For a whole network put a line such as
# _base_ = ["pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py"] above it; its strides and dilations stay.
# Heads on the last map take {last} channels, those on the one before it {before}.
model = dict(
    pretrained=None,
    data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb=True),
    backbone=dict(
        type="ResNet",
        depth={depth},
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="{{{{ fileDirname }}}}/{name}"),
    ),
)
"""

DETECTION = """\
# A backbone for MMDetection 3.x. For a whole network put a line such as
# _base_ = ["mask-rcnn_r50_fpn_1x_coco.py"] above it.
model = dict(
    data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb=True),
    backbone=dict(
        type="ResNet",
        depth={depth},
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="{{{{ fileDirname }}}}/{name}"),
    ),
    neck=dict(in_channels={channels}),
)
"""


class MmsegFormat(ToolboxFormat):
    """OpenMMLab's plain ResNet, and the Python configurations that build it."""

    file = "encoder_mmseg.pth"
    nest = "state_dict"
    consumer = "mmsegmentation"

    def __init__(self, source: FeatureNet, to: str) -> None:
        super().__init__(source, to)
        self.models: Any = None
        with suppress(ImportError):  # absent, or without mmcv's compiled operators: then by the rules
            import_module("mmseg.models")
            self.models = import_module("mmseg.registry").MODELS

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Four maps of OpenMMLab's network where it is installed, else of torchvision's by MMEngine's rules."""
        if self.models is not None:
            config = import_module("mmengine.config").Config.fromfile(str(beside(path, ".py")))
            net: Any = self.models.build(config.model["backbone"])
            for value in net.state_dict().values():
                value.fill_(torch.nan if value.is_floating_point() else 0)
            net.init_weights()
            mean, std = (torch.tensor(config.model["data_preprocessor"][key]).view(3, 1, 1) for key in ("mean", "std"))
            net.eval()  # returns nothing here
            return list(net((255 * images - mean) / std))
        own = torchvision.models.get_model(self.name, weights=None)
        wanted = {key: value.shape for key, value in own.state_dict().items() if not key.startswith("fc.")}
        counters = [key for key in wanted if key.endswith("num_batches_tracked")]
        fill(own, mmengine_state(path, wanted), "torchvision", ["fc.", *counters])
        return resnet_maps(own, self.normalise(images))[1:]

    def companions(self, path: Path) -> dict[str, str]:
        """Configurations to put over one of MMSegmentation's, and over one of MMDetection's."""
        before, last = self.channels[-2:]
        mean, std = self.pixels()
        facts = {"mean": mean, "std": std, "depth": self.depth, "name": path.name}
        return {
            beside(path, ".py").name: SEGMENTATION.format(**facts, before=before, last=last),
            beside(path, "_mmdet.py").name: DETECTION.format(**facts, channels=list(self.channels[1:])),
        }

    def snippet(self, path: Path) -> str:
        """Build the backbone of the configuration beside the weights."""
        return SNIPPET.format(config=str(beside(path, ".py")), detection=str(beside(path, "_mmdet.py")))

    @property
    def reader(self) -> str:
        """MMSegmentation, or its rules."""
        if self.models is not None:
            return super().reader
        return "MMEngine's documented rules and torchvision's network (MMSegmentation cannot be imported here)"

    @property
    def note(self) -> str:
        """Which of the two ResNets it is."""
        return "The backbone is ResNet, not the ResNetV1c of most of MMSegmentation's configurations."

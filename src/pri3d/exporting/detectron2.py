"""Detectron2: its ResNet's weights, and the configuration that they need.

Its checkpointer loads a ``.pth`` by exact names and without complaint, unless the file says ``matching_heuristics``:
only then is each name found by its end, below ``backbone.bottom_up.`` of a detector. Sources: its
checkpoint/detection_checkpoint.py, docs/tutorials/configs and tools/convert-torchvision-to-d2.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pri3d.exporting._rules import detectron2_maps
from pri3d.exporting._shared import ToolboxFormat, beside

SNIPPET = """\
from detectron2 import model_zoo
from detectron2.config import get_cfg
cfg = get_cfg()
cfg.merge_from_file(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
cfg.merge_from_file({config!r})  # weights, RGB, mean and standard deviation, stride in the 3x3 convolution
# from detectron2.engine import DefaultTrainer; DefaultTrainer(cfg).resume_or_load(resume=False)"""


class Detectron2Format(ToolboxFormat):
    """Detectron2's ResNet, and the YAML without which its defaults (BGR, no deviation, stride in 1x1) would apply."""

    file = "encoder_detectron2.pth"
    nest = "model"
    entries = {"matching_heuristics": True}  # noqa: RUF012 (annotated in the base class)
    consumer = "detectron2"

    def rename(self, key: str) -> str:
        """layer1.0.downsample.1.bias -> res2.0.shortcut.norm.bias, conv1.weight -> stem.conv1.weight."""
        key = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key) if key.startswith("layer") else f"stem.{key}"
        key = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)
        return key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Maps res2 to res5 of Detectron2's trunk, by Detectron2 where it is installed, else by its documented rules.

        The numbers of Detectron2's own trunk, that of its FPN, are made invalid before it reads the file: one that the
        checkpointer leaves as it is makes every map so.
        """
        config = beside(path, ".yaml")
        if not self._installed():
            return detectron2_maps(path, config, images)
        cfg = import_module("detectron2.config").get_cfg()
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.merge_from_file(str(config))
        detector: Any = nn.Module()
        detector.backbone = import_module("detectron2.modeling").build_backbone(cfg)
        for value in detector.state_dict().values():
            value.fill_(torch.nan)
        import_module("detectron2.checkpoint").DetectionCheckpointer(detector).load(str(path))
        pixels = 255 * (images if cfg.INPUT.FORMAT == "RGB" else images.flip(1))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
        return list(detector.backbone.bottom_up.eval()((pixels - mean) / std).values())

    def companions(self, path: Path) -> dict[str, str]:
        """Configuration to merge over one of Detectron2's; the path is whole, as it is taken from where one works."""
        resnets = {"DEPTH": self.depth, "STRIDE_IN_1X1": False}
        if self.depth < 50:
            resnets["RES2_OUT_CHANNELS"] = 64  # Detectron2 asks for it
        mean, std = self.pixels()
        model = {"WEIGHTS": str(path.absolute()), "PIXEL_MEAN": mean, "PIXEL_STD": std, "RESNETS": resnets}
        text = yaml.safe_dump({"MODEL": model, "INPUT": {"FORMAT": "RGB"}}, sort_keys=False, default_flow_style=None)
        return {beside(path, ".yaml").name: text}

    def snippet(self, path: Path) -> str:
        """Merge the configuration beside the weights."""
        return SNIPPET.format(config=str(beside(path, ".yaml")))

    @property
    def reader(self) -> str:
        """Detectron2, or its rules."""
        return super().reader if self._installed() else "Detectron2's documented rules (it is not installed here)"

    @property
    def note(self) -> str:
        """What the weights are worth without the configuration."""
        return "Use the configuration beside the weights: Detectron2's defaults are for other weights."

    @staticmethod
    def _installed() -> bool:
        return find_spec("detectron2") is not None

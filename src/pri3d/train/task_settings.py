"""The settings of a fine-tuning run: what every task has, and one dataclass per task."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from pri3d.data.augment import RECIPES
from pri3d.models.segmentation import least_batch
from pri3d.models.tuning import check_tuning
from pri3d.train.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class FinetuneSettings(TrainSettings):
    """What every fine-tuning run has; see :func:`pri3d.train.finetune.finetune` for each field."""

    network: str
    encoder: str
    tune: str
    norm: Literal["train", "frozen"]
    bn_momentum: float
    head_lr: float
    mirror: bool
    fraction: float
    eval_every: int

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = super().problems()
        if self.augment not in RECIPES:
            found.append(f"--augment {self.augment}: unknown. Choices: {', '.join(RECIPES)}")
        if self.eval_every < 1:
            found.append(f"--eval-every {self.eval_every}: give at least 1")
        if not 0 < self.fraction <= 1:
            found.append(f"--fraction {self.fraction}: give a share of the labelled images between 0 and 1")
        if not 0 < self.bn_momentum <= 1:
            found.append(f"--bn-momentum {self.bn_momentum}: give a share, 0.1 is usual")
        if not self.head_lr > 0:
            found.append(f"--head-lr {self.head_lr}: must be positive")
        problem = check_tuning(self.tune)
        return [*found, problem] if problem else found


@dataclasses.dataclass(frozen=True)
class SemanticSettings(FinetuneSettings):
    """A run of semantic segmentation."""

    network: Literal["unet", "pspnet", "deeplabv3", "deeplabv3plus"]
    decoder: Literal["paper", "slim"]
    channels: int
    size: str
    class_weights: Literal["none", "balanced"]

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = super().problems()
        least = least_batch(self.network)
        if self.micro_batch < least:
            found.append(f"--micro-batch {self.micro_batch}: {self.network} needs {least} images a pass for its norms")
        return found


@dataclasses.dataclass(frozen=True)
class InstanceSettings(FinetuneSettings):
    """A run of detection and instance segmentation."""

    network: Literal["maskrcnn"]
    detector: Literal["full", "coco", "lite"]
    short_side: int | str
    long_side: int
    rois: int
    min_area: int

    @property
    def short_sides(self) -> tuple[int, ...]:
        """Short sides of the training images, one of which is drawn for each; in steps of 32 as Detectron2 has them."""
        low, _, high = str(self.short_side).partition("-")
        return tuple(range(int(low), int(high or low) + 1, 32))

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = super().problems()
        if self.compile:
            found.append("--compile: the images of a Mask R-CNN differ in size; leave it out")
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(self.short_side))
        if match is None or not 32 <= int(match[1]) <= int(match[2] or match[1]):
            found.append(f"--short-side {self.short_side}: give pixels of 32 or more, or a range as in 640-800")
        elif self.long_side < int(match[2] or match[1]):
            found.append(f"--long-side {self.long_side}: shorter than the short side {self.short_side}")
        return found

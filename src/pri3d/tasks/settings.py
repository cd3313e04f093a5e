"""The settings that fine-tuning has whatever the task is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from pri3d.data.augment import RECIPES
from pri3d.networks.tuning import check_tuning
from pri3d.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class FinetuneSettings(TrainSettings):
    """What every fine-tuning run has; see :func:`pri3d.training.finetune.finetune` for each field."""

    network: str
    encoder: str
    tune: str
    norm: Literal["train", "frozen"]
    bn_momentum: float
    head_lr: float
    mirror: bool
    fraction: float
    eval_every: int

    least: ClassVar[Mapping[str, float]] = {**TrainSettings.least, "eval_every": 1}

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = super().problems()
        if self.augment not in RECIPES:
            found.append(f"--augment {self.augment}: unknown. Choices: {', '.join(RECIPES)}")
        if not 0 < self.fraction <= 1:
            found.append(f"--fraction {self.fraction}: give a share of the labelled images between 0 and 1")
        if not 0 < self.bn_momentum <= 1:
            found.append(f"--bn-momentum {self.bn_momentum}: give a share, 0.1 is usual")
        if not self.head_lr > 0:
            found.append(f"--head-lr {self.head_lr}: must be positive")
        problem = check_tuning(self.tune)
        return [*found, problem] if problem else found

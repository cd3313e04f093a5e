"""The settings of a pre-training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from pri3d.geometry.matching import Mode
from pri3d.geometry.resize import Interpolation
from pri3d.networks.tuning import check_tuning
from pri3d.objectives.contrast import MIN_TEMPERATURE, Negatives
from pri3d.settings import TrainSettings

Mix = Literal["frames", "combine", "half", "alternate"]


@dataclasses.dataclass(frozen=True)
class PretrainSettings(TrainSettings):
    """A pre-training run; see :func:`pri3d.training.pretrain.pretrain` for each field."""

    size: str
    encoder: str
    decoder: Literal["paper", "slim"]
    channels: int
    init: str
    tune: str
    objectives: dict[str, float]
    keep: float
    points: int | Literal["all"]
    temperature: float
    negatives: Negatives
    exclude_px: float
    exclude_cm: float
    match: Mode
    distance: float
    voxel: float
    chunks: Literal[1, 2]
    net3d: str
    voxel_input: Literal["occupancy", "color"]
    interpolation: Interpolation
    passes: Literal["joint", "separate"]
    bn_momentum: Literal["constant", "decay"]
    mix: Mix
    crop: int
    moco_queue: int
    moco_momentum: float
    moco_temperature: float
    moco_group: int
    holdout: float
    eval_every: int
    eval_pairs: int

    least: ClassVar[Mapping[str, float]] = {
        **TrainSettings.least,
        "channels": 1,
        "eval_every": 0,
        "eval_pairs": 1,
        "temperature": MIN_TEMPERATURE,
        "moco_temperature": MIN_TEMPERATURE,
        "moco_queue": 1,
        "moco_group": 0,
        "crop": 32,
        "keep": 0,
        "exclude_px": 0,
        "exclude_cm": 0,
        "distance": 1e-4,
    }

    @property
    def weights(self) -> dict[str, float]:
        """Objectives with a positive weight, the retention term among them."""
        return {name: w for name, w in {**self.objectives, "keep": self.keep}.items() if w > 0}

    @property
    def crops_alone(self) -> bool:
        """Whether MoCo is alone: it needs single images, and neither pairs nor the decoder."""
        return set(self.weights) == {"moco"}

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = super().problems()
        if self.compile and self.bn_momentum == "decay":
            found.append("--compile: --bn-momentum decay changes the network ten times; take constant")
        if isinstance(self.points, int) and self.points < 2:
            found.append(f"--points {self.points}: give at least 2, or all")
        wanted = {name for name, weight in self.objectives.items() if weight > 0}
        if not wanted or not all(weight >= 0 for weight in self.objectives.values()):
            found.append(f"--objectives {self.objectives}: give at least one with a positive weight, as in {{view: 1}}")
        if "keep" in self.objectives:
            found.append("--objectives: the weight of keep is --keep")
        if self.keep > 0 and wanted == {"moco"}:
            found.append(f"--keep {self.keep}: moco alone looks at no pairs, give it beside view, geometry or another")
        if "moco" in wanted and self.moco_queue < self.batch:
            found.append(f"--moco-queue {self.moco_queue}: a step makes {self.batch} keys, give at least as many")
        if not 0 <= self.holdout <= 0.9:
            found.append(f"--holdout {self.holdout}: give a share of the frames between 0 and 0.9")
        if not 0 <= self.moco_momentum < 1:
            found.append(f"--moco-momentum {self.moco_momentum}: give a share, 0.999 in the paper")
        problem = check_tuning(self.tune)
        return [*found, problem] if problem else found

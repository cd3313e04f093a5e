"""Fine-tuning as Lightning sees it: a network under the loss of its task, and the scores while it trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d.api.finetune import FinetuneSettings
from pri3d.networks.encoders import Encoder, encoder_of, head_parameters
from pri3d.networks.tuning import fix_norms, limit
from pri3d.runs import RunPaths
from pri3d.tasks import Task
from pri3d.training.loop import StepModule
from pri3d.training.optim import ParameterGroup
from pri3d.training.watch import Watch
from pri3d.types import LabelledBatch


class DownstreamModule(StepModule):
    """A network on a backbone under the loss of its task."""

    settings: FinetuneSettings

    def __init__(self, settings: FinetuneSettings, model: nn.Module, task: Task) -> None:
        super().__init__(settings)
        self.model, self.task = model, task
        self.fixed = limit_encoder(encoder_of(model), settings)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The encoder at the learning rate, everything on it at ``head_lr`` times that."""
        encoder = encoder_of(self.model).parameters()
        return [ParameterGroup(encoder), ParameterGroup(head_parameters(self.model), self.settings.backbone.head_lr)]

    @property
    def network(self) -> nn.Module:
        """The whole network."""
        return self.model

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's."""
        for module in self.fixed:
            module.eval()
        if isinstance(batch, LabelledBatch) and self.settings.compute.channels_last:
            batch = batch._replace(color=batch.color.contiguous(memory_format=torch.channels_last))
        return self.task.loss(self.model, batch)


def limit_encoder(encoder: Encoder, settings: FinetuneSettings) -> list[nn.Module]:
    """Fix what the settings say of the encoder; return the modules that must be in ``eval()`` at every pass."""
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = settings.backbone.bn_momentum
    fixed = limit(encoder, settings.tune)
    return fixed if settings.backbone.norm == "train" else [*fixed, *fix_norms(encoder)]


class Validator(Watch):
    """Scores the network on the validation set; the best one has the highest of the task's key."""

    def __init__(
        self, task: Task, dataset: Dataset[Any], run: RunPaths, done: int, every: int, record: dict[str, Any]
    ) -> None:
        super().__init__(run, done, every, task.key)
        self.task, self.dataset, self.record = task, dataset, record

    def measure(self, module: DownstreamModule, fabric: Fabric) -> dict[str, Any]:
        """The task's scores; None for a number that does not exist."""
        scores = self.task.measure(module.model, self.dataset, module.settings.micro_batch)
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in scores.items()}

    def save(self, module: DownstreamModule, path: Path, step: int) -> None:
        """Write the network."""
        self.task.save(module.model, path, {**self.record, "steps": step})

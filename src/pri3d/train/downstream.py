"""What the settings of a fine-tuning run mean, task by task: its network, its batches, its loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d.data.augment import recipe
from pri3d.data.instances import InstanceDataset, InstanceItem, collate_instances
from pri3d.data.labelled import LabelledDataset, LabelledItem, collate
from pri3d.datasets import LabelledImages
from pri3d.geometry.images import parse_size
from pri3d.models.detector import SIZES, Detector
from pri3d.models.encoders import Encoder, build_encoder
from pri3d.models.segmentation import SegmentationNet, build_segmentation
from pri3d.models.tuning import fix_norms, limit
from pri3d.tasks import Task
from pri3d.tasks.instance import InstanceTask
from pri3d.tasks.semantic import SemanticTask, class_weights, count_classes
from pri3d.train.engine import StepModule
from pri3d.train.optim import ParameterGroup
from pri3d.train.runs import RunFolder
from pri3d.train.task_settings import FinetuneSettings, InstanceSettings, SemanticSettings
from pri3d.train.watch import Watch
from pri3d.types import InstanceBatch, LabelledBatch

S = TypeVar("S", bound=FinetuneSettings)


class Recipe(ABC, Generic[S]):
    """One task's part of fine-tuning. A subclass sets the three class attributes and fills in four methods."""

    settings_type: ClassVar[type[FinetuneSettings]]
    task_type: ClassVar[type[Task]]
    shown: ClassVar[tuple[str, ...]]  #: the scores that a comparison of runs shows

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @staticmethod
    @abstractmethod
    def collate(items: list[Any]) -> Any:
        """Items of the dataset -> batch."""

    @abstractmethod
    def build(self, class_names: Sequence[str]) -> SegmentationNet | Detector:
        """Untrained network."""

    @abstractmethod
    def task(self, images: LabelledImages, rows: Sequence[int]) -> Task:
        """The task over the classes of the training images."""

    @abstractmethod
    def dataset(self, images: LabelledImages, rows: Sequence[int] | None, training: bool) -> Dataset[Any]:
        """Items of the images, augmented where they are for training."""


class SemanticRecipe(Recipe[SemanticSettings]):
    """Semantic segmentation."""

    settings_type = SemanticSettings
    task_type = SemanticTask
    shown = ("miou", "accuracy")

    @staticmethod
    def collate(items: list[LabelledItem]) -> LabelledBatch:
        """Stacked images and class maps."""
        return collate(items)

    def build(self, class_names: Sequence[str]) -> SegmentationNet:
        """U-Net, PSPNet, DeepLabV3 or DeepLabV3+."""
        s = self.settings
        return build_segmentation(s.network, build_encoder(s.encoder), len(class_names), s.decoder, s.channels)

    def task(self, images: LabelledImages, rows: Sequence[int]) -> SemanticTask:
        """Cross-entropy, with weights by frequency where the settings ask for them."""
        names = SemanticTask.names_of(images)
        weights = None
        if self.settings.class_weights == "balanced":
            weights = class_weights(count_classes(images, rows, len(names)))
        return SemanticTask(names, parse_size(self.settings.size), weights)

    def dataset(self, images: LabelledImages, rows: Sequence[int] | None, training: bool) -> LabelledDataset:
        """Images and class maps of one size."""
        s = self.settings
        size = parse_size(s.size)
        if not training:
            return LabelledDataset(images, size, rows)
        return LabelledDataset(images, size, rows, s.seed, recipe(s.augment), s.mirror)


class InstanceRecipe(Recipe[InstanceSettings]):
    """Detection and instance segmentation."""

    settings_type = InstanceSettings
    task_type = InstanceTask
    shown = ("box_AP50", "box_AP75", "box_AP", "AP50", "AP75", "AP")

    @staticmethod
    def collate(items: list[InstanceItem]) -> InstanceBatch:
        """Lists of images and objects."""
        return collate_instances(items)

    def build(self, class_names: Sequence[str]) -> Detector:
        """Mask R-CNN."""
        s = self.settings
        sizes = SIZES[s.detector]._replace(rois=s.rois, short_sides=s.short_sides, long_side=s.long_side)
        return Detector(build_encoder(s.encoder), len(class_names), sizes)

    def task(self, images: LabelledImages, rows: Sequence[int]) -> InstanceTask:
        """Mask R-CNN's losses."""
        return InstanceTask(InstanceTask.names_of(images))

    def dataset(self, images: LabelledImages, rows: Sequence[int] | None, training: bool) -> InstanceDataset:
        """Images and their objects."""
        s = self.settings
        if not training:
            return InstanceDataset(images, rows, min_area=s.min_area)
        return InstanceDataset(images, rows, s.seed, recipe(s.augment), s.mirror, s.min_area)


#: task -> what fine-tunes it
RECIPES: dict[str, type[Recipe[Any]]] = {"semantic": SemanticRecipe, "instance": InstanceRecipe}


class DownstreamModule(StepModule):
    """A network on a backbone under the loss of its task."""

    settings: FinetuneSettings

    def __init__(self, settings: FinetuneSettings, model: SegmentationNet | Detector, task: Task) -> None:
        super().__init__(settings)
        self.model, self.task = model, task
        self.fixed = limit_encoder(model.encoder, settings)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The encoder at the learning rate, everything on it at ``head_lr`` times that."""
        encoder = self.model.encoder.parameters()
        return [ParameterGroup(encoder), ParameterGroup(self.model.head_parameters(), self.settings.head_lr)]

    @property
    def network(self) -> nn.Module:
        """The whole network."""
        return self.model

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's."""
        for module in self.fixed:
            module.eval()
        if isinstance(batch, LabelledBatch) and self.settings.channels_last:
            batch = batch._replace(color=batch.color.contiguous(memory_format=torch.channels_last))
        return self.task.loss(self.model, batch)


def limit_encoder(encoder: Encoder, settings: FinetuneSettings) -> list[nn.Module]:
    """Fix what the settings say of the encoder; return the modules that must be in ``eval()`` at every pass."""
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = settings.bn_momentum
    fixed = limit(encoder, settings.tune)
    return fixed if settings.norm == "train" else [*fixed, *fix_norms(encoder)]


class Validator(Watch):
    """Scores the network on the validation set; the best one has the highest of the task's key."""

    def __init__(
        self, task: Task, dataset: Dataset[Any], run: RunFolder, done: int, every: int, record: dict[str, Any]
    ) -> None:
        super().__init__(run, done, every, task.key)
        self.task, self.dataset, self.record = task, dataset, record

    def measure(self, module: DownstreamModule) -> dict[str, Any]:
        """The task's scores; None for a number that does not exist."""
        scores = self.task.measure(module.model, self.dataset, module.settings.micro_batch)
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in scores.items()}

    def save(self, module: DownstreamModule, path: Path, step: int) -> None:
        """Write the network."""
        self.task.save(module.model, path, {**self.record, "steps": step})

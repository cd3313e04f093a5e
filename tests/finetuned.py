"""Networks written as fine-tuning writes them, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pri3d.api.finetune import FinetuneSettings, resolve_finetuning
from pri3d.networks.detector import LITE, SIZES, Detector, Sizes
from pri3d.networks.encoders import build_encoder
from pri3d.networks.segmentation import SegmentationNet, build_segmentation
from pri3d.networks.unet import UNet
from pri3d.tasks import load_task
from pri3d.tasks.instance import InstanceTask
from pri3d.tasks.semantic import SemanticTask
from pri3d.training.finetune import DownstreamModule
from pri3d.training.optim import ParameterGroup

#: a Mask R-CNN of a moment
TINY = LITE._replace(fpn=16, box=32, mask=16, mask_convs=1, anchor=8, short_sides=(48,), long_side=64)


def semantic_settings(**given: Any) -> FinetuneSettings:
    return resolve_finetuning("semantic", "quick", given)


def semantic_task(names: list[str], model: SegmentationNet, size: str = "64x48") -> SemanticTask:
    """Task of a run that has trained this network."""
    built = {"network": model.network, "encoder": model.encoder.name}
    if isinstance(model.body, UNet):
        built |= {"decoder": model.body.decoder_name, "channels": model.body.channels}
    return SemanticTask(names, semantic_settings(size=size, **built))


def save_semantic(model: SegmentationNet, path: Path, names: list[str], record: dict[str, Any]) -> None:
    semantic_task(names, model).save(model, path, record)


def load_semantic(path: Path) -> tuple[nn.Module, list[str]]:
    trained = load_task(path)
    assert isinstance(trained.task, SemanticTask)
    return trained.model, trained.task.class_names


def groups_of(model: nn.Module) -> list[ParameterGroup]:
    """Parameters of a fine-tuning run's encoder and head."""
    task = semantic_task(["a"], build_segmentation("unet", build_encoder("test_resnet"), 1))
    return DownstreamModule(semantic_settings(), model, task).parameter_groups()


def instance_task(names: list[str], model: Detector) -> InstanceTask:
    """Task of a run that has trained this network, whose sizes must be among ``SIZES``."""
    sizes: Sizes = model.sizes
    own = {"rois": sizes.rois, "short_sides": sizes.short_sides, "long_side": sizes.long_side}
    named = next(name for name, known in SIZES.items() if known._replace(**own) == sizes)
    ends = f"{min(sizes.short_sides)}-{max(sizes.short_sides)}"
    given = {"detector": named, "rois": sizes.rois, "long_side": sizes.long_side, "short_side": ends}
    encoder = {"encoder": model.encoder.name}
    return InstanceTask(names, resolve_finetuning("instance", "quick", {**encoder, "instance": given}))

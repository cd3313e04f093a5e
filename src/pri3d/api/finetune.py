"""``pri3d finetune``: its options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pri3d import registry
from pri3d.api.labelled import LabelMapField
from pri3d.api.options import AnyPath, implementation, option, verb
from pri3d.api.plugins import options_class, options_of_encoder, refuse_other_encoders, source_of
from pri3d.api.presets import build, current, overlay, read_presets
from pri3d.api.training import Augment, BackboneFields, CallOptions, ScoringOptions, TrainFields, TrainSettings
from pri3d.errors import ConfigError

if TYPE_CHECKING:
    from pri3d.runs import Run
    from pri3d.training.comparison import Comparison


class BackboneOptions(BackboneFields):
    """Training of the encoder relative to the new layers."""

    group = "backbone"

    bn_momentum: float = option("momentum of the encoder's batch norms", default=0.1, above=0, most=1)


class FinetuneFields(TrainFields):
    """What every fine-tuning run has, but for what several runs of one call may differ in."""

    augment: Augment = option("colour augmentation", default="none")
    mirror: bool = option("mirror half of the training images left-right", default=False)
    backbone: BackboneOptions = option("the encoder", default=BackboneOptions())
    validation: ScoringOptions = option("measuring while the run trains", default=ScoringOptions())

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        few = [] if self.validation.every >= 1 else [f"--validation.every {self.validation.every}: give at least 1"]
        return [*super().problems(), *few]


class FinetuneSettings(FinetuneFields, TrainSettings):
    """A fine-tuning run; the defaults are the paper's for semantic segmentation (section 4)."""

    network: str = option("network on the encoder", default="unet")
    fraction: float = option("fraction of the labelled training images", default=1.0, above=0, most=1)


class FinetuneOptions(FinetuneFields, LabelMapField, CallOptions):
    """Options of :func:`finetune`."""

    task: str = option(
        "semantic (segmentation), instance (detection and instance segmentation), or one of an installed package",
        kw_only=False,
    )
    data: AnyPath = option(
        "labelled images: a prepared dataset, ScanNet frames, NYUv2, COCO json, Cityscapes, KITTI, image/mask pairs",
        kw_only=False,
    )
    val: AnyPath | None = option("labelled images to evaluate on; default: the val split of data", default=None)
    weights: str | AnyPath = option(
        "where the weights come from: scratch, imagenet, timm:NAME, a pre-training run, or a weights file; several "
        "joined by commas are compared",
        default="scratch",
    )
    part: Literal["all", "encoder"] = option(
        "part of the weights to use: all (encoder, and the decoder for a unet) or encoder", default="all"
    )
    network: str | None = option(
        "network on the encoder: unet, pspnet, deeplabv3, deeplabv3plus; maskrcnn for instance; several joined by "
        "commas are compared",
        default=None,
    )
    fraction: float | str = option(
        "nested fraction of the labelled training images; several joined by commas are compared", default=1.0
    )
    seed: int | str = option(
        "random seed for initialization, shuffling and augmentation; several joined by commas are compared", default=0
    )
    dataset: str | None = option("format of the labelled images; auto-detected if not given", default=None)
    epochs: float | None = option("passes over the training images, instead of steps", default=None, above=0)


def presets_of_task(task: str) -> Path:
    """Folder of a task's presets, beside its file. Raises ConfigError for an unknown task."""
    module = registry.find("tasks", registry.TASKS, task).partition(":")[0]
    return source_of(module).parent / "presets" / task


def resolve_finetuning(task: str, preset: str, given: Mapping[str, Any] | None = None) -> FinetuneSettings:
    """Settings of a task's preset with what the user gives on top, nested and by their present or former names.

    Raises ConfigError naming every problem at once; an option of another task or encoder is one.
    """
    values, given = read_presets(task, presets_of_task(task), preset), current(given or {}, task)
    foreign = sorted(set(registry.names("tasks", registry.TASKS)) & set(given) - {task})
    if foreign:
        listed = ", ".join(f"--{name}.{key}" for name in foreign for key in given[name])
        raise ConfigError(f"{listed}: no option of task {task}. Leave it out.")
    merged = overlay(values, given)
    encoder = merged.get("encoder", FinetuneSettings().encoder)
    refuse_other_encoders(encoder, given)
    others = {*registry.names("encoders", registry.ENCODERS)} - {encoder, task}
    merged = {name: value for name, value in merged.items() if name not in others}
    own = {task: options_class("tasks", task), **options_of_encoder(encoder)}
    return build(FinetuneSettings, merged, own, f"preset {preset!r} and flags")


def stated_finetuning(task: str, values: Mapping[str, Any]) -> FinetuneSettings:
    """Settings as a run or a weights file of a task states them, those of version 0.1 too.

    Raises ConfigError where they are not a task's settings.
    """
    own = {task: options_class("tasks", task), **options_of_encoder(values.get("encoder"))}
    return build(FinetuneSettings, current(values, task), own, "as stated")


@verb(FinetuneOptions, "pri3d finetune semantic out/train --val out/val --weights runs/kitchen")
def finetune(options: FinetuneOptions) -> Run | Comparison:
    """Fine-tune a backbone on labelled images and evaluate it on held-out ones (paper section 5).

    Options that are not given have the preset's values; pri3d weights define their encoder, decoder and channels.
    Weights, network, fraction and seed take several values, joined by commas: every combination is a run, and a
    table compares them.

    Returns the run (path, weights, scores), or of several the comparison with its runs. Raises ConfigError, DataError
    or WeightsError before any work, naming what to change.
    """
    return implementation("pri3d.training.finetune:finetune")(options)

"""``pri3d pretrain``: its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pri3d
from pri3d import registry
from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.plugins import options_class, options_of_encoder, refuse_other_encoders
from pri3d.api.presets import build, current, overlay, read_presets
from pri3d.api.training import BackboneFields, CallOptions, TrainSettings, ValidationOptions
from pri3d.errors import ConfigError

if TYPE_CHECKING:
    from pri3d.runs import Run

#: When two measured points are the same.
Mode = Literal["point", "depth", "relative"]
#: Which other points a point is contrasted with: those of its sample, of the batch, of all processes' batches.
Negatives = Literal["sample", "batch", "world"]
Interpolation = Literal["bilinear", "nearest"]
#: Below this the exponent range of float32 no longer covers logits of -1/t..1/t.
MIN_TEMPERATURE = 0.025

PRESETS = Path(pri3d.__file__).parent / "training" / "presets" / "pretrain"


class UNetOptions(Options):
    """The U-Net's decoder, and how images pass through the network."""

    group = "unet"

    decoder: Literal["paper", "slim"] = option(
        "paper (5x5 convolutions, wide) or slim (3x3, for small machines)", default="paper"
    )
    channels: int | Literal["auto"] = option(
        "channels of the half-resolution feature map; auto: 128 if the encoder's last map has 2048 (ResNet-50), "
        "else 32",
        default="auto",
    )
    passes: Literal["joint", "separate"] = option(
        "both frames in one joint pass through the network, or in separate ones with their own batch statistics",
        default="joint",
    )
    bn_schedule: Literal["constant", "decay"] = option(
        "momentum of the batch norms: constant 0.1, or the decay of the released code", default="constant"
    )

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        few = isinstance(self.channels, int) and self.channels < 1
        return [*super().problems(), *([f"--unet.channels {self.channels}: give at least 1, or auto"] if few else [])]


class EncoderOptions(BackboneFields):
    """Training of the encoder relative to the decoder and the heads, which are new."""

    group = "backbone"

    delay: int = option(
        "steps during which the encoder stays unchanged; over as many more its learning rate rises to its full value",
        default=0,
        least=0,
    )
    mix: float = option(
        "fraction of the encoder's change that is measured and written: initial + mix x (trained - initial)",
        default=1.0,
        above=0,
        most=1,
    )


class MatchingOptions(Options):
    """Which pixels of two frames show the same point."""

    group = "matching"

    match: Mode = option(
        "criterion: point (3D distance, the paper), depth (difference along z), relative (distance / depth)",
        default="point",
    )
    distance: float = option(
        "metres within which two measured points are the same; relative to the depth with match relative",
        default=0.02,
        least=1e-4,
    )


class ContrastOptions(Options):
    """PointInfoNCE loss of every objective that contrasts points."""

    group = "contrast"

    points: int | Literal["all"] = option("matches per frame in the contrast, or all", default=1024)
    temperature: float = option("temperature: divides the cosine similarities", default=0.4, least=MIN_TEMPERATURE)
    negatives: Negatives = option(
        "negatives: other points of the same sample (the paper), of the whole batch, or of all processes (world)",
        default="sample",
    )
    exclude_px: float = option(
        "radius in pixels around the positive within which points are not used as negatives", default=0.0, least=0
    )
    exclude_cm: float = option(
        "radius in centimetres around the positive within which points are not used as negatives", default=0.0, least=0
    )

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        few = isinstance(self.points, int) and self.points < 2
        return [*super().problems(), *([f"--contrast.points {self.points}: give at least 2, or all"] if few else [])]


class PretrainSettings(TrainSettings):
    """A pre-training run; the defaults are the paper's (sections 3.3 and 4), where it is silent the released code's."""

    weights: str = option(
        "where the encoder's weights come from: scratch, imagenet, a checkpoint file, a run, or timm:NAME",
        default="imagenet",
    )
    size: str = option("size of the images, WIDTHxHEIGHT in pixels", default="320x240")
    interpolation: Interpolation = option("how images are resized", default="bilinear")
    objectives: dict[str, float] = option(
        "objectives with their weights, as in '{view: 1, geometry: 1}'; also distill, pyramid, surface, trivial, "
        "depth, moco",
        default_factory=lambda: {"view": 1.0, "geometry": 1.0},
    )
    keep: float = option(
        "weight of the feature distillation (retention) loss, which keeps the encoder's features close to the "
        "initial ones",
        default=0.0,
        least=0,
    )
    holdout: float = option(
        "fraction of the scenes (or of the last frames of each scene) that is held out from training", default=0.0
    )
    min_overlap: float = option(
        "pairs that overlap by less are left out (paper, section 4: 0.3)", default=0.3, least=0, most=1
    )
    backbone: EncoderOptions = option("the encoder", default=EncoderOptions())
    unet: UNetOptions = option("decoder and passes", default=UNetOptions())
    matching: MatchingOptions = option("which pixels show the same point", default=MatchingOptions())
    contrast: ContrastOptions = option("contrast between points", default=ContrastOptions())
    validation: ValidationOptions = option("measuring while the run trains", default=ValidationOptions())

    @property
    def active(self) -> dict[str, float]:
        """Objectives with a positive weight, the retention loss among them."""
        return active_objectives(self.objectives, self.keep)

    @property
    def crops_alone(self) -> bool:
        """Whether MoCo is alone: it needs single images, and neither pairs nor the decoder."""
        return set(self.active) == {"moco"}

    def pass_size(self, world: int) -> int:
        """As stated. A pass of MoCo is that of all processes: keys are shuffled over them in groups of their own."""
        return max(1, min(self.micro_batch, self.batch // world)) if self.crops_alone else self.micro_batch

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = super().problems()
        if self.compute.compile and self.unet.bn_schedule == "decay":
            found.append("--compute.compile: --unet.bn-schedule decay changes the network ten times; take constant")
        wanted = {name for name, weight in self.objectives.items() if weight > 0}
        if not wanted or not all(weight >= 0 for weight in self.objectives.values()):
            found.append(f"--objectives {self.objectives}: give at least one with a positive weight, as in {{view: 1}}")
        if self.backbone.delay >= self.steps:
            found.append(f"--backbone.delay {self.backbone.delay}: of {self.steps} steps none would train the encoder")
        if "keep" in self.objectives:
            found.append("--objectives: the weight of keep is --keep")
        if self.keep > 0 and wanted == {"moco"}:
            found.append(f"--keep {self.keep}: moco alone uses no pairs; combine it with view, geometry or another")
        if not 0 <= self.holdout <= 0.9:
            found.append(f"--holdout {self.holdout}: give a fraction of the frames between 0 and 0.9")
        return found


def active_objectives(objectives: Mapping[str, float], keep: float) -> dict[str, float]:
    """Those with a positive weight, the retention loss among them."""
    return {name: weight for name, weight in {**objectives, "keep": keep}.items() if weight > 0}


class PretrainOptions(PretrainSettings, CallOptions):
    """Options of :func:`pretrain`."""

    preset: str = option(
        "name of a preset, or the path of a YAML file of options; several joined by commas are merged from left to "
        "right, later ones override. Where it is not given: quick; adapt where --weights is not scratch",
        default="",
    )

    @property
    def resolved_preset(self) -> str:
        """The one that is named, or that of :func:`default_preset`."""
        return self.preset or default_preset(self.given().get("weights"))

    data: AnyPath | Sequence[AnyPath] = option(
        "prepared dataset that `pri3d prepare` wrote, or a recording; of several each may have a weight, as in "
        "out/kitchen:1 out/rooms:0.5, by which every batch is divided among them",
        kw_only=False,
    )


def default_preset(weights: str | None) -> str:
    """Preset of a call that names none, by its ``--weights``; None where none are given."""
    return "quick" if weights in (None, "scratch") else "adapt"


def resolve_pretraining(preset: str, given: Mapping[str, Any] | None = None) -> PretrainSettings:
    """Settings of a preset with what the user gives on top, nested and by their present or former names.

    Without a preset it is that of :func:`default_preset`.
    Raises ConfigError naming every problem at once; an option of an objective or an encoder that is not in use is one.
    """
    given = current(given or {}, "pretrain")
    preset = preset or default_preset(given.get("weights"))
    values = read_presets("pretrain", PRESETS, preset, alone=not {"encoder", "weights"} & set(given))
    merged = overlay(values, given)
    objectives = merged.get("objectives", PretrainSettings().objectives)
    if not isinstance(objectives, Mapping):
        raise ConfigError(f"--objectives {objectives!r}: give names and weights, as in {{view: 1}}.")
    numbers = {name: weight for name, weight in objectives.items() if isinstance(weight, int | float)}
    used = active_objectives(numbers, merged.get("keep", 0.0))
    known = set(registry.names("objectives", registry.OBJECTIVES))
    idle = [f"--{name}.{key}" for name in sorted(known & set(given) - {*used, "keep"}) for key in given[name]]
    if idle:
        raise ConfigError(f"{', '.join(idle)}: not used by the objectives {', '.join(used)}. Leave it out.")
    encoder = merged.get("encoder", PretrainSettings().encoder)
    refuse_other_encoders(encoder, given)
    known |= {*registry.names("encoders", registry.ENCODERS)} - {encoder}
    merged = {name: value for name, value in merged.items() if name not in known - {*used, "keep"}}
    own = {name: options_class("objectives", name) for name in used if name != "keep"}  # which is a weight
    own |= options_of_encoder(encoder)
    return build(PretrainSettings, merged, own, f"preset {preset!r} and flags")


@verb(PretrainOptions, "pri3d pretrain out/kitchen --preset quick --steps 300 --run runs/kitchen")
def pretrain(options: PretrainOptions) -> Run:
    """Pre-train an image backbone on prepared pairs: View, Geo, View+Geo (paper section 3), or a baseline of the paper.

    Every option that is not given has the preset's value: `quick` (laptop), `adapt` (for good initial
    weights), `paper`, a row of the paper's table 1 (view, geo, trivial, depth, moco, ...), or your own file.

    Returns the run: its path, weights, metrics and scores. Raises ConfigError, DataError or WeightsError before any
    work, naming what to change.
    """
    return implementation("pri3d.training.pretrain:pretrain")(options)

"""Options of every training, in groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pri3d.api.options import AnyPath, Options, option

#: what of an encoder is trained
TUNING = re.compile(r"full|frozen|(?P<kind>last|lora)-(?P<number>[1-9]\d*)")
TUNINGS = "full, frozen, last-K (stages or blocks), lora-R (rank)"

#: colour augmentations
Augment = Literal["strong", "light", "simclr", "blur", "none"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["constant", "step", "poly", "cosine", "onecycle", "multistep"]


class OptimOptions(Options):
    """The optimizer, except for its learning rate."""

    group = "optim"

    optimizer: Literal["sgd", "adamw"] = option("optimizer", default="sgd")
    momentum: float = option("momentum of sgd", default=0.9, least=0)
    dampening: float = option("dampening of sgd", default=0.1, least=0)
    weight_decay: float = option(
        "weight decay: of tensors with two or more dimensions (adamw), of all (sgd)", default=0.0, least=0
    )
    schedule: Schedule = option(
        "learning-rate schedule: step is x 0.99 every 1000 steps, multistep x 0.1 after 2/3 and after 8/9",
        default="step",
    )


class BackboneFields(Options):
    """Training of an encoder relative to the new layers."""

    norm: Literal["train", "statistics", "frozen"] = option(
        "batch norms of the encoder: train; statistics (running statistics frozen, affine parameters trained); or "
        "frozen",
        default="train",
    )
    head_lr: float = option("learning rate of all other parts, as a multiple of lr", default=1.0, above=0)


class ComputeOptions(Options):
    """Use of the hardware; changes only rounding and speed."""

    group = "compute"

    sync_bn: bool = option("synchronise batch norms over all processes (GPUs only)", default=False)
    channels_last: bool = option("channels-last memory layout of images and convolutions", default=True)
    compile: bool = option("compile the network with torch.compile", default=False)


class CheckpointOptions(Options):
    """Checkpoints; these options may change when a run is continued."""

    group = "checkpoint"

    minutes: float = option("minutes between checkpoints", default=10.0, above=0)
    every: int = option(
        "steps between checkpoints, in addition to the minutes; 0: only the minutes", default=0, least=0
    )
    keep: int = option("number of checkpoints to keep", default=1, least=1)


class TrainFields(Options):
    """What every training run has but for its seed."""

    encoder: str = option("resnet18, resnet50, or any timm name with feature maps", default="resnet50")
    tune: str = option(
        "which part of the encoder is trained: full, frozen, last-K stages or blocks, lora-R of rank R", default="full"
    )
    augment: Augment = option("colour augmentation", default="strong")
    lr: float = option("peak learning rate", default=0.1, above=0)
    steps: int = option("optimizer steps", default=60000, least=1)
    batch: int = option("pairs or images per step, over all processes", default=64, least=1)
    micro_batch: int = option(
        "pairs or images per forward pass of one process; a step accumulates batch / micro-batch passes",
        default=8,
        least=1,
    )
    precision: Precision = option(
        "floating-point precision of the network; the contrast is always fp32", default="auto"
    )
    optim: OptimOptions = option("optimizer", default=OptimOptions())
    compute: ComputeOptions = option("use of the hardware", default=ComputeOptions())

    @property
    def accumulate(self) -> int:
        """Forward passes per optimizer step."""
        return self.batch // self.micro_batch

    def pass_size(self, world: int) -> int:
        """Pairs or images a forward pass of each of ``world`` processes."""
        return self.micro_batch

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = super().problems()
        if not found and self.batch % self.micro_batch:
            found.append(f"--batch {self.batch} is not a multiple of --micro-batch {self.micro_batch}")
        if not TUNING.fullmatch(self.tune):
            found.append(f"--tune {self.tune}: unknown. Choices: {TUNINGS}")
        return found


class TrainSettings(TrainFields):
    """What every training run has, resolved: presets and what the user gave."""

    own: Mapping[str, Any] = option(
        "options of the objectives, the task and the encoder in use, by their names",
        default_factory=dict,
        is_flag=False,
    )

    def stated(self) -> dict[str, Any]:
        """Every value as a file holds it: groups nested, options of what is in use under its name."""
        values = self.plain()
        return values | values.pop("own")

    @property
    def of_encoder(self) -> Options | None:
        """Options of the encoder; None where it has none."""
        return self.own.get(self.encoder)

    seed: int = option(
        "random seed for initialization, shuffling, augmentation and the choice of points",
        default=0,
        least=0,
        below=2**32,
    )


class CallOptions(Options):
    """What belongs to a call and not to its run: it may change when a run is continued."""

    told_together = True

    preset: str = option(
        "name of a preset, or the path of a YAML file of options; several joined by commas are merged from left to "
        "right, later ones override",
        default="quick",
    )
    run: AnyPath | None = option("folder of this run; default: runs/ plus the name of the data", default=None)
    resume: bool = option("continue the run in that folder exactly from its checkpoint", default=False)
    workers: int = option("processes that load data, for each training process", default=1, least=0)
    devices: int = option(
        "processes on this machine, one per GPU; leave it out with torchrun and srun", default=1, least=1
    )
    nodes: int = option("machines", default=1, least=1)
    wandb: str | None = option("project of Weights & Biases to log to, in addition", default=None)
    checkpoint: CheckpointOptions = option("checkpoints", default=CheckpointOptions())
    options: Sequence[Options] = option(
        "options of objectives, of the task or of the encoder, as in [MocoOptions(queue=128)]; --moco.queue 128 on "
        "the command line",
        default=(),
        is_flag=False,
    )


class ScoringOptions(Options):
    """Measuring while a run trains."""

    group = "validation"

    every: int = option(
        "steps between measurements on held-out pairs or validation images; 0: no measurements", default=1000, least=0
    )


class ValidationOptions(ScoringOptions):
    """Measuring while a run trains."""

    pairs: int = option(
        "number of held-out pairs to measure on, sampled with the seed, balanced over the viewing angles",
        default=256,
        least=1,
    )
    take: Literal["auto", "best", "last"] = option(
        "network to save as the result: best (highest measured gain, possibly the initial one), or last; auto: "
        "best if the run does not begin from scratch and frames are held out",
        default="auto",
    )
    stop: float = option(
        "early stopping of runs that do not begin from scratch: the fraction by which every measure must be worse "
        "than initially at two measurements in a row; 0: never",
        default=0.05,
        least=0,
    )

"""Short names for the options of training in tests: ``queue`` of moco is ``moco_queue`` and needs no object."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pri3d
from pri3d.api.finetune import FinetuneOptions, FinetuneSettings, resolve_finetuning
from pri3d.api.plugins import gathered, options_class
from pri3d.api.presets import current
from pri3d.api.pretrain import (
    ContrastOptions,
    MatchingOptions,
    PretrainOptions,
    PretrainSettings,
    resolve_pretraining,
)


def pretrain(data: str | os.PathLike[str] | Sequence[os.PathLike[str]], *preset: str, **options: Any) -> pri3d.runs.Run:
    """:func:`pri3d.pretrain`."""
    named = {"preset": preset[0]} if preset else {}
    given = gathered("objectives", PretrainOptions, current({**named, **_known(options)}, "pretrain"))
    return pri3d.pretrain(data, **given)


def finetune(task: str, data: str | os.PathLike[str], **options: Any) -> Any:
    """:func:`pri3d.finetune`."""
    return pri3d.finetune(task, data, **gathered("tasks", FinetuneOptions, current(_known(options), task)))


def pretraining(preset: str = "quick", **options: Any) -> PretrainSettings:
    """Settings of a preset with options on top."""
    return resolve_pretraining(preset, _known(options))


def finetuning(task: str, preset: str = "quick", **options: Any) -> FinetuneSettings:
    """Settings of a task's preset with options on top."""
    return resolve_finetuning(task, preset, _known(options))


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def weighted(weights: Mapping[str, float], channels: int = 0, encoder: Any = None, **options: Any) -> Any:
    """A :class:`pri3d.objectives.WeightedSum`."""
    from pri3d.objectives import Setup, WeightedSum  # noqa: PLC0415 (this module stays light)

    given = current(options, "pretrain")
    contrast, matching = ContrastOptions(**given.pop("contrast", {})), MatchingOptions(**given.pop("matching", {}))
    own = {name: found(**group) for name, group in given.items() if (found := options_class("objectives", name))}
    return WeightedSum(weights, Setup(channels, encoder, contrast, matching), own)


def objective(name: str, **options: Any) -> Any:
    """The objective of that name."""
    return weighted({name: 1.0}, **options).terms[name]

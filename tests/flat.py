"""Short names for the options of training in tests: ``queue`` of moco is ``moco_queue`` and needs no object."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pri3d
from pri3d.api.finetune import FinetuneOptions, FinetuneSettings, resolve_finetuning
from pri3d.api.plugins import gathered
from pri3d.api.presets import current
from pri3d.api.pretrain import PretrainOptions, PretrainSettings, resolve_pretraining


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

"""Downstream tasks: training, prediction and evaluation of a network on a backbone.

A task is one file: its options, a class of fields, a :class:`Recipe` that says what they mean, and a :class:`Task`. Its
presets lie beside it in ``presets/NAME``. To add one, write such a file and one line in ``registry.TASKS`` (or an entry
point ``pri3d.tasks``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from pri3d import registry
from pri3d.errors import ConfigError, WeightsError
from pri3d.networks.state_files import find_file
from pri3d.networks.weights import read_provenance
from pri3d.runs import RunPaths
from pri3d.tasks.base import (
    Meter,
    Predictions,
    Recipe,
    Task,
    Words,
    batches,
    evaluating,
    in_groups,
    prediction_batch,
)

__all__ = [
    "Meter",
    "Predictions",
    "Recipe",
    "Task",
    "Trained",
    "Which",
    "Words",
    "batches",
    "differing",
    "evaluating",
    "find_task",
    "find_weights",
    "hash_file",
    "in_groups",
    "load_task",
    "prediction_batch",
    "task_of",
]

Which = Literal["last", "best"]
_LISTED = 5  # names that a message lists


def find_task(name: str) -> type[Task]:
    """Task of a name: a built-in one or that of an installed package. Raises ConfigError, listing the choices."""
    found: type[Task] = registry.load("tasks", registry.TASKS, name)
    if found.name != name:
        raise ConfigError(f"task {name!r}: its class {found.__name__} has the name {found.name!r}. Make them one.")
    return found


def task_of(provenance: Mapping[str, Any]) -> str:
    """Name of the task of a fine-tuning run; the first runs had but one, and do not say it."""
    return str(provenance.get("task", "semantic"))


class Trained(NamedTuple):
    """A network that was fine-tuned, in eval mode."""

    task: Task
    model: nn.Module
    record: dict[str, Any]  #: what the file says of itself
    file: Path

    @property
    def hash(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return hash_file(self.file)

    def to_device(self) -> Trained:
        """Move the network to the GPU where there is one."""
        self.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return self


def load_task(path: Path) -> Trained:
    """Read the network of a fine-tuning run's folder, or of one of its weights files, on the CPU.

    Raises WeightsError where the file holds something else, ConfigError where its task is not installed.
    """
    record = read_provenance(path)
    if "task" not in record:
        raise WeightsError(f"{path}: not a fine-tuned network. Give the run folder of `pri3d finetune`.")
    task, model = find_task(str(record["task"])).load(path, record)
    return Trained(task, model, record, find_file(path))


def find_weights(run: Path, which: Which) -> Path:
    """File of a run's last or best network. Raises WeightsError where there is none, saying what lies there instead."""
    paths = RunPaths(run)
    file = paths.best if which == "best" else paths.weights
    if file.is_file():
        return file
    if not run.exists():
        raise WeightsError(f"{run}: no such folder. Give the run folder of `pri3d finetune`.")
    inside = sorted(path.parent.name for path in run.glob(f"*/{file.name}"))
    if inside:
        raise WeightsError(f"{run}: holds several runs ({', '.join(inside[:5])}). Give one of them.")
    if which == "best" and paths.weights.is_file():
        raise WeightsError(f"{run}: has no best network, since it was not validated. Use the last one.")
    raise WeightsError(f"{run}: has no {file.name}. Give the folder of a finished run of `pri3d finetune`.")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(first: Sequence[str], second: Sequence[str]) -> str:
    """What is different between two lists of class names, for a message; empty where nothing is.

    Such as "the first alone has lamp, rug; the second alone has wall, bed, desk, door, sofa and 8 more", or where one
    is the other in another order, the first class that is not the same.
    """
    parts = []
    for which, own, other in (("first", first, second), ("second", second, first)):
        alone = list((Counter(own) - Counter(other)).elements())
        more = f" and {len(alone) - _LISTED} more" if len(alone) > _LISTED else ""
        if alone:
            parts.append(f"the {which} alone has {', '.join(alone[:_LISTED])}{more}")
    if not parts:  # one list is the other in another order
        moved = [(k, two) for k, two in enumerate(zip(first, second, strict=True)) if two[0] != two[1]]
        parts = [f"class {k} is {a} in the first and {b} in the second" for k, (a, b) in moved[:1]]
    return "; ".join(parts)

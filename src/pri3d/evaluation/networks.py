"""The networks a fine-tuning run has left."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from pri3d.errors import WeightsError
from pri3d.runs import RunPaths
from pri3d.tasks import Task, load_task

Which = Literal["last", "best"]


class Network(NamedTuple):
    """A fine-tuned network, ready to predict."""

    which: Which  #: of the run's two
    path: Path  #: its file
    hash: str  #: SHA-256 of the file
    task: Task
    model: nn.Module  #: in eval mode, on the GPU where there is one
    size: str | None  #: WIDTHxHEIGHT it was trained at, None where images keep theirs


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
        raise WeightsError(f"{run}: has no best network, for it was not validated. Take the last one, which is there.")
    raise WeightsError(f"{run}: has no {file.name}. Give the folder of a finished run of `pri3d finetune`.")


def open_network(path: Path, which: Which) -> Network:
    """Load a network of :func:`find_weights`. Raises WeightsError where the file is damaged or something else."""
    task, model, record = load_task(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    digest = hash_file(path)
    size = record.get("size")
    return Network(which, path, digest, task, model.to(device).eval(), None if size is None else str(size))


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

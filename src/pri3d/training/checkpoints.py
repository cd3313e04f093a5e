"""Where a training run stands: begun or continued in its folder, and how many steps its checkpoint has behind it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch

import pri3d
from pri3d.api.training import TrainSettings
from pri3d.errors import WeightsError
from pri3d.runs import RunPaths


def open_run(
    run: RunPaths, verb: str, settings: TrainSettings, provenance: Mapping[str, Any], resume: bool, rank: int = 0
) -> int:
    """Begin the run in its folder, or check that the folder holds this very run, and say how many steps are done.

    Of several processes only the one of ``rank`` 0 writes and compares. Raises as :meth:`RunPaths.open`, and
    WeightsError where the checkpoint is damaged.
    """
    if rank == 0:
        versions = {"pri3d": pri3d.__version__, "torch": str(torch.__version__)}
        run.open(verb, settings.stated(), {**provenance, **versions}, resume)
    return steps_done(run) if resume else 0


def steps_done(run: RunPaths) -> int:
    """Steps that the run's checkpoint has behind it, 0 without one. Raises WeightsError where it is damaged."""
    if not run.checkpoint.exists():
        return 0
    try:
        return int(torch.load(run.checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        older = [path.name for path in run.all_older()]
        instead = f"Put {older[-1]} in its place, or delete all to start" if older else "Delete it to start"
        raise WeightsError(f"{run.checkpoint}: damaged ({error}). {instead} this run anew.") from error

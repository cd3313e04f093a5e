"""Start and continuation of a training run in its folder, and its atomic checkpoints."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import pri3d
from pri3d.api.training import TrainSettings
from pri3d.errors import DataError, WeightsError, first_line
from pri3d.networks.state_files import is_sound_archive
from pri3d.runs import RunPaths

#: what of the file is the gradient scaler's under fp16
_SCALER = "MixedPrecision"


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
    return int(_read(run, mmap=True)["global_step"]) if resume and run.checkpoint.exists() else 0


class Checkpoint:
    """Everything needed to continue a run: network, optimizer, schedule, gradient scaler, steps done.

    The names in the file are those that Lightning's Trainer gave them, so that runs it has written continue too.
    """

    def __init__(
        self,
        fabric: Fabric,
        run: RunPaths,
        module: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        done: int,
        keep: int,
        idle: str | None = None,
    ) -> None:
        """Of the checkpoints of a run, the last of which is of step ``done``, ``keep`` stay.

        ``idle``: beginning of the names of parameters that nothing uses, which the file does without.
        """
        self.fabric, self.run, self.module, self.optimizer, self.schedule = fabric, run, module, optimizer, schedule
        self.saved, self.keep, self.idle = done, keep, idle

    def load(self) -> None:
        """Bring all parts to where the file stands. Raises WeightsError where it is damaged or of another network."""
        state = _read(self.run)
        try:
            own = self.module.state_dict()
            kept = {key: value for key, value in own.items() if self._is_idle(key)}
            self.module.load_state_dict({**kept, **state["state_dict"]})
            self.optimizer.load_state_dict(state["optimizer_states"][0])
            self.schedule.load_state_dict(state["lr_schedulers"][0])
            self.fabric.strategy.precision.load_state_dict(state.get(_SCALER, {}))
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(
                f"{self.run.checkpoint}: not a checkpoint of this run ({error}). Continue it with the version of pri3d "
                "that wrote it, or choose another --run."
            ) from error

    def save(self, step: int) -> None:
        """Write the file; a kill at any moment leaves the old one or the new one, whole. Raises DataError."""
        if self.fabric.is_global_zero:
            path = self.run.checkpoint
            part = path.with_name(path.name + ".tmp")
            try:
                self._write(part, step)
            except (OSError, RuntimeError) as error:
                part.unlink(missing_ok=True)
                text = f"{path}: cannot be written ({error}). Make room, then continue with --resume."
                raise DataError(text) from error
            if self.keep > 1 and path.exists():
                older = self.run.older(self.saved)
                older.unlink(missing_ok=True)
                try:
                    os.link(path, older)
                except OSError:  # a copy where the file system has no links
                    shutil.copy2(path, older)
            part.replace(path)
            for old in self.run.all_older()[: -(self.keep - 1) or None]:
                old.unlink()
        self.saved = step
        self.fabric.barrier("the checkpoint is in place")  # a process that ends earlier may take the writing one along

    def _is_idle(self, key: str) -> bool:
        return self.idle is not None and key.startswith(self.idle)

    def _write(self, path: Path, step: int) -> None:
        scaler = self.fabric.strategy.precision.state_dict()
        state = {
            "global_step": step,
            "state_dict": {key: v for key, v in self.module.state_dict().items() if not self._is_idle(key)},
            "optimizer_states": [self.optimizer.state_dict()],
            "lr_schedulers": [self.schedule.state_dict()],
        }
        buffer = io.BytesIO()  # PyTorch's own writer says of a full disk that a file "failed writing"
        torch.save(state | ({_SCALER: scaler} if scaler else {}), buffer)
        with path.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())


def _read(run: RunPaths, mmap: bool = False) -> dict[str, Any]:
    """The run's checkpoint on the CPU, its checksums verified; mapped, its tensors are read when they are used.

    Raises WeightsError where it is damaged.
    """
    try:
        if not is_sound_archive(run.checkpoint):
            raise ValueError("no zip archive, as PyTorch writes them")
        state: dict[str, Any] = torch.load(run.checkpoint, map_location="cpu", weights_only=True, mmap=mmap)
        int(state["global_step"])
    except Exception as error:  # whatever bytes may make torch raise
        older = [path.name for path in run.all_older()]
        instead = f"Put {older[-1]} in its place, or delete all to start" if older else "Delete it to start"
        raise WeightsError(f"{run.checkpoint}: damaged ({first_line(error)}). {instead} this run anew.") from error
    return state

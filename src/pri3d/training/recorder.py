"""What a run tells about itself: metrics, progress, checkpoints, and the frames of a batch that spoils it."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pri3d.api.training import TrainSettings
from pri3d.errors import DataError, Pri3DError
from pri3d.machine import peak_memory
from pri3d.runs import MetricsFile, RunPaths
from pri3d.training.launch import Options, requeue

#: Scores that the progress line shows.
SHOWN = ("heldout/recall", "heldout/miou", "heldout/AP", "heldout/box_AP")


class Recorder(Callback):
    """After every optimizer step: metrics.csv and the loggers, a line of progress, checkpoint, a wish to stop, NaN.

    Values stay on the device; they are fetched, and averaged over the processes, every ``log_every`` steps.
    """

    def __init__(
        self, run: RunPaths, settings: TrainSettings, done: int, options: Options, say: Callable[[str], None]
    ) -> None:
        self.run, self.settings, self.options, self.say = run, settings, options, say
        self.log_every = max(1, min(10, settings.steps // 50))
        self.line_every = max(1, settings.steps // 20)
        self.first, self.saved = done, done
        self.stop: str | None = None  #: the signal that asked for it, once all processes have agreed
        self.job: str | None = None  #: number of the Slurm job that goes on
        self._wish: str | None = None
        self.take_signals: Callable[[], None] | None = None
        self.metrics: MetricsFile | None = None
        self._values: dict[str, Tensor] = {}  # of the present step
        self._passes: list[tuple[int, list[str], Tensor]] = []  # since the last log: step, frames, loss
        self._began = self._logged = self._idle_since = time.perf_counter()
        self._waited = 0.0

    def interrupt(self, name: str) -> None:
        """Finish the step, save, stop, because of the signal of that name."""
        self._wish = name
        # A signal falls into the middle of anything, of printing too: nothing but a plain write is safe here.
        if self.options.launch.rank == 0:
            text = f"{name}: stopping after this step; CTRL-C stops at once, back to the last checkpoint\n"
            os.write(2, text.encode())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the table, start the clocks, and take SIGTERM back, whose handler Lightning has replaced by now."""
        if self.take_signals is not None:
            self.take_signals()
        first = torch.tensor([self.first, -self.first], dtype=torch.float64, device=pl_module.device)
        latest, earliest = trainer.strategy.reduce(first, reduce_op="max").tolist()
        if latest != -earliest:
            raise DataError(
                f"{self.run.path}: some processes see a checkpoint of step {latest:.0f}, some of {-earliest:.0f}. "
                "Put the run into a folder that all machines share."
            )
        if trainer.is_global_zero:
            self.metrics = MetricsFile(self.run.metrics, self.first)
        self._began = self._logged = self._idle_since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Add the time since the last pass ended: what the loader kept the step waiting."""
        self._waited += time.perf_counter() - self._idle_since

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Norm of the whole gradient; under fp16 it is unscaled already."""
        self._values["grad_norm"] = _norm([p.grad for p in pl_module.parameters() if p.grad is not None])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Collect a forward pass; at the last one of a step, where a checkpoint is exact, log and save."""
        for name, value in outputs["log"].items():
            self._values[name] = self._values.get(name, 0) + value / pl_module.passes_per_step
        self._passes.append((batch_idx // pl_module.passes_per_step + 1, outputs["names"], outputs["log"]["loss"]))
        if (batch_idx + 1) % pl_module.passes_per_step == 0:
            pl_module.after_step()
            self._end_step(trainer, pl_module)
            self._values = {}
        self._idle_since = time.perf_counter()

    def _end_step(self, trainer: pl.Trainer, module: Any) -> None:
        step = trainer.global_step
        saving = step % self.options.save_every == 0 or step == self.settings.steps
        logging = saving or step % self.log_every == 0 or bool(module.notes)
        # Several processes must stop at the same step: they agree where they exchange values anyway.
        if trainer.world_size == 1:
            self.stop = self._wish
        if logging or self.stop:
            self._log(trainer, module, step)
            if saving or self.stop:
                self._save(trainer, module, step)
            if self.stop and step < self.settings.steps:
                self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> None:
        """End the run here, all processes together: the first to go may take the others along."""
        trainer.should_stop = True
        if trainer.is_global_zero and self.stop == "SIGUSR1":
            self.job = requeue()
        trainer.strategy.barrier("the run stops")

    def _log(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        values = self._fetch(trainer)
        self._refuse_nonsense(values, step)
        now = time.perf_counter()
        rate = (step - self.first) / max(1e-9, now - self._began)
        values |= {
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "samples_per_s": rate * self.settings.batch,
            "data_wait": self._waited / max(1e-9, now - self._logged),
            "memory_mb": peak_memory(),
            "minutes_left": (self.settings.steps - step) / max(rate, 1e-9) / 60,
            **module.notes,
        }
        self._logged, self._waited, module.notes = now, 0.0, {}
        if self.metrics is None:  # another process writes
            return
        self.metrics.append(step, values)
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
        if step % self.line_every < self.log_every or step == self.settings.steps:
            self.say(self._line(step, values))

    def _fetch(self, trainer: pl.Trainer) -> dict[str, float]:
        """Values of the step as numbers: one transfer, and one exchange where there are several processes.

        Raises Pri3DError in every process where the loss of any is not finite.
        """
        names = list(self._values)
        stack = torch.stack([torch.as_tensor(self._values[name]).float() for name in names])
        bad = self._first_bad()
        if trainer.world_size > 1:
            # With them, two numbers for each process: the signal that asked it to stop, and its first bad step.
            own = stack.new_zeros(2, trainer.world_size)
            own[0, trainer.global_rank] = 0 if self._wish is None else int(signal.Signals[self._wish])
            own[1, trainer.global_rank] = bad[0] if bad else 0
            stack = trainer.strategy.reduce(torch.cat((stack, own.flatten() * trainer.world_size)), reduce_op="mean")
            signals, steps = stack[len(names) :].view(2, -1).round().int().tolist()
            asked = {signal.Signals(number).name for number in signals if number}
            self.stop = "SIGUSR1" if "SIGUSR1" in asked else next(iter(sorted(asked)), None)  # the former requeues
            if any(steps):
                found: list[tuple[int, str] | None] = [None] * trainer.world_size
                torch.distributed.all_gather_object(found, bad)
                bad = min(each for each in found if each)
        if bad:
            raise Pri3DError(f"step {bad[0]}: {bad[1]}. {self._advice()}")
        return dict(zip(names, stack.tolist(), strict=False))

    def _first_bad(self) -> tuple[int, str] | None:
        """Step and description of this process's first pass since the last log whose loss is not finite."""
        passes, self._passes = self._passes, []
        losses = torch.stack([loss for _, _, loss in passes]).tolist()
        bad = (
            (step, f"the loss is {loss}, frames {', '.join(frames)}")
            for (step, frames, _), loss in zip(passes, losses, strict=True)
            if not math.isfinite(loss)
        )
        return next(bad, None)

    def _refuse_nonsense(self, values: dict[str, float], step: int) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        # A scaler that finds an infinite gradient leaves the step out and halves the scale: that is its work.
        if bad and not (bad == ["grad_norm"] and self.settings.precision == "fp16"):
            raise Pri3DError(f"step {step}: {', '.join(bad)} not finite. {self._advice()}")

    def _line(self, step: int, values: dict[str, float]) -> str:
        notes = "".join(f"  {name} {values[name]:.3f}" for name in SHOWN if name in values)
        return (
            f"{self.run.path.name}: step {step}/{self.settings.steps}  loss {values['loss']:.3f}{notes}  "
            f"{values['samples_per_s']:.1f} samples/s  data {values['data_wait']:.0%}  "
            f"{values['memory_mb'] / 1000:.1f} GB  {values['minutes_left']:.1f} min left"
        )

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if not has_finite_weights(module):
            raise Pri3DError(f"step {step}: the weights are not finite any more. {self._advice()}")
        save_checkpoint(trainer, self.run, self.saved, self.options.keep)
        self.saved = step

    def _advice(self) -> str:
        kept = f" {self.run.checkpoint} holds the last good step." if self.run.checkpoint.exists() else ""
        return f"Lower --lr or use --precision fp32.{kept}"


def save_checkpoint(trainer: pl.Trainer, run: RunPaths, before: int, keep: int) -> None:
    """Write everything needed to continue; a kill at any moment leaves the old file or the new one, whole.

    Of the older checkpoints, the last of which is of step ``before``, ``keep`` - 1 stay.
    """
    path = run.checkpoint
    temporary = path.with_name(path.name + ".tmp")
    try:
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        if trainer.is_global_zero:  # the file is that process's
            temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error}). Make room, then continue with --resume.") from error
    if trainer.is_global_zero:
        if keep > 1 and path.exists():
            _second_name(path, run.older(before))
        temporary.replace(path)
        for old in run.all_older()[: -(keep - 1) or None]:
            old.unlink()
    trainer.strategy.barrier("the checkpoint is in place")  # a process that ends earlier may take the writing one along


def has_finite_weights(module: torch.nn.Module) -> bool:
    """Tell whether every parameter is a number; waits for the device."""
    return bool(_norm(list(module.parameters())).isfinite())


def _second_name(path: Path, name: Path) -> None:
    """Keep a file under another name too; a copy where the file system has no links."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        shutil.copy2(path, name)


def _norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, on the device."""
    if not tensors:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(tensors))))
    return norm

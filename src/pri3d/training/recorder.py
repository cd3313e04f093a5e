"""Records of a run: metrics, progress, stop requests, and the frames of a batch that produced NaN."""

from __future__ import annotations

import math
import os
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn

from pri3d.api.training import TrainSettings
from pri3d.errors import DataError, Pri3DError
from pri3d.machine import cores, peak_memory
from pri3d.runs import MetricsFile, RunPaths
from pri3d.terminal import Terminal
from pri3d.training.launch import CallSetup

#: Scores that the progress line shows.
SHOWN = ("heldout/gain", "heldout/recall", "heldout/miou", "heldout/AP", "heldout/box_AP")


class DataWait:
    """Explains once why training waits for its loader: after three logs in a row with more than 30 % of the time."""

    def __init__(self, workers: int, cores: int) -> None:
        self._more = workers < cores - 1
        self._workers, self._logs, self._done = workers, 0, False

    def advise(self, fraction: float) -> str:
        """What to do, of the fraction of the time since the last log; empty where there is nothing to say."""
        self._logs = self._logs + 1 if fraction > 0.3 else 0
        if self._done or self._logs < 3:
            return ""
        self._done = True
        fix = f"give more than {self._workers} --workers" if self._more else "use a local disk, or a smaller --size"
        return f"training waits for data {fraction:.0%} of the time: {fix}"


class Recorder:
    """After every optimizer step: metrics.csv and the loggers, a line of progress, a wish to stop, NaN.

    Values stay on the device; they are fetched, and averaged over the processes, every ``log_every`` steps.
    """

    def __init__(self, fabric: Fabric, run: RunPaths, settings: TrainSettings, done: int, options: CallSetup) -> None:
        """Open the table and start the clocks. Raises DataError where the processes do not see one checkpoint."""
        self.fabric, self.run, self.settings, self.options, self.first = fabric, run, settings, options, done
        self.log_every = max(1, min(10, settings.steps // 50))
        self.line_every = max(1, settings.steps // 20)
        self.stop: str | None = None  #: the signal that asked for it, once all processes have agreed
        self.due = False  #: whether a checkpoint is wanted by the first process's clock, once all have agreed
        self._wish: str | None = None
        steps = torch.tensor([done, -done], dtype=torch.float64, device=fabric.device)
        latest, earliest = fabric.all_reduce(steps, reduce_op="max").tolist()  # type: ignore[union-attr]
        if latest != -earliest:
            raise DataError(
                f"{run.path}: some processes see a checkpoint of step {latest:.0f}, some of {-earliest:.0f}. "
                "Put the run into a folder that all machines share."
            )
        self.metrics: MetricsFile | None = None  # another process writes
        self.loggers: list[Any] = []
        if fabric.is_global_zero:
            self.metrics = MetricsFile(run.metrics, done)
            self.loggers = [TensorBoardLogger(run.path, name="tensorboard", version="")]
            if options.wandb is not None:
                from lightning.pytorch.loggers import WandbLogger  # noqa: PLC0415 (brings all of lightning.pytorch)

                self.loggers.append(WandbLogger(name=run.path.name, project=options.wandb, save_dir=run.path))
        self.say = Terminal(stderr=True, highlight=False, soft_wrap=True, quiet=not fabric.is_global_zero).print
        self._values: dict[str, Tensor] = {}  # of the present step
        self._passes: list[tuple[int, list[str], Tensor]] = []  # since the last log: step, frames, loss
        self._began = self._logged = time.perf_counter()
        self._waited = 0.0
        self._told = False  # how long it takes
        self._data_wait = DataWait(options.workers, cores())
        self.begin_interval()

    def begin_interval(self) -> None:
        """Begin the minutes until the next checkpoint."""
        self.due, self._saved = False, time.perf_counter()

    def _wants_checkpoint(self) -> bool:
        return time.perf_counter() - self._saved >= 60 * self.options.save_minutes

    def interrupt(self, name: str) -> None:
        """Finish the step, save, stop, because of the signal of that name."""
        self._wish = name
        # A signal falls into the middle of anything, of printing too: nothing but a plain write is safe here.
        if self.options.launch.rank == 0:
            text = f"{name}: stopping after this step; CTRL-C stops at once, back to the last checkpoint\n"
            try:
                os.write(2, text.encode())
            except OSError:  # the terminal is closed: what is said from here on has no reader, and must not fail
                nowhere = os.open(os.devnull, os.O_WRONLY)
                for number in (1, 2):
                    if stat.S_ISCHR(os.fstat(number).st_mode):
                        os.dup2(nowhere, number)
                os.close(nowhere)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in which the loader keeps the step waiting."""
        since = time.perf_counter()
        yield
        self._waited += time.perf_counter() - since

    def add(self, name: str, value: Tensor) -> None:
        """A value of the present step."""
        self._values[name] = self._values.get(name, 0) + value

    def add_pass(self, step: int, names: list[str], loss: Tensor, log: Mapping[str, Tensor], passes: int) -> None:
        """A forward pass, one of ``passes`` of the step: the frames it saw, its loss and what else is logged."""
        for name, value in {"loss": loss, **log}.items():
            self.add(name, value / passes)
        self._passes.append((step, names, loss))

    def end_step(self, step: int, lr: float, notes: Mapping[str, float], needed: bool) -> None:
        """Log the step where it is its turn, or ``needed``, or there is a wish to stop.

        Several processes must stop, and save, at the same step: they agree on :attr:`stop` and :attr:`due` where they
        exchange values anyway.
        Raises Pri3DError in every process where a loss or a value is not finite.
        """
        if self.fabric.world_size == 1:
            self.stop, self.due = self._wish, self._wants_checkpoint()
        if needed or self.stop or step % self.log_every == 0:
            values = self._fetch()
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            # A scaler that finds an infinite gradient leaves the step out and halves the scale: that is its work.
            if bad and not (bad == ["grad_norm"] and self.settings.precision == "fp16"):
                raise Pri3DError(f"step {step}: {', '.join(bad)} not finite. {self._advice()}")
            now = time.perf_counter()
            rate = (step - self.first) / max(1e-9, now - self._began)
            values |= {
                "lr": lr,
                "samples_per_s": rate * self.settings.batch,
                "data_wait": self._waited / max(1e-9, now - self._logged),
                "memory_mb": peak_memory(),
                "minutes_left": (self.settings.steps - step) / max(rate, 1e-9) / 60,
                **notes,
            }
            self._logged, self._waited = now, 0.0
            if not self._told and step - self.first >= 3 and values["minutes_left"] >= 1:
                self.say(f"{self.run.path.name}: about {values['minutes_left']:.0f} minutes for the steps that remain")
            self._told = self._told or step - self.first >= 3
            if advice := self._data_wait.advise(values["data_wait"]):
                self.say(f"{self.run.path.name}: {advice}")
            self._write(step, values)
        self._values = {}

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self.metrics is None:
            return
        self.metrics.append(step, values)
        for logger in self.loggers:
            logger.log_metrics(values, step)
        if step % self.line_every < self.log_every or step == self.settings.steps:
            shown = "".join(f"  {name} {values[name]:.3f}" for name in SHOWN if name in values)
            self.say(
                f"{self.run.path.name}: step {step}/{self.settings.steps}  loss {values['loss']:.3f}{shown}  "
                f"{values['samples_per_s']:.1f} samples/s  data wait {values['data_wait']:.0%}  "
                f"{values['memory_mb'] / 1000:.1f} GB  {values['minutes_left']:.1f} min left"
            )

    def _fetch(self) -> dict[str, float]:
        """Values of the step as numbers: one transfer, and one exchange where there are several processes."""
        fabric, names = self.fabric, list(self._values)
        stack = torch.stack([torch.as_tensor(self._values[name]).float() for name in names])
        # Step and description of this process's first pass since the last log whose loss is not finite.
        passes, self._passes = self._passes, []
        losses = torch.stack([loss for _, _, loss in passes]).tolist()
        wrong = (
            (step, f"the loss is {loss}, frames {', '.join(frames)}")
            for (step, frames, _), loss in zip(passes, losses, strict=True)
            if not math.isfinite(loss)
        )
        bad = next(wrong, None)
        if fabric.world_size > 1:
            # With them, numbers of each process: the signal that asked it to stop, its first bad step, and whether a
            # checkpoint is due.
            own = stack.new_zeros(3, fabric.world_size)
            own[0, fabric.global_rank] = 0 if self._wish is None else int(signal.Signals[self._wish])
            own[1, fabric.global_rank] = bad[0] if bad else 0
            own[2, fabric.global_rank] = self._wants_checkpoint()
            stack = torch.cat((stack, own.flatten() * fabric.world_size))
            stack = fabric.all_reduce(stack, reduce_op="mean")  # type: ignore[assignment]
            signals, steps, due = stack[len(names) :].view(3, -1).round().int().tolist()
            self.due = bool(due[0])
            asked = {signal.Signals(number).name for number in signals if number}
            self.stop = "SIGUSR1" if "SIGUSR1" in asked else next(iter(sorted(asked)), None)  # the former requeues
            if any(steps):
                found: list[tuple[int, str] | None] = [None] * fabric.world_size
                torch.distributed.all_gather_object(found, bad)
                bad = min(each for each in found if each)
        if bad:
            raise Pri3DError(f"step {bad[0]}: {bad[1]}. {self._advice()}")
        return dict(zip(names, stack.tolist(), strict=False))

    def refuse_broken(self, module: nn.Module, step: int) -> None:
        """Raise Pri3DError where the weights are no numbers: they must not be saved."""
        if not has_finite_weights(module):
            raise Pri3DError(f"step {step}: the weights are not finite any more. {self._advice()}")

    def close(self) -> None:
        """Write out what the loggers still hold."""
        for logger in self.loggers:
            logger.finalize("success")

    def _advice(self) -> str:
        kept = f" {self.run.checkpoint} holds the last good step." if self.run.checkpoint.exists() else ""
        return f"Lower --lr or use --precision fp32.{kept}"


def has_finite_weights(module: nn.Module) -> bool:
    """Tell whether every parameter is a number; waits for the device."""
    return bool(norm_of(list(module.parameters())).isfinite())


def norm_of(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, on the device."""
    if not tensors:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(tensors))))
    return norm

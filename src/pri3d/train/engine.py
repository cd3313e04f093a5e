"""One loop for every kind of training: Lightning's Trainer, exact resume, CTRL-C, metrics, checkpoints."""

from __future__ import annotations

import inspect
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pri3d.data.sampler import StreamSampler, derive
from pri3d.errors import Pri3DError
from pri3d.machine import cpu_has_bf16
from pri3d.train import optim
from pri3d.train.runs import MetricsFile, RunFolder
from pri3d.train.settings import Precision, TrainSettings


class InterruptedRunError(Pri3DError):
    """The user pressed CTRL-C; the checkpoint is written."""


class StepModule(pl.LightningModule):
    """Base of the two kinds of training: settings, optimizer, and one method to fill in."""

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        self.settings = settings

    def configure_optimizers(self) -> Any:
        """Optimizer and per-step schedule from the settings."""
        optimizer, schedule = optim.build(self.parameters(), self.settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a batch and named scalars to log."""
        raise TypeError(f"{type(self).__name__} must define loss(); it was given {type(batch).__name__}.")

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Lightning's hook; the log stays on the device until the recorder wants it."""
        # Networks with dropout or stochastic depth draw from the global generator: a resumed run repeats the draws.
        torch.manual_seed(derive(self.settings.seed, self.global_step, batch_idx))
        loss, log = self.loss(batch)
        return {"loss": loss, "log": {"loss": loss.detach(), **log}, "names": batch.names}


class Recorder(Callback):
    """After every optimizer step: metrics.csv and TensorBoard, a line of progress, checkpoint, CTRL-C, NaN.

    Values are fetched from the device only every ``log_every`` steps.
    """

    def __init__(
        self, run: RunFolder, settings: TrainSettings, done: int, every: int, say: Callable[[str], None]
    ) -> None:
        self.run, self.settings, self.say, self.save_every = run, settings, say, every
        self.log_every = max(1, min(10, settings.steps // 50))
        self.line_every = max(1, settings.steps // 20)
        self.metrics = MetricsFile(run.metrics, done)
        self.first, self.began, self.stop = done, time.perf_counter(), False
        self._sums: dict[str, Tensor] = {}
        self._passes = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """Finish the step, save, stop; a second CTRL-C stops at once."""
        self.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.say("stopping after this step; CTRL-C again stops at once, back to the last checkpoint")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record; only at the last forward pass of a step, where a checkpoint is exact."""
        self._collect(outputs["log"])
        if (batch_idx + 1) % self.settings.accumulate:
            return
        step = trainer.global_step
        last = step == self.settings.steps
        saving = step % self.save_every == 0 or last or self.stop
        if saving or step % self.log_every == 0:
            self._log(trainer, step, outputs["names"])
        self._sums, self._passes = {}, 0
        if saving:
            if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
                raise Pri3DError(f"step {step}: the weights are not finite any more. {self._advice()}")
            save_checkpoint(trainer, self.run.checkpoint)
        if self.stop:
            trainer.should_stop = True

    def _collect(self, log: Mapping[str, Tensor]) -> None:
        """Add up the forward passes of a step, on the device."""
        self._sums = {name: self._sums[name] + value if name in self._sums else value for name, value in log.items()}
        self._passes += 1

    def _log(self, trainer: pl.Trainer, step: int, names: list[str]) -> None:
        values = {name: float(value) / self._passes for name, value in self._sums.items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise Pri3DError(f"step {step}: {', '.join(bad)} not finite, frames {', '.join(names)}. {self._advice()}")
        rate = (step - self.first) / max(1e-9, time.perf_counter() - self.began)
        values |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], "samples_per_s": rate * self.settings.batch}
        self.metrics.append(step, values)
        if trainer.logger is not None:
            trainer.logger.log_metrics(values, step)
        if step % self.line_every < self.log_every or step == self.settings.steps:
            left = (self.settings.steps - step) / max(rate, 1e-9)
            self.say(
                f"{self.run.path.name}: step {step}/{self.settings.steps}  loss {values['loss']:.3f}  "
                f"{values['samples_per_s']:.1f} samples/s  {left / 60:.1f} min left"
            )

    def _advice(self) -> str:
        kept = f" {self.run.checkpoint} holds the last good step." if self.run.checkpoint.exists() else ""
        return f"Lower --lr or use --precision fp32.{kept}"


@contextmanager
def _ctrl_c(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Give CTRL-C to ``handler`` for a while; outside the main thread its owner keeps it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    except SystemExit as error:  # what Lightning makes of a KeyboardInterrupt
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, previous)


def save_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    """Write everything needed to continue, so that a kill at any moment leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    trainer.save_checkpoint(temporary)
    temporary.replace(path)


def resolve_precision(precision: Precision) -> Literal["32-true", "bf16-mixed"]:
    """Lightning's name of a precision; ``auto`` is bf16 where the hardware multiplies it, else fp32."""
    if precision == "fp32":
        return "32-true"
    if precision == "bf16":
        return "bf16-mixed"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else cpu_has_bf16()
    return "bf16-mixed" if native else "32-true"


def make_loader(
    dataset: Dataset[Any], sampler: StreamSampler, batch: int, collate: Callable[[list[Any]], Any], workers: int
) -> DataLoader[Any]:
    """Batches of a stream; workers hold their own file handles and stay until the stream ends."""
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def fit(
    module: StepModule,
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    run: RunFolder,
    done: int,
    seed: int,
    workers: int,
    extra: list[Callback],
    save_every: int = 100,
    say: Callable[[str], None] | None = None,
) -> None:
    """Train ``module`` until its settings' last step, from step ``done`` with the run's checkpoint where done > 0.

    Raises InterruptedRunError after CTRL-C, with the checkpoint written.
    """
    settings = module.settings
    # The progress lines say what a user needs; Lightning's own are about products and loaders that do not apply here.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch")
    say = say or Console(stderr=True, highlight=False, soft_wrap=True).print
    recorder = Recorder(run, settings, done, save_every, say)
    size = len(dataset)  # type: ignore[arg-type]
    sampler = StreamSampler(size, settings.steps * settings.batch, seed, start=done * settings.batch)
    trainer = pl.Trainer(
        max_steps=settings.steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        precision=resolve_precision(settings.precision),
        logger=TensorBoardLogger(run.path, name="tensorboard", version=""),
        callbacks=[*extra, recorder],  # what a checkpoint vouches for must be done before it
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1 << 30,
        num_sanity_val_steps=0,
        devices=1,
    )
    options: dict[str, Any] = {"ckpt_path": run.checkpoint if done else None}
    if "weights_only" in inspect.signature(trainer.fit).parameters:
        options["weights_only"] = True
    loader = make_loader(dataset, sampler, settings.micro_batch, collate, workers)
    with _ctrl_c(recorder.interrupt):
        trainer.fit(module, loader, **options)
    if recorder.stop and trainer.global_step < settings.steps:
        raise InterruptedRunError(f"stopped at step {trainer.global_step}. Continue with --resume --run {run.path}.")

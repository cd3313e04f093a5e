"""One loop for every kind of training: Lightning's Trainer, exact resume, one process or many."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pri3d.api.training import Precision, TrainSettings
from pri3d.data.sampler import Share, StreamSampler, derive
from pri3d.machine import cpu_has_bf16
from pri3d.runs import RunPaths
from pri3d.training import optim
from pri3d.training.launch import InterruptedRunError, Launch, Options, on_stop, outlive_stopping
from pri3d.training.recorder import Recorder

N = TypeVar("N", bound=torch.nn.Module)

#: Who started the processes -> Lightning's name for it. Requeueing is ours, with our checkpoint.
ENVIRONMENTS: dict[str, Callable[[], Any]] = {
    "torchrun": TorchElasticEnvironment,
    "srun": lambda: SLURMEnvironment(auto_requeue=False),
    "Lightning": LightningEnvironment,
}


def synchronised(network: N, settings: TrainSettings, launch: Launch) -> N:
    """Return the network with batch norms over all processes, where the settings ask for it and there are several.

    By timm's converter: PyTorch's, which is Lightning's, drops the activation inside timm's norms.
    """
    if not (settings.compute.sync_bn and launch.world > 1):
        return network
    converted: N = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


class StepModule(pl.LightningModule):
    """Base of the two kinds of training: settings, optimizer, and one method to fill in."""

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        self.settings = settings
        self.launch = Launch(0, 1, 1)
        self.notes: dict[str, float] = {}  #: for the next row of the metrics

    @property
    def passes_per_step(self) -> int:
        """Forward passes of this process in one optimizer step."""
        return self.settings.accumulate // self.launch.world

    def configure_optimizers(self) -> Any:
        """Optimizer and per-step schedule from the settings."""
        optimizer, schedule = optim.build(self.parameter_groups(), self.settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameter_groups(self) -> list[optim.ParameterGroup]:
        """What is trained, at which share of the learning rate."""
        return [optim.ParameterGroup(self.parameters())]

    @property
    def network(self) -> torch.nn.Module:
        """What is compiled where the user asks for it: fixed shapes go in."""
        raise TypeError(f"{type(self).__name__} must define network.")

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a batch and named scalars to log."""
        raise TypeError(f"{type(self).__name__} must define loss(); it was given {type(batch).__name__}.")

    def after_step(self) -> None:
        """Called after every optimizer step."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Lightning's hook; the log stays on the device until the recorder wants it."""
        # Networks with dropout or stochastic depth draw from the global generator: a resumed run repeats the draws,
        # and it does not matter how many processes share the passes of a step.
        share = batch_idx % self.passes_per_step * self.launch.world + self.launch.rank
        torch.manual_seed(derive(self.settings.seed, self.global_step, share))
        loss, log = self.loss(batch)
        return {"loss": loss, "log": {"loss": loss.detach(), **log}, "names": batch.names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the passes as this many processes would have, whatever number wrote the checkpoint."""
        done = checkpoint["global_step"] * self.passes_per_step
        loop = checkpoint["loops"]["fit_loop"]
        for progress in ("total", "current"):
            counts = loop["epoch_loop.batch_progress"][progress]
            counts.update(dict.fromkeys(counts, done))


class Feed(NamedTuple):
    """Where batches come from."""

    dataset: Dataset[Any]  #: asked with a Draw
    collate: Callable[[list[Any]], Any]  #: items -> batch
    sampler: Callable[[int, int], StreamSampler]  #: (total, start) -> positions start..total-1 of the stream


def resolve_precision(precision: Precision) -> str:
    """Lightning's name of a precision; ``auto`` is bf16 where the hardware multiplies it, else fp32."""
    if precision != "auto":
        return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision]
    native = torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else cpu_has_bf16()
    return "bf16-mixed" if native else "32-true"


def fit(module: StepModule, feed: Feed, run: RunPaths, done: int, options: Options, extra: Sequence[Callback]) -> None:
    """Train ``module`` until its settings' last step, from step ``done`` with the run's checkpoint where done > 0.

    Raises InterruptedRunError after a signal that asks to stop, with the checkpoint written.
    """
    settings = module.settings
    module.launch = options.launch
    # The progress lines say what a user needs; Lightning's own are about products and loaders that do not apply here.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch")
    say = Console(stderr=True, highlight=False, soft_wrap=True, quiet=options.launch.rank > 0).print
    recorder = Recorder(run, settings, done, options, say)
    trainer = _trainer(module, run, options, [*extra, recorder])  # what a checkpoint vouches for is done before it
    resume: dict[str, Any] = {"ckpt_path": run.checkpoint if done else None}
    if "weights_only" in inspect.signature(trainer.fit).parameters:
        resume["weights_only"] = True
    loader = _loader(module, feed, done, options)
    # Lightning has the processes ask each other before every pass whether one got SIGTERM, which waits for the GPU;
    # the recorder has them agree where they exchange values anyway.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    with on_stop(recorder.interrupt) as recorder.take_signals:
        trainer.fit(module, loader, **resume)
    if recorder.stop and trainer.global_step < settings.steps:
        text = f"{recorder.stop}: stopped at step {trainer.global_step}."
        if options.launch.starter == "Lightning" and options.launch.rank > 0:
            raise SystemExit(0)  # the first process is killed where one that it started ends otherwise
        if recorder.job is not None:
            raise InterruptedRunError(f"{text} Slurm job {recorder.job} is queued again; give its command --resume.")
        raise InterruptedRunError(f"{text} Continue with --resume --run {run.path}.")


def _loader(module: StepModule, feed: Feed, done: int, options: Options) -> DataLoader[Any]:
    """Batches from step ``done`` on; workers hold their own file handles and stay until the stream ends."""
    settings = module.settings
    start, total = done * settings.batch, settings.steps * settings.batch
    return DataLoader(
        feed.dataset,
        batch_size=settings.micro_batch,
        sampler=Share(feed.sampler(total, start), settings.micro_batch, options.launch.rank, options.launch.world),
        collate_fn=feed.collate,
        num_workers=options.workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=options.workers > 0,
        worker_init_fn=outlive_stopping,
        # Elsewhere each would import everything again, which takes as long as many steps.
        multiprocessing_context="fork" if options.workers > 0 and sys.platform == "linux" else None,
    )


def _trainer(module: StepModule, run: RunPaths, options: Options, callbacks: list[Callback]) -> pl.Trainer:
    settings, launch = module.settings, options.launch
    # Said, and not detected: inside a Slurm job Lightning takes everything for srun's.
    plugins: list[Any] = [ENVIRONMENTS[launch.starter]()]
    precision: Any = resolve_precision(settings.precision)
    if precision == "16-mixed":
        # Handed over as a plugin because Lightning would quietly take bf16 on a CPU.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        plugins.append(MixedPrecision("16-mixed", device, torch.amp.GradScaler(device)))
        precision = None
    if settings.compute.compile:
        module.network.compile()
    return pl.Trainer(
        max_steps=settings.steps,
        max_epochs=-1,
        accumulate_grad_batches=module.passes_per_step,
        precision=precision,
        plugins=plugins,
        logger=_loggers(run, options),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1 << 30,
        num_sanity_val_steps=0,
        devices=launch.devices,
        num_nodes=launch.nodes,
        # Every process keeps its own running statistics and an equal queue: nothing has to be sent at each pass.
        strategy=DDPStrategy(broadcast_buffers=False) if launch.world > 1 else "auto",
    )


def _loggers(run: RunPaths, options: Options) -> list[Logger]:
    """TensorBoard always, Weights & Biases where it is asked for; metrics.csv is the recorder's."""
    if options.launch.rank > 0:
        return []
    loggers: list[Logger] = [TensorBoardLogger(run.path, name="tensorboard", version="")]
    if options.wandb is not None:
        loggers.append(WandbLogger(name=run.path.name, project=options.wandb, save_dir=run.path))
    return loggers

"""The training loop, from the first batch to the last checkpoint; one process or many, by Fabric."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.plugins.precision.amp import MixedPrecision
from lightning.fabric.strategies.ddp import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d.api.training import Precision, TrainSettings
from pri3d.data.loading import make_loader, name_killed_loaders
from pri3d.data.sampler import Share, StreamSampler, derive
from pri3d.machine import prefers_bf16
from pri3d.runs import RunPaths
from pri3d.tasks import Meter
from pri3d.training import optim
from pri3d.training.checkpoints import Checkpoint
from pri3d.training.launch import CallSetup, InterruptedRunError, Launch, on_stop, requeue
from pri3d.training.recorder import Recorder, norm_of
from pri3d.training.watch import Watch

N = TypeVar("N", bound=nn.Module)

#: Who started the processes -> Lightning's name for it. Requeueing is ours, with our checkpoint.
ENVIRONMENTS: dict[str, Callable[[], Any]] = {
    "torchrun": TorchElasticEnvironment,
    "srun": lambda: SLURMEnvironment(auto_requeue=False),
    "Lightning": LightningEnvironment,
}


class StepModule(nn.Module, ABC):
    """Base of the two kinds of training: a network under its loss, and how it is scored."""

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        self.settings = settings
        self.step = 0  #: optimizer steps that are done
        self.idle: str | None = None  #: beginning of the names of parameters that nothing uses: checkpoints do without

    def parameter_groups(self) -> list[optim.ParameterGroup]:
        """What is trained, at which share of the learning rate."""
        return [optim.ParameterGroup(self.parameters())]

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """What is compiled where the user asks for it: fixed shapes go in."""

    @property
    @abstractmethod
    def measured(self) -> nn.Module:
        """The network that is measured and saved."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Which of the scores says which network is best; the larger the better."""

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a batch and named scalars to log."""

    @abstractmethod
    def meter(self, dataset: Dataset[Any]) -> Meter:
        """Return an empty meter for held-out data."""

    @abstractmethod
    def save(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write the network, with its provenance."""

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, as a call that DDP can wrap."""
        return self.loss(batch)

    def after_step(self) -> None:
        """Called after every optimizer step."""


class Feed(NamedTuple):
    """Where batches come from."""

    dataset: Dataset[Any]  #: asked with a Draw
    collate: Callable[[list[Any]], Any]  #: items -> batch
    sampler: Callable[[int, int], StreamSampler]  #: (total, start) -> positions start..total-1 of the stream


def fit(
    module: StepModule, feed: Feed, run: RunPaths, done: int, options: CallSetup, watch: Watch | None = None
) -> None:
    """Train ``module`` until its settings' last step, from step ``done`` with the run's checkpoint where done > 0.

    Raises InterruptedRunError after a signal that asks to stop, with the checkpoint written.
    """
    settings, launch = module.settings, options.launch
    micro = settings.pass_size(launch.world)
    passes = settings.batch // micro // launch.world  # of this process in one step
    fabric = make_fabric(resolve_precision(settings.precision, module.measured), launch)
    fabric.launch()  # with --devices the other processes start here, each from the top of the program
    if settings.compute.compile:
        module.network.compile()
    model = fabric.setup_module(module)
    optimizer, schedule = optim.build(module.parameter_groups(), settings)
    checkpoint = Checkpoint(fabric, run, module, optimizer, schedule, done, options.keep, module.idle)
    if done:
        checkpoint.load()
    module.step = done
    stream = feed.sampler(settings.steps * settings.batch, done * settings.batch)
    share = Share(stream, micro, launch.rank, launch.world)
    loader = make_loader(feed.dataset, feed.collate, share, micro, options.workers, stay=True)
    if watch is not None and watch.from_start and done == 0:
        watch.look(fabric, module, 0, settings.micro_batch)  # before the clock of the steps begins
    recorder = Recorder(fabric, run, settings, done, options)
    shared = SharedStatistics(module) if launch.world > 1 else None

    fewer = f"Take fewer --workers than {options.workers}, or a machine with more memory; --resume continues."
    with on_stop(recorder.interrupt), closing(recorder), name_killed_loaders(fewer):
        batches = iter(loader)
        while module.step < settings.steps and not (watch and watch.stopped):
            optimizer.zero_grad()
            if shared is not None:
                shared.begin_step()
            for k in range(passes):
                with recorder.waiting():
                    batch = fabric.to_device(next(batches))
                # Networks with dropout or stochastic depth draw from the global generator: a resumed run repeats the
                # draws, and it does not matter how many processes share the passes of a step.
                torch.manual_seed(derive(settings.seed, module.step, k * launch.world + launch.rank))
                with fabric.no_backward_sync(model, enabled=k < passes - 1):
                    loss, log = model(batch)
                    fabric.backward(loss / passes)
                recorder.add_pass(module.step + 1, batch.names, loss.detach(), log, passes)
                if shared is not None:
                    shared.add_pass((passes - k) * launch.world - launch.rank - 1)
            fabric.strategy.precision.unscale_gradients(optimizer)  # fp16's, whose norm could not be told otherwise
            recorder.add("grad_norm", norm_of([p.grad for p in module.parameters() if p.grad is not None]))
            fabric.strategy.optimizer_step(optimizer)
            schedule.step()
            module.step += 1
            module.after_step()
            if shared is not None:
                shared.end_step(fabric)

            step, last = module.step, module.step == settings.steps
            measuring = watch is not None and (step % watch.every == 0 or last)
            notes = watch.look(fabric, module, step, settings.micro_batch) if watch and measuring else {}
            last = last or bool(watch and watch.stopped)
            saving = last or (options.save_every > 0 and step % options.save_every == 0)
            recorder.end_step(step, optimizer.param_groups[0]["lr"], notes, saving or measuring)
            if saving or recorder.due or recorder.stop:
                recorder.refuse_broken(module, step)
                checkpoint.save(step)
                recorder.begin_interval()
            if recorder.stop and not last:
                _leave(fabric, run, step, recorder.stop, launch)
    fabric.strategy.teardown()


def _leave(fabric: Fabric, run: RunPaths, step: int, signal: str, launch: Launch) -> NoReturn:
    """End the run here, all processes together: the first to go may take the others along."""
    job = requeue() if signal == "SIGUSR1" and fabric.is_global_zero else None
    fabric.barrier("the run stops")
    if launch.starter == "Lightning" and launch.rank > 0:
        raise SystemExit(0)  # the first process is killed where one that it started ends otherwise
    text = f"{signal}: stopped at step {step}."
    if job is not None:
        raise InterruptedRunError(f"{text} Slurm job {job} is queued again; give its command --resume.")
    raise InterruptedRunError(f"{text} Continue with --resume --run {run.path}.")


def synchronised(network: N, settings: TrainSettings, launch: Launch) -> N:
    """Return the network with batch norms over all processes, where the settings ask for it and there are several.

    By timm's converter: PyTorch's, which is Lightning's, drops the activation inside timm's norms.
    """
    if not (settings.compute.sync_bn and launch.world > 1):
        return network
    converted: N = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


class SharedStatistics:
    """Running statistics of batch norms as one process would have them that makes all passes of a step by itself.

    A norm moves its statistics r to (1 - m) r + m s with the statistics s of each pass. So after the P passes of a step
    they are (1 - m)^P r + sum over passes p of (1 - m)^(P - 1 - p) m s_p, a sum that the processes share: each adds up
    its own passes, and one exchange a step gives every process the whole. A norm that is called several times a pass
    counts each. Synchronised norms have seen all processes and are left alone, frozen ones do not move.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [
            norm
            for norm in module.modules()
            if isinstance(norm, nn.modules.batchnorm._BatchNorm)
            and not isinstance(norm, nn.SyncBatchNorm)
            and norm.running_mean is not None
        ]
        self._of: Tensor | None = None  # the norm that each number of the joined statistics belongs to

    def _buffers(self) -> list[Tensor]:
        return [b for norm in self.norms for b in (norm.running_mean, norm.running_var) if b is not None]

    @torch.no_grad()
    def _read(self) -> tuple[Tensor, Tensor]:
        """All statistics joined, and how often each norm was called."""
        calls = torch.stack([norm.num_batches_tracked for norm in self.norms if norm.num_batches_tracked is not None])
        return torch.cat(self._buffers()), calls.float()

    def begin_step(self) -> None:
        """Remember where the statistics stand."""
        if not self.norms:
            return
        self._old = self._before = self._read()
        if self._of is None:
            sizes = torch.tensor([2 * norm.num_features for norm in self.norms])
            self._of = torch.arange(len(sizes)).repeat_interleave(sizes).to(self._old[0].device)
        self._sum = torch.zeros_like(self._old[0])

    @torch.no_grad()
    def add_pass(self, later: int) -> None:
        """Count a pass of this process; ``later`` passes of the step, of all processes, come after it."""
        if not self.norms:
            return
        after, calls = self._read()
        kept = self._kept() ** (calls - self._before[1])  # of what was there before the pass
        self._sum += (kept**later)[self._of] * (after - kept[self._of] * self._before[0])
        self._before = after, calls

    @torch.no_grad()
    def end_step(self, fabric: Fabric) -> None:
        """Exchange the sums, and give every process the statistics of all passes."""
        if not self.norms:
            return
        old, calls = self._old
        both = fabric.all_reduce(torch.cat((self._sum, self._before[1] - calls)), reduce_op="sum")
        total, counts = both.split([len(old), len(calls)])  # type: ignore[union-attr]
        new = (self._kept() ** counts)[self._of] * old + total
        buffers = self._buffers()
        torch._foreach_copy_(buffers, list(new.split([len(buffer) for buffer in buffers])))
        for norm, count in zip(self.norms, (calls + counts).long().unbind(), strict=True):
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)

    def _kept(self) -> Tensor:
        """1 - m of each norm."""
        return torch.tensor([1 - (norm.momentum or 0.0) for norm in self.norms]).to(self._old[0].device)


class Autocast(MixedPrecision):
    """Mixed precision inside the network alone: what goes in, poses and depths among it, stays in float32."""

    def forward_context(self) -> AbstractContextManager[Any]:
        """Each use of a weight has a copy of its own, whose gradient is summed up in float32."""
        dtype = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
        return torch.autocast(self.device, dtype=dtype, cache_enabled=False)

    def convert_input(self, data: Any) -> Any:
        """As it is."""
        return data

    def convert_output(self, data: Any) -> Any:
        """As it is."""
        return data


def introduce(settings: TrainSettings, weights: str, encoder: nn.Module, network: nn.Module) -> Iterator[str]:
    """Lines on device, precision and size of the network that a run begins with."""
    cpu = f"the CPU ({torch.get_num_threads()} threads)"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    yield f"on {device} in {resolve_precision(settings.precision, network)}"
    small, whole = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (encoder, network))
    yield f"encoder {settings.encoder} from {weights}, {small:.1f} million parameters ({whole:.1f} with all layers)"


def resolve_precision(precision: Precision, network: nn.Module) -> Precision:
    """Arithmetic of a network on this machine: ``auto`` is bf16 where it is faster, else fp32."""
    return precision if precision != "auto" else "bf16" if prefers_bf16(network) else "fp32"


def make_fabric(precision: Precision, launch: Launch) -> Fabric:
    """Fabric over the processes of the launch: one a device, DDP where there are several."""
    # The progress lines say what a user needs; Lightning's own are about products.
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.fabric")
    # Where fp16's scaler leaves the first step out the schedule goes on all the same: it counts steps.
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
    # Said, and not detected: inside a Slurm job Lightning takes everything for srun's.
    plugins: list[Any] = [ENVIRONMENTS[launch.starter]()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "bf16":
        plugins.append(Autocast("bf16-mixed", device))
    elif precision == "fp16":
        plugins.append(Autocast("16-mixed", device, torch.amp.GradScaler(device)))
    return Fabric(
        devices=launch.devices,
        num_nodes=launch.nodes,
        # Every process keeps its own running statistics and an equal queue: nothing has to be sent at each pass.
        strategy=DDPStrategy(broadcast_buffers=False) if launch.world > 1 else "auto",
        plugins=plugins,
    )

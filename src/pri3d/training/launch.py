"""The rank of this process in a run, and the signals that stop it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import torch

from pri3d.api.training import CallOptions, TrainSettings
from pri3d.errors import ConfigError, Pri3DError
from pri3d.terminal import Terminal

#: What asks a run to stop after its step: CTRL-C, `kill` and `scancel`, Slurm before the time is up, and a terminal
#: that is closed.
STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


class InterruptedRunError(Pri3DError):
    """The run was asked to stop; the checkpoint is written."""


class Launch(NamedTuple):
    """The processes of a run, one a device."""

    rank: int  #: of this process, 0..world-1
    devices: int  #: processes a node
    nodes: int
    starter: str = "Lightning"  #: of the processes: torchrun, srun, or Lightning from the first of them

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


def find_launch(devices: int = 1, nodes: int = 1) -> Launch:
    """Read who started this process: torchrun, srun, or Lightning on behalf of ``--devices`` and ``--nodes``.

    torchrun and srun say how many processes there are; asking for another number raises ConfigError. So does a Slurm
    job that does not say how many run on each node.
    """
    if devices < 1 or nodes < 1:
        raise ConfigError(f"--devices {devices} --nodes {nodes}: give at least 1 of each.")
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        found = Launch(int(env["RANK"]), local, int(env["WORLD_SIZE"]) // local, "torchrun")
    elif int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # Of the step that srun made: a batch script or a shell in a job of many tasks is one process nevertheless.
        hosts = int(env["SLURM_STEP_NUM_NODES"])
        found = Launch(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]) // hosts, hosts, "srun")
        if "SLURM_NTASKS_PER_NODE" not in env:
            raise ConfigError(f"Slurm job of {found.world} tasks: submit it with --ntasks-per-node, not --ntasks.")
    else:
        # Lightning sets these two for the processes it starts itself.
        rank = int(env.get("NODE_RANK", 0)) * devices + int(env.get("LOCAL_RANK", 0))
        if rank >= devices * nodes:
            raise ConfigError(
                "this process was started for more --devices than this call needs. Give every call of a script the "
                "same --devices, or make each call a script of its own."
            )
        return Launch(rank, devices, nodes)
    if (devices, nodes) not in ((1, 1), (found.devices, found.nodes)):
        raise ConfigError(
            f"--devices {devices} --nodes {nodes}: {found.starter} started {found.devices} processes on each of "
            f"{found.nodes} nodes. Leave both flags out."
        )
    return found


@dataclasses.dataclass(frozen=True)
class CallSetup:
    """What belongs to the call and not to the run: it may change when a run is continued."""

    workers: int = 1  #: processes that load data, for each training process
    save_every: int = 0  #: steps between checkpoints; 0 leaves it to the minutes
    save_minutes: float = 10.0  #: between checkpoints
    keep: int = 1  #: checkpoints
    launch: Launch = dataclasses.field(default_factory=find_launch)
    wandb: str | None = None  #: project

    @classmethod
    def of(cls, call: CallOptions) -> CallSetup:
        """What a call asks for, on the processes that there are."""
        checkpoint = call.checkpoint
        launch = find_launch(call.devices, call.nodes)
        return cls(call.workers, checkpoint.every, checkpoint.minutes, checkpoint.keep, launch, call.wandb)

    def say(self, text: str) -> None:
        """Print a line of the run; the first process does."""
        Terminal(stderr=True, highlight=False, soft_wrap=True, quiet=self.launch.rank != 0).print(text)

    def check(self, settings: TrainSettings) -> None:
        """Refuse what cannot be, naming each flag. Raises ConfigError."""
        found = [
            f"--{flag} {value}: give at least {least}"
            for flag, value, least in (
                ("workers", self.workers, 0),
                ("checkpoint.every", self.save_every, 0),
                ("checkpoint.keep", self.keep, 1),
            )
            if value < least
        ]
        micro = settings.pass_size(self.launch.world)
        share = micro * self.launch.world
        if self.launch.world > 1 and settings.batch % share:
            found.append(
                f"--batch {settings.batch} is not a multiple of --micro-batch {micro} x {self.launch.world} processes"
            )
        if torch.cuda.is_available() and self.launch.devices > torch.cuda.device_count():
            found.append(
                f"--devices {self.launch.devices}: this process sees {torch.cuda.device_count()} GPUs (under srun use "
                "--gres, not --gpus-per-task)"
            )
        if settings.compute.sync_bn and self.launch.world > 1 and not torch.cuda.is_available():
            found.append("--compute.sync-bn: batch norms are synchronised on GPUs only; leave it out")
        if self.wandb is not None and importlib.util.find_spec("wandb") is None:
            found.append("--wandb: Weights & Biases is not installed; run pip install wandb")
        if found:
            raise ConfigError("; ".join(found) + ".")


@contextmanager
def on_stop(handler: Callable[[str], None]) -> Iterator[None]:
    """Give the first stopping signal's name to ``handler``, once; a CTRL-C after it stops at once.

    A SIGHUP that is ignored stays so: nohup has asked for it. Outside the main thread signals stay with their owner.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []

    def receive(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if len(received) == 1:  # Slurm's SIGTERM when the time is up must not make its earlier SIGUSR1 forgotten
            handler(signal.Signals(number).name)

    wanted = {name: getattr(signal, name) for name in STOPPING if hasattr(signal, name)}
    if "SIGHUP" in wanted and signal.getsignal(wanted["SIGHUP"]) == signal.SIG_IGN:
        del wanted["SIGHUP"]
    previous = {number: signal.getsignal(number) for number in wanted.values()}
    for number in previous:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def requeue() -> str | None:
    """Put this Slurm job back into the queue and return its number; None outside Slurm.

    Raises Pri3DError where Slurm refuses.
    """
    env = os.environ
    job = env.get("SLURM_JOB_ID")
    if job is None or shutil.which("scontrol") is None:
        return None
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if result.returncode:
        raise Pri3DError(f"scontrol requeue {job} failed ({result.stderr.strip()}). Submit the job again by hand.")
    return job

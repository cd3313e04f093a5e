"""Where this process stands among those of a run, and which signals ask it to stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from pri3d.errors import ConfigError, Pri3DError

#: What asks a run to stop after its step: CTRL-C, `kill` and `scancel`, and Slurm before the time is up.
STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1")


class InterruptedRunError(Pri3DError):
    """The run was asked to stop; the checkpoint is written."""


class Launch(NamedTuple):
    """The processes of a run, one a device."""

    rank: int  #: of this process, 0..world-1
    devices: int  #: processes a node
    nodes: int

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


def find_launch(devices: int = 1, nodes: int = 1) -> Launch:
    """Read who started this process: torchrun, srun, or Lightning on behalf of ``--devices`` and ``--nodes``.

    torchrun and srun say how many processes there are; asking for another number raises ConfigError.
    """
    if devices < 1 or nodes < 1:
        raise ConfigError(f"--devices {devices} --nodes {nodes}: give at least 1 of each.")
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        found, who = Launch(int(env["RANK"]), local, int(env["WORLD_SIZE"]) // local), "torchrun"
    elif int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env:
        hosts = int(env.get("SLURM_NNODES", 1))
        found, who = Launch(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]) // hosts, hosts), "srun"
    else:
        # Lightning sets these two for the processes it starts itself.
        rank = int(env.get("NODE_RANK", 0)) * devices + int(env.get("LOCAL_RANK", 0))
        return Launch(rank, devices, nodes)
    if (devices, nodes) not in ((1, 1), (found.devices, found.nodes)):
        raise ConfigError(
            f"--devices {devices} --nodes {nodes}: {who} started {found.devices} processes on each of {found.nodes} "
            "nodes. Leave both flags out."
        )
    return found


@contextmanager
def on_stop(handler: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Give the first stopping signal's name to ``handler``; a second CTRL-C stops at once.

    Yields a function that takes the signals back, should another library have taken them. Outside the main thread
    signals stay with their owner.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def receive(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handler(signal.Signals(number).name)

    wanted = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in wanted}

    def take() -> None:
        for number in wanted:
            signal.signal(number, receive)

    take()
    try:
        yield take
    except SystemExit as error:  # what Lightning makes of a KeyboardInterrupt
        raise KeyboardInterrupt from error
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def outlive_stopping(_worker: int) -> None:
    """Let a loader process survive the signals its whole group gets: the step being finished wants its data.

    Half a minute after SIGTERM it goes all the same, should nobody have ended it by then.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


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

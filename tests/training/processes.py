"""Real training processes for the tests: one or several, forked from a server or started as users do."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import flat
from pri3d.networks.state_files import read_state
from pri3d.training.launch import InterruptedRunError

SMALL = {
    "size": "64x48",
    "points": 64,
    "batch": 4,
    "micro_batch": 2,
    "holdout": 0.0,
    "distance": 0.1,
    "precision": "fp32",
    "min_overlap": 0.2,  # as the tests' rooms are prepared
}

SCRIPT = """
import json, sys
from pathlib import Path
from processes import work
if __name__ == "__main__":
    sys.exit(work(*sys.argv[1:3], *map(json.loads, sys.argv[3:])))
"""
#: A server that has imported everything once and forks: a start takes a moment, not ten seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["flat", "pri3d.training.pretrain", "pri3d.training.finetune"])


def work(store: str, run: str, verb: list[str], options: dict[str, Any]) -> int:
    """Train in this process; 9 where the run was told to stop."""
    torch.set_num_threads(1)
    try:
        getattr(flat, verb[0])(*verb[1:], Path(store), run=Path(run), **options)
    except InterruptedRunError as error:
        print(error, flush=True)
        return 9
    return 0


def _forked(log: Path, environment: dict[str, str], path: list[str], words: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests have it ignored
    sys.path[:] = path
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    try:
        code = work(*words)
    except BaseException:
        traceback.print_exc()
        raise
    sys.stdout.flush()
    sys.exit(code)


class Forked:
    """Processes of one run, with what tests use of ``subprocess.Popen``."""

    def __init__(self, world: int, environment: dict[str, str], words: tuple[Any, ...]) -> None:
        self.args, self.log = words, Path(words[1]).parent / f"{Path(words[1]).name}-{time.monotonic_ns()}.log"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            launch = {
                "TORCHELASTIC_RUN_ID": "test",
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(free.getsockname()[1]),
                "WORLD_SIZE": str(world),
            }
        self.processes = []
        for rank in map(str, range(world)):
            own = {**launch, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": str(world)} if world > 1 else {}
            words_of_rank = (self.log, environment | own, sys.path, words)
            self.processes.append(FORKS.Process(target=_forked, args=words_of_rank))
            self.processes[-1].start()

    @property
    def returncode(self) -> int:
        """Of the first process that failed."""
        return next((process.exitcode for process in self.processes if process.exitcode), 0)

    def poll(self) -> int | None:
        return None if any(process.is_alive() for process in self.processes) else self.returncode

    def send_signal(self, number: int) -> None:
        for process in self.processes:
            os.kill(process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, None]:
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
        return self.log.read_text(), None


def start(
    store: Path, run: Path, world: int = 1, env: dict[str, str] | None = None, fork: bool = True, **options: object
) -> Forked | subprocess.Popen[str]:
    """Pre-train in ``world`` new processes with the small settings and ``options``."""
    return start_verb(("pretrain",), store, run, world, env, {**SMALL, **options}, fork)


def start_verb(
    verb: tuple[str, ...],
    store: Path,
    run: Path,
    world: int,
    env: dict[str, str] | None,
    options: dict[str, object],
    fork: bool = True,
) -> Forked | subprocess.Popen[str]:
    """Run a verb, and the words after it, in ``world`` new processes: forked, or a script, by torchrun if several."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | (env or {})
    if fork:
        return Forked(world, environment, (str(store), str(run), list(verb), options))
    script = run.parent / "script.py"
    script.write_text(SCRIPT)
    words = [str(script), str(store), str(run), json.dumps(verb), json.dumps(options)]
    if world > 1:
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", *words]
    command = [sys.executable, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: Forked | subprocess.Popen[str], code: int = 0, seconds: float = 900) -> str:
    """Output of a process that must end with ``code``."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    return output


def wait_until(ready: Callable[[], bool], process: Forked | subprocess.Popen[str], seconds: float = 600) -> None:
    """Return when ``ready`` says so; the bound is for a process that hangs, not for a busy machine."""
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate(timeout=60)[0]
        assert time.monotonic() < end, f"{process.args} did not come so far in {seconds:.0f} s"
        time.sleep(0.02)


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """Trained tensors of a weights file: without running statistics, which are each process's own."""
    return {name: value for name, value in read_state(path).items() if "running" not in name and "num_" not in name}


def gap(one: Path, two: Path) -> float:
    """Largest difference of the parameters of two weights files."""
    first, second = parameters(one), parameters(two)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)

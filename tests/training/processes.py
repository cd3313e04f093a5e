"""Real training processes for the tests: one, or several under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pri3d.networks.weights import read_state

SMALL = {
    "size": "64x48",
    "points": 64,
    "batch": 4,
    "micro_batch": 2,
    "holdout": 0.0,
    "distance": 0.1,
    "precision": "fp32",
}

SCRIPT = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
import flat
from pri3d.training.launch import InterruptedRunError
if __name__ == "__main__":
    verb, *words = json.loads(sys.argv[3])
    try:
        getattr(flat, verb)(*words, Path(sys.argv[1]), run=Path(sys.argv[2]), **json.loads(sys.argv[4]))
    except InterruptedRunError as error:
        print(error, flush=True)
        sys.exit(9)
"""


def start(
    store: Path, run: Path, world: int = 1, env: dict[str, str] | None = None, **options: object
) -> subprocess.Popen[str]:
    """Pre-train in ``world`` new processes with the small settings and ``options``."""
    return start_verb(("pretrain",), store, run, world, env, {**SMALL, **options})


def start_verb(
    verb: tuple[str, ...], store: Path, run: Path, world: int, env: dict[str, str] | None, options: dict[str, object]
) -> subprocess.Popen[str]:
    """Run a verb, and the words after it, in ``world`` new processes."""
    script = run.parent / "script.py"
    script.write_text(SCRIPT)
    words = [str(script), str(store), str(run), json.dumps(verb), json.dumps(options)]
    if world > 1:
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", *words]
    return subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0, seconds: float = 200) -> str:
    """Output of a process that must end with ``code``."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    return output


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """Trained tensors of a weights file: without running statistics, which are each process's own."""
    return {name: value for name, value in read_state(path).items() if "running" not in name and "num_" not in name}


def gap(one: Path, two: Path) -> float:
    """Largest difference of the parameters of two weights files."""
    first, second = parameters(one), parameters(two)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)

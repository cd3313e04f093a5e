"""Weak scaling on the cores at hand: one process, two that know nothing of each other, and two ranks by gloo.

    python -m benchmarks.scaling [--steps 12] [--rounds 3]

View as the preset `quick` has it (ResNet-18, 160x120, fp32), eight pairs a step and process, in passes of four, one
thread each. Two ranks against two single processes is what the exchange of gradients and statistics costs; two single
processes against one is what the processor costs: two hardware threads of one core share its units, so that two
processes are no twice as fast whatever they do. By the clock, and in CPU seconds, which other work on the machine
disturbs less, though waiting for the other rank is not in them. Arrangements take turns; medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.loading import make_store
from benchmarks.machine import describe_machine

PAIRS, MICRO, SKIP = 8, 4, 2  #: of a step and process; of a pass; steps that do not count
FLAGS: dict[str, Any] = {"size": "160x120", "contrast": {"points": 256}}
#: arrangement -> processes, and whether they are one run
ARRANGEMENTS = {"one process": (1, False), "two single processes": (2, False), "two ranks": (2, True)}


def work(store: Path, out: Path, steps: int, world: int, size: str) -> None:
    """One process of an arrangement: train, and write seconds a step by the clock and of CPU time."""
    import torch  # noqa: PLC0415 (a process of its own)

    import pri3d  # noqa: PLC0415
    from pri3d.training.pretraining import PretrainModule  # noqa: PLC0415

    torch.set_num_threads(1)
    times: list[tuple[float, float]] = []
    before = PretrainModule.after_step

    def after_step(module: PretrainModule) -> None:
        times.append((time.perf_counter(), time.process_time()))
        before(module)

    options = {"batch": PAIRS * world, "micro_batch": MICRO, "steps": steps, "precision": "fp32", "weights": "scratch"}
    with patch.object(PretrainModule, "after_step", after_step):
        run = out if "RANK" in os.environ else out / str(os.getpid())
        pri3d.pretrain(
            [store],
            run=run / "run",
            preset="quick",
            objectives={"view": 1.0},
            holdout=0.0,
            workers=0,
            **{**FLAGS, "size": size},
            **options,
        )
    count = len(times) - SKIP - 1
    spent = [(times[-1][k] - times[SKIP][k]) / count for k in (0, 1)]
    (out / f"{os.getpid()}.json").write_text(json.dumps(spent))


def seconds_a_step(store: Path, arrangement: str, steps: int, size: str) -> tuple[float, float]:
    """Seconds by the clock and of CPU time of a step in an arrangement, the mean of its processes."""
    count, joined = ARRANGEMENTS[arrangement]
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("localhost", 0))
        launch = {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        world = count if joined else 1
        words = [sys.executable, "-m", "benchmarks.scaling", "--worker", str(store), name, str(steps), str(world), size]
        running = []
        for rank in map(str, range(count)):
            own = {**launch, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            env = {**os.environ, "OMP_NUM_THREADS": "1", **(own if joined else {})}
            running.append(subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True))
        for process in running:
            _, errors = process.communicate()
            if process.returncode:
                raise SystemExit(f"{arrangement}: {errors[-2000:]}")
        found = [json.loads(path.read_text()) for path in Path(name).glob("*.json")]
    return sum(wall for wall, _ in found) / len(found), sum(cpu for _, cpu in found) / len(found)


def run(steps: int = 12, rounds: int = 3, size: str = "160x120", **rooms: Any) -> list[tuple[str, str, None]]:
    """Name, measured value and no bar of every figure; ``rooms`` goes to :func:`make_store`."""
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name), **{"count": 2, "frames": 16, "size": size, "voxel": 0.16, **rooms})
        found: dict[str, list[tuple[float, float]]] = {arrangement: [] for arrangement in ARRANGEMENTS}
        for _ in range(rounds):
            for arrangement, times in found.items():
                times.append(seconds_a_step(store, arrangement, steps, size))
    wall, cpu = ({name: median(each[k] for each in times) for name, times in found.items()} for k in (0, 1))
    rows = []
    for arrangement, (count, _) in ARRANGEMENTS.items():
        rate = PAIRS * count / wall[arrangement]
        share = wall["one process"] / wall[arrangement]
        text = f"{rate:.2f} pairs/s, {cpu[arrangement]:.2f} CPU s a step and process, {share:.0%} of one's pace each"
        rows.append((arrangement, text, None))
    cost = cpu["two ranks"] / cpu["two single processes"], wall["two ranks"] / wall["two single processes"]
    rows.append(("two ranks against two single processes, CPU time; clock", f"{cost[0]:.2f}x; {cost[1]:.2f}x", None))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        store, out, steps, world, size = options.worker
        work(Path(store), Path(out), int(steps), int(world), size)
        return
    print(describe_machine())
    for name, measured, _ in run(options.steps, options.rounds):
        print(f"{name:56} {measured}")


if __name__ == "__main__":
    main()

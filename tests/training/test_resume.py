"""A run that is killed without warning, ten times, ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import FORKS, SMALL

from flat import pretrain
from pri3d.networks.state_files import read_state
from pri3d.runs import read_metrics

OPTIONS = {**SMALL, "steps": 24, "workers": 2, "save_every": 2, "eval_every": 5, "eval_pairs": 4, "holdout": 0.3}
KILLS = 10


def train(store: Path, run: Path) -> None:
    torch.set_num_threads(1)
    os.setsid()  # so that a kill takes the loader processes along
    pretrain(store, run=run, resume=True, **OPTIONS)


def start(store: Path, run: Path) -> Any:
    process = FORKS.Process(target=train, args=(store, run))
    process.start()
    return process


@pytest.mark.slow
def test_ten_kills_change_nothing(rooms_store: Path, tmp_path: Path) -> None:
    """Weights, best weights and the whole curve are bit-equal to those of an undisturbed run.

    Two loader processes, augmentation, accumulation and measurements on held-out pairs are on.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(rooms_store, whole)
    process.join()
    assert process.exitcode == 0
    chance = random.Random(0)
    kills, reached = 0, set()
    while kills < KILLS:
        process = start(rooms_store, killed)
        began = time.monotonic()
        before = steps_logged(killed)
        # At least a step further than the last checkpoint, or the run would never end; then at any moment.
        while process.is_alive() and steps_logged(killed) <= before and time.monotonic() - began < 600:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.8))
        if not process.is_alive():
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        reached.add(steps_logged(killed))
        assert process.exitcode == -signal.SIGKILL
    process = start(rooms_store, killed)
    process.join()
    assert process.exitcode == 0
    assert kills == KILLS, f"the run was over after {kills} kills"
    assert len(reached) > 3, "the kills fell into different steps"
    for name in ("weights.safetensors", "best.safetensors"):
        first, second = read_state(whole / name), read_state(killed / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    columns = ("step", "loss", "view/loss", "geometry/loss", "grad_norm", "lr", "heldout/recall")
    curves = [
        [[row.get(column) for column in columns] for row in read_metrics(run / "metrics.csv")]
        for run in (whole, killed)
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == OPTIONS["steps"]


def steps_logged(run: Path) -> int:
    """Last step in the table; its file may end in the middle of a line just now."""
    table = run / "metrics.csv"
    lines = table.read_text().rpartition("\n")[0].splitlines()[1:] if table.exists() else []
    return int(float(lines[-1].split(",")[0])) if lines else 0

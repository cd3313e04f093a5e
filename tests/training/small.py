"""Pre-training runs of a moment, in this process: a network of 0.4 million parameters, one view objective."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import SMALL

from flat import pretrain
from pri3d.networks.state_files import read_state
from pri3d.runs import read_metrics
from pri3d.training.launch import InterruptedRunError
from pri3d.training.loop import StepModule

SMALLER: dict[str, Any] = {**SMALL, "encoder": "test_resnet", "objectives": {"view": 1.0}, "steps": 2, "workers": 0}

#: One plain step downhill, as long as the gradient.
PLAIN: dict[str, Any] = {
    **dict.fromkeys(("momentum", "dampening", "weight_decay"), 0.0),
    "optimizer": "sgd",
    "schedule": "constant",
    "lr": 1.0,
    "steps": 1,
}


def run_small(store: Path | list[Path], run: Path, **options: object) -> Path:
    """Pre-train in this process."""
    return pretrain(store, run=run, **{**SMALLER, **options}).path


def stop_after(
    step: int,
    store: Path | list[Path],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: signal.Signals = signal.SIGTERM,
    **options: object,
) -> None:
    """A run that is told to stop during its step number ``step``, ``by`` a signal."""
    told = StepModule.forward

    def stop(module: StepModule, batch: Any) -> Any:
        if module.step == step - 1:
            signal.raise_signal(by)
        return told(module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(StepModule, "forward", stop)
        with pytest.raises(InterruptedRunError, match=f"{by.name}: stopped at step {step}"):
            run_small(store, run, **options)
    assert step_of(run / "last.ckpt") == step


def run_broken(step: int, store: Path, run: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Path:
    """A run that is told to stop during a step and then continued to its end."""
    stop_after(step, store, run, monkeypatch, **options)
    return run_small(store, run, resume=True, **options)


def step_of(checkpoint: Path) -> int:
    """Steps that a checkpoint has behind it."""
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


def same(one: Path, two: Path) -> bool:
    """Whether two weights files hold the same, bit by bit."""
    first, second = read_state(one), read_state(two)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def column(run: Path, name: str) -> list[float]:
    """A column of the metrics."""
    return [row[name] for row in read_metrics(run / "metrics.csv") if name in row]

"""Several real processes train as one: the same gradient, the same samples after a resume, one wish to stop."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from processes import finish, gap, start, wait_until

from pri3d.networks.state_files import read_state
from pri3d.runs import read_metrics

#: One plain step downhill: what changes is the gradient.
PLAIN = {"optimizer": "sgd", "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "schedule": "constant"}


@pytest.mark.slow
def test_two_processes_make_the_step_of_one(rooms_store: Path, tmp_path: Path) -> None:
    """The gradient of a global batch does not depend on how many processes share it, nor does accumulation show."""
    options = {**PLAIN, "lr": 1.0, "steps": 1, "workers": 0, "passes": "joint"}
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    finish(start(rooms_store, alone, **options))
    finish(start(rooms_store, shared, world=2, **options))
    assert gap(alone / "initial.safetensors", shared / "initial.safetensors") == 0
    assert gap(alone / "initial.safetensors", alone / "weights.safetensors") > 1e-3
    assert gap(alone / "weights.safetensors", shared / "weights.safetensors") < 1e-6
    statistics = [
        {k: v for k, v in read_state(run / "weights.safetensors").items() if "running" in k} for run in (alone, shared)
    ]
    assert statistics[0]
    for name, value in statistics[0].items():  # as if one process had made all passes
        torch.testing.assert_close(statistics[1][name], value, rtol=1e-4, atol=1e-5)
    rows = [read_metrics(run / "metrics.csv")[0] for run in (alone, shared)]
    for name in ("loss", "view/loss", "geometry/loss", "view/matches", "grad_norm"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-5)


@pytest.mark.slow
def test_a_pass_of_moco_is_shared_by_the_processes(rooms_store: Path, tmp_path: Path) -> None:
    """Its presets make one pass a step: of 4 images here, 2 of each process, in the same groups of 2."""
    options = {**PLAIN, "lr": 0.1, "steps": 2, "micro_batch": 4, "objectives": {"moco": 1.0}, "encoder": "test_resnet"}
    options |= {"crop": 32, "moco_queue": 64, "moco_group": 2, "workers": 0}
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    finish(start(rooms_store, alone, **options))
    finish(start(rooms_store, shared, world=2, **options, checkpoint={"minutes": 1e-9}))
    moved = gap(alone / "initial.safetensors", alone / "weights.safetensors")
    assert gap(alone / "weights.safetensors", shared / "weights.safetensors") < min(1e-4, 0.01 * moved)
    losses = [[row["loss"] for row in read_metrics(run / "metrics.csv")] for run in (alone, shared)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_run_continues_with_another_number_of_processes(rooms_store: Path, tmp_path: Path) -> None:
    """Two processes are told to stop, stop at the same step and save; one alone ends with the weights of one alone."""
    options = {**PLAIN, "lr": 0.01, "steps": 16, "workers": 1, "resume": True, "objectives": {"view": 1}}
    run, alone = tmp_path / "run", tmp_path / "alone"
    process = start(rooms_store, run, world=2, **options)
    wait_until(lambda: (run / "metrics.csv").exists() and len(read_metrics(run / "metrics.csv")) >= 1, process)
    process.send_signal(signal.SIGTERM)  # to both, as torchrun does
    output = process.communicate(timeout=600)[0]
    assert (run / "last.ckpt").exists(), output
    done = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert output.count(f"stopped at step {done}") == 2, output
    assert 0 < done < 16
    finish(start(rooms_store, run, **options))
    finish(start(rooms_store, alone, **options))
    curves = [[(row["step"], row["loss"]) for row in read_metrics(path / "metrics.csv")] for path in (run, alone)]
    assert [step for step, _ in curves[0]] == list(range(1, 17))
    assert [loss for _, loss in curves[0]] == pytest.approx([loss for _, loss in curves[1]], rel=1e-3)
    assert gap(run / "weights.safetensors", alone / "weights.safetensors") < 1e-4


@pytest.mark.slow
def test_devices_starts_the_other_processes_itself(rooms_store: Path, tmp_path: Path) -> None:
    """--devices 2 ends with what torchrun's two end with, and with one exit code of success."""
    options = {**PLAIN, "lr": 0.1, "steps": 2, "workers": 1, "passes": "joint"}
    run, launched = tmp_path / "run", tmp_path / "launched"
    finish(start(rooms_store, run, fork=False, **options, devices=2))
    finish(start(rooms_store, launched, world=2, fork=False, **options))
    assert gap(run / "initial.safetensors", run / "weights.safetensors") > 1e-3
    assert gap(run / "weights.safetensors", launched / "weights.safetensors") == 0
    curves = [[row["loss"] for row in read_metrics(path / "metrics.csv")] for path in (run, launched)]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_stop_ends_the_processes_that_devices_started(rooms_store: Path, tmp_path: Path) -> None:
    """The first process says where the run stands; the other one ends in silence, or the first would be killed."""
    options = {**PLAIN, "lr": 0.01, "steps": 200, "workers": 0, "objectives": {"view": 1}}
    run = tmp_path / "run"
    process = start(rooms_store, run, fork=False, **options, devices=2)
    wait_until(lambda: (run / "metrics.csv").exists() and len(read_metrics(run / "metrics.csv")) >= 1, process)
    process.send_signal(signal.SIGTERM)
    output = finish(process, code=9)
    done = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert output.count(f"stopped at step {done}") == 1, output
    assert 0 < done < 200

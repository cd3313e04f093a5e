"""Fine-tuning by the engine of pre-training: several real processes, a stop and a resume, for every task."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import finish, gap, start_verb, wait_until

from flat import finetune
from pri3d.networks.state_files import read_state
from pri3d.runs import read_json, read_metrics
from pri3d.training.launch import InterruptedRunError
from pri3d.training.loop import StepModule

#: One plain step downhill: what changes is the gradient.
PLAIN: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "dampening": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "batch": 4,
    "micro_batch": 2,
    "precision": "fp32",
    "eval_every": 100,
    "workers": 0,
}
SMALL: dict[str, dict[str, Any]] = {
    "semantic": {"size": "64x48"},
    "instance": {"short_side": 48, "long_side": 64, "rois": 8, "min_area": 1},
}


def start(task: str, store: Path, run: Path, world: int = 1, **options: object) -> Any:
    words = {**PLAIN, **SMALL[task], **options}
    return start_verb(("finetune", task), store, run, world, None, words)


@pytest.mark.slow
@pytest.mark.parametrize("task", SMALL)
def test_two_processes_make_the_step_of_one(task: str, rooms_store: Path, tmp_path: Path) -> None:
    options = {"lr": 0.1, "steps": 1}
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    finish(start(task, rooms_store, alone, **options))
    finish(start(task, rooms_store, shared, world=2, **options))
    assert gap(alone / "weights.safetensors", shared / "weights.safetensors") < 1e-6
    rows = [read_metrics(run / "metrics.csv")[0] for run in (alone, shared)]
    assert rows[0]["grad_norm"] > 0.01
    for name in ("loss", "grad_norm"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4)
    scores = [read_json(run / "scores.json")["last"] for run in (alone, shared)]
    assert scores[0].keys() == scores[1].keys()


@pytest.mark.slow
def test_a_run_continues_with_another_number_of_processes(rooms_store: Path, tmp_path: Path) -> None:
    options = {"lr": 0.01, "steps": 16, "workers": 1, "resume": True}
    run, alone = tmp_path / "run", tmp_path / "alone"
    process = start("semantic", rooms_store, run, world=2, **options)
    wait_until(lambda: (run / "metrics.csv").exists() and len(read_metrics(run / "metrics.csv")) >= 1, process)
    process.send_signal(signal.SIGTERM)  # to both, as torchrun does
    output = process.communicate(timeout=600)[0]
    done = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert output.count(f"stopped at step {done}") == 2, output
    assert 0 < done < 16
    finish(start("semantic", rooms_store, run, **options))
    finish(start("semantic", rooms_store, alone, **options))
    curves = [[(row["step"], row["loss"]) for row in read_metrics(path / "metrics.csv")] for path in (run, alone)]
    assert [step for step, _ in curves[0]] == list(range(1, 17))
    assert [loss for _, loss in curves[0]] == pytest.approx([loss for _, loss in curves[1]], rel=1e-3)
    assert gap(run / "weights.safetensors", alone / "weights.safetensors") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("task", SMALL)
def test_ctrl_c_and_resume_change_nothing(
    task: str, rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, best weights and scores are bit-equal to those of an undisturbed run."""
    options = {**PLAIN, **SMALL[task], "val": rooms_store, "steps": 3, "lr": 0.01, "eval_every": 2, "augment": "light"}
    whole = finetune(task, rooms_store, run=tmp_path / "whole", **options)  # type: ignore[arg-type]
    told = StepModule.forward
    asked: list[int] = []

    def stop(module: StepModule, batch: Any) -> Any:
        if module.step == 1 and not asked:  # once: a second CTRL-C would not wait for the step
            asked.append(module.step)
            signal.raise_signal(signal.SIGINT)
        return told(module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(StepModule, "forward", stop)
        with pytest.raises(InterruptedRunError, match="SIGINT: stopped at step 2"):
            finetune(task, rooms_store, run=tmp_path / "broken", **options)  # type: ignore[arg-type]
    broken = finetune(task, rooms_store, run=tmp_path / "broken", resume=True, **options)  # type: ignore[arg-type]
    for name in ("weights.safetensors", "best.safetensors"):
        first, second = read_state(whole / name), read_state(broken / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert read_json(whole / "scores.json") == read_json(broken / "scores.json")

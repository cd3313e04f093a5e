"""Runs in processes of their own: one that is killed takes no other along; the command of a run can be typed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from pri3d.api.finetune import resolve_finetuning
from pri3d.api.pretrain import resolve_pretraining
from pri3d.errors import ConfigError, Pri3DError
from pri3d.processes import Outcome
from pri3d.reproduction import work as working
from pri3d.reproduction.matrix import PlannedRun, find_study
from pri3d.reproduction.work import (
    PlacedRun,
    RunHardware,
    StudyFolder,
    command,
    is_finished,
    launch,
    make_runs,
    share_gpus,
)
from pri3d.runs import RunPaths, write_json, write_text


def do_or_die(place: StudyFolder, placed: PlacedRun) -> str:
    """Stand-in for a run, in its own process."""
    if placed.run.name == "killed":
        os.kill(os.getpid(), signal.SIGTERM)
    return "0.0 min"


@pytest.mark.slow
def test_a_killed_process_takes_no_other_run_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "make_run", do_or_die)
    place = StudyFolder(tmp_path, find_study("rooms", "small"))
    runs = [
        PlannedRun("killed", "pretrain", {}, ("pretrain",)),
        PlannedRun("after", "finetune", {}, ("labelled",), "killed"),
        PlannedRun("other", "pretrain", {}, ("pretrain",)),
    ]
    said: list[str] = []
    failed = make_runs(place, runs, 1, said.append)
    assert set(failed) == {"killed", "after"}
    assert "killed" in failed["killed"] and "--jobs" in failed["killed"]
    assert failed["after"] == "killed failed"
    assert said[-1] == "[3/3] other: 0.0 min"


def test_fine_tuning_has_finished_when_its_weights_are_there(tmp_path: Path) -> None:
    place, run = (
        StudyFolder(tmp_path, find_study("rooms", "small")),
        PlannedRun("run", "finetune", {"seed": 0}, ("labelled",)),
    )
    paths = RunPaths(place.folder("run"))
    write_json(paths.path / working.RECORD, working.requested_options(run))
    write_json(paths.scores, {"last": {"miou": 0.1}})  # of a validation on the way
    assert not is_finished(place, run)
    write_text(paths.weights, "")
    assert is_finished(place, run)


def test_the_words_of_a_command(tmp_path: Path) -> None:
    place = StudyFolder(tmp_path / "my out", find_study("rooms", "small"))
    words = command(place, PlannedRun("view", "pretrain", {"preset": "view,small"}, ("pretrain",)))
    assert words[:5] == ["pri3d", "pretrain", str(place.store("pretrain")), "--preset", "view,small"]
    assert words[-2:] == ["--run", str(place.folder("view"))]


@pytest.mark.parametrize(
    ("task", "preset", "asked", "given"),
    [
        ("pretrain", "paper", (8, 1), (8, 1)),  # 64 pairs in passes of 8
        ("pretrain", "moco", (8, 1), (8, 1)),  # a pass of 256 images, 32 of each
        ("pretrain", "paper", (4, 2), (4, 2)),
        ("semantic", "deeplabv3", (8, 1), (1, 1)),  # one pass of 16
        ("instance", "nyuv2", (4, 2), (1, 1)),
        ("instance", "paper", (3, 1), (2, 1)),  # 16 images in passes of 2
    ],
)
def test_a_run_takes_as_many_devices_as_its_passes(
    task: str, preset: str, asked: tuple[int, int], given: tuple[int, int]
) -> None:
    settings = resolve_pretraining(preset) if task == "pretrain" else resolve_finetuning(task, preset)
    assert RunHardware(*asked).of_run(settings)[:2] == given


def test_every_run_has_gpus_of_its_own() -> None:
    gpus = [str(k) for k in range(8)]
    assert share_gpus(gpus, 2, 4) == [("0", "1", "2", "3"), ("4", "5", "6", "7")]
    assert [slot for (slot,) in share_gpus(gpus, 8, 1)] == gpus
    assert share_gpus(["3"], 2, 1) == share_gpus([], 2, 1) == [(), ()]
    assert share_gpus(["2", "5"], 3, 1) == [("2",), ("5",), ("2",)]
    with pytest.raises(ConfigError, match="8 GPUs"):
        share_gpus(gpus, 3, 4)


def test_side_by_side_each_run_sees_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight runs at a time on eight GPUs, and the ninth takes the one that is free."""
    seen: dict[str, tuple[str, ...]] = {}

    def here(_task: object, ready: Callable[[int], Sequence[PlacedRun]], processes: int, _threads: int) -> Any:
        waiting: list[PlacedRun] = []
        while True:
            waiting += ready(processes - len(waiting))
            if not waiting:
                return
            gpus = [placed.hardware.gpus for placed in waiting]
            assert len(set(gpus)) == len(gpus)
            placed = waiting.pop(0)
            seen[placed.run.name] = placed.hardware.gpus
            future: Future[str] = Future()
            future.set_result("0.0 min")
            yield Outcome(placed, future)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    monkeypatch.setattr(working, "run_apart", here)
    place = StudyFolder(tmp_path, find_study("rooms", "small"))
    runs = [PlannedRun(str(k), "pretrain", {}, ("pretrain",)) for k in range(9)]
    assert make_runs(place, runs, 8, lambda _text: None) == {}
    assert {gpus for gpus in seen.values()} == {(str(k),) for k in range(8)}
    assert seen["8"] == seen["0"]


def test_several_machines_are_started_by_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for srun and for Python, which write their words down."""
    fake = tmp_path / "bin" / "srun"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/words\necho "error: no GPU today"\nexit 3\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    place = StudyFolder(tmp_path, find_study("rooms", "small"))
    run = PlannedRun("view", "pretrain", {"preset": "view,small"}, ("pretrain",))
    hardware = RunHardware(devices=8, nodes=2, workers=6, checkpoint_minutes=20)
    with (tmp_path / "log").open("w") as log, pytest.raises(Pri3DError, match="code 3: error: no GPU today"):
        launch(place, run, hardware, log)
    words = (tmp_path / "words").read_text().splitlines()
    assert {"--nodes=2", "--ntasks-per-node=1", "--nnodes=2", "--nproc-per-node=8"} <= set(words)
    assert "--rdzv-endpoint=node7:29541" in words
    verb = words[words.index("pretrain") :]
    assert verb[verb.index("--workers") + 1] == "6"
    assert verb[verb.index("--checkpoint.minutes") + 1] == "20"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with (tmp_path / "log").open("w") as log, pytest.raises(ConfigError, match="need Slurm"):
        launch(place, run, hardware, log)

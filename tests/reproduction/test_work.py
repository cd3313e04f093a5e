"""Runs in processes of their own: one that is killed takes no other along; the command of a run can be typed."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest

from pri3d.reproduction import work as working
from pri3d.reproduction.matrix import PlannedRun, find_study
from pri3d.reproduction.work import StudyFolder, command, is_finished, make_runs
from pri3d.runs import RunPaths, write_json, write_text


def do_or_die(place: StudyFolder, run: PlannedRun) -> str:
    """Stand-in for a run, in its own process."""
    if run.name == "killed":
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


def test_a_command_is_quoted(tmp_path: Path) -> None:
    place = StudyFolder(tmp_path / "my out", find_study("rooms", "small"))
    words = shlex.split(command(place, PlannedRun("view", "pretrain", {"preset": "view,small"}, ("pretrain",))))
    assert words[:5] == ["pri3d", "pretrain", str(place.store("pretrain")), "--preset", "view,small"]
    assert words[-2:] == ["--run", str(place.folder("view"))]

"""What runs will take: told by runs like them that have finished, else by a few passes on a rendered room."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from rich.progress import track

from pri3d.errors import ConfigError
from pri3d.preparation.prepare import prepare
from pri3d.reproduction.matrix import Run
from pri3d.reproduction.work import LOG, Place, do, is_finished
from pri3d.runs import RunPaths, read_metrics
from pri3d.settings import resolve
from pri3d.tasks import find_task
from pri3d.training.settings import PretrainSettings
from pri3d.worlds.write import rooms

PASSES = 4  #: of a trial; the last but one is timed, for the last is followed by a validation
LARGEST = 16  #: samples of such a pass; 2 for the paper's sizes without a GPU
ROOM, FRAMES = "room", 24  #: what a trial trains on
_KEPT = ("preset", "encoder", "task")  # what tells kinds of runs apart


class Cost(NamedTuple):
    """What a run takes, alone on the machine."""

    minutes: float
    gigabytes: float  #: of the GPU where there is one, else of the machine
    source: str  #: what says so

    def words(self) -> tuple[str, str, str]:
        """Cells of a table."""
        return f"{self.minutes:,.1f}", f"{self.gigabytes:.1f}", self.source


def estimate(place: Place, runs: Sequence[Run]) -> dict[str, Cost]:
    """Run name -> cost. Kinds of runs of which none has finished are tried in a temporary folder.

    Raises ConfigError as the verbs do.
    """
    by_kind: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        by_kind.setdefault(_kind(run), []).append(run)
    found: dict[tuple[str, ...], Cost] = {}
    for kind, some in by_kind.items():
        done = [run for run in some if is_finished(place, run)]
        if done:
            paths = RunPaths(place.folder(done[0].name))
            found[kind] = Cost(paths.minutes(), _gigabytes(paths), "a run like it")
    unknown = {kind: some[0] for kind, some in by_kind.items() if kind not in found}
    if unknown:
        with TemporaryDirectory() as folder:
            trial = _trial_place(place, Path(folder))
            for kind, run in track(unknown.items(), description="trying", transient=True):
                found[kind] = _try(trial, run)
    return {run.name: found[kind] for kind, some in by_kind.items() for run in some}


def _kind(run: Run) -> tuple[str, ...]:
    return (run.verb, *(str(run.options.get(key)) for key in _KEPT))


def _trial_place(place: Place, folder: Path) -> Place:
    """A study of one rendered room in the sizes of ``place``."""
    settings = place.study.settings
    size = settings["prepare"].get("size", "320x240")
    with (folder / LOG).open("w") as log, redirect_stdout(log), redirect_stderr(log):
        rooms(folder / "recordings" / ROOM, rooms=1, frames=FRAMES, size=size, workers=1)
        prepare([folder / "recordings" / ROOM], folder / "prepared" / ROOM, workers=1, **settings["prepare"])
    return Place(folder, place.study._replace(settings={**settings, "parts": {ROOM: {}}}))


def _try(place: Place, run: Run) -> Cost:
    """Make a few passes in a process of its own, whose memory is the run's."""
    verb = run.verb if run.verb == "pretrain" else str(run.options["task"])
    kind = PretrainSettings if run.verb == "pretrain" else find_task(verb).recipe.settings_type
    full = resolve(kind, verb, run.options["preset"], run.options)
    most = LARGEST if torch.cuda.is_available() or place.study.size == "small" else 2
    batch = min(full.micro_batch, most)
    options: dict[str, Any] = {**run.options, "steps": PASSES, "batch": batch, "micro_batch": batch}
    if run.verb == "pretrain":
        options |= {"init": "scratch", "holdout": 0.0, "eval_every": 0}
        if options.pop("images", None):
            options["mix"] = "frames"
    else:
        options |= {"weights": "scratch", "fraction": 1.0, "eval_every": PASSES, "labels": None}
    tried = Run(f"trial/{run.name}", run.verb, options, (ROOM,) if run.verb == "pretrain" else (ROOM, ROOM))
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(do, place, tried).result()
    except BrokenProcessPool as error:
        raise ConfigError(
            f"{run.name}: its trial with {batch} samples was killed, as systems do when memory runs out. Ask for the "
            "estimate on a machine with more."
        ) from error
    paths = RunPaths(place.folder(tried.name))
    timed = read_metrics(paths.metrics)[-3:-1]
    before, after = (row["step"] * batch / row["samples_per_s"] for row in timed)  # seconds since the start
    minutes = (after - before) * full.steps * full.batch / batch / 60
    return Cost(minutes, _gigabytes(paths), f"{PASSES} passes, tried now")


def _gigabytes(paths: RunPaths) -> float:
    return max(row["memory_mb"] for row in read_metrics(paths.metrics)) / 1000

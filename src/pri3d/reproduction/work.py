"""The runs of an experiment: what they will cost, and making them, each in a process of its own, here or by Slurm."""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from rich.table import Table

from pri3d import registry
from pri3d.api.finetune import FinetuneOptions, finetune, resolve_finetuning
from pri3d.api.plugins import gathered
from pri3d.api.prepare import prepare
from pri3d.api.presets import current
from pri3d.api.pretrain import PretrainOptions, pretrain, resolve_pretraining
from pri3d.api.rooms import rooms
from pri3d.api.training import TrainSettings
from pri3d.errors import ConfigError, DataError, FailedScenesError, Pri3DError
from pri3d.files.atomic import write_atomic
from pri3d.files.stamp import read_stamp, refuse_other_settings
from pri3d.labelled import open_labelled
from pri3d.machine import cores
from pri3d.processes import KilledError, run_apart, run_in_processes
from pri3d.reproduction.matrix import Experiment, Matrix, PlannedRun, Study, groups
from pri3d.runs import RunPaths, leaves, read_metrics, write_json
from pri3d.terminal import Terminal, track

RECORD = "reproduce.json"  #: what a run was asked for; another request for the same folder is refused
LOG = "log.txt"  #: what the run said
_ELSEWHERE = "Choose another --out."
_PASSES = 4  #: of a trial; the last but one is timed, for the last is followed by a validation
_TRIAL_BATCH = 16  #: samples of such a pass; 2 for the paper's sizes without a GPU
_ROOM, _ROOM_FRAMES = "room", 24  #: what a trial trains on
_KIND_OPTIONS = ("preset", "encoder", "task")  # what tells kinds of runs apart
_OF_CALL = ("part", "labels", "weights", "epochs")  # options of finetune that are no settings
_TABLE_WIDTH = 140  #: characters of the table where it goes to a file
_SLURM_SCRIPT = """#!/bin/bash
# {title}: {runs} runs in {groups} groups, each a pre-training with the fine-tunings that begin with it, or a
# fine-tuning alone. Run this file on the login node, in a folder that all nodes see. Options for every sbatch
# (partition, account, time, memory) go into SBATCH_OPTIONS. Run it again after a failure: finished runs stay.
set -eo pipefail
mkdir -p {logs}
options=(${{SBATCH_OPTIONS}})
submit=(sbatch --parsable --output={logs}/%x-%j.txt "${{options[@]}}")
data=$("${{submit[@]}}" --job-name=pri3d-data --wrap={data})
runs=$("${{submit[@]}}" --job-name=pri3d-runs --gpus=1 --array=0-{last} \\
    --dependency="afterok:${{data%%;*}}" --wrap={group})
table=$("${{submit[@]}}" --job-name=pri3d-table --dependency="afterany:${{runs%%;*}}" --wrap={table})
echo "data ${{data}}, runs ${{runs}}, table ${{table}}"
"""


class StudyFolder(NamedTuple):
    """Where everything of a study lies."""

    root: Path
    study: Study
    folders: Mapping[str, Path] = {}  #: of data, by the name of the option that gave it

    def store(self, part: str) -> Path:
        """Prepared dataset, or labelled images as they are, of a part of the study. Raises ConfigError as recording."""
        stated = self.study.settings["parts"][part]
        return self._given(stated["images"]) if "images" in stated else self.root / "prepared" / part

    def recording(self, part: str) -> Path:
        """Recording that a part is prepared from. Raises ConfigError where its folder was not given."""
        stated = self.study.settings["parts"][part]
        return self._given(stated["recording"]) if "recording" in stated else self.root / "recordings" / part

    def folder(self, run: str) -> Path:
        """Folder of a run."""
        return self.root / "runs" / run

    def check(self, parts: Sequence[str]) -> None:
        """Raise ConfigError where the user has not named a folder that these parts need."""
        for part in parts:
            stated = self.study.settings["parts"][part]
            for key in ("images", "recording"):
                if key in stated:
                    self._given(stated[key])

    def _given(self, option: str) -> Path:
        if option not in self.folders:
            raise ConfigError(
                f"--on {self.study.on}: say where its data lie, with --{option.replace('_', '-')} FOLDER."
            )
        return self.folders[option]


def make_parts(
    place: StudyFolder, parts: Sequence[str], workers: int, max_failed: float, say: Callable[[str], None]
) -> None:
    """Render and prepare what the runs need; what is there stays.

    Of a part a share ``max_failed`` of the scenes may fail: they are named, and the others are the part. Raises
    ConfigError and DataError as those verbs, and DataError where more fail.
    """
    settings = place.study.settings
    for part in parts:
        stated = settings["parts"][part]
        if "images" in stated:
            continue
        if "rooms" in stated:
            rooms(place.recording(part), size=settings["prepare"]["size"], processes=workers, **stated["rooms"])
        pairs = part == "pretrain"
        options = {**settings["prepare"], **stated.get("options", {})}
        try:
            prepare(
                [place.recording(part)], place.store(part), pairs=pairs, surface=pairs, processes=workers, **options
            )
        except FailedScenesError as error:
            share = f"{part}: {len(error.failed)} of {error.total} scans failed"
            if len(error.failed) > max_failed * error.total:
                text = f"{share}, more than --max-failed {max_failed:g} allows. Mend them, or raise it. {error}"
                raise DataError(text) from error
            say(f"{share} and are left out: {', '.join(error.failed)}")


def is_finished(place: StudyFolder, run: PlannedRun) -> bool:
    """Whether a run is there. Raises ConfigError where its folder holds one of other options."""
    paths = RunPaths(place.folder(run.name))
    before = read_stamp(paths.path / RECORD, _ELSEWHERE)
    if before is None:
        return False
    refuse_other_settings(paths.path, before, {**dict.fromkeys(before), **requested_options(run)}, _ELSEWHERE)
    # A fine-tuning run writes its scores every so often; its weights are there when it has ended.
    return paths.weights.is_file() and (run.verb == "pretrain" or paths.scores.is_file())


def finished(place: StudyFolder, runs: Sequence[PlannedRun]) -> set[str]:
    """Names of the runs that are there. Raises ConfigError as :func:`is_finished`."""
    return {run.name for run in runs if is_finished(place, run)}


def make_runs(
    place: StudyFolder, runs: Sequence[PlannedRun], workers: int, say: Callable[[str], None]
) -> dict[str, str]:
    """Make the runs, ``workers`` at a time, a pre-training before what begins with it; return why some failed."""
    todo = {run.name: run for run in runs if not is_finished(place, run)}
    count = len(todo)
    failed: dict[str, str] = {}
    running: set[str] = set()

    def ready(free: int) -> list[PlannedRun]:
        """Runs that wait for none; those whose beginning failed go to ``failed``."""
        for run in list(todo.values()):
            if run.after in failed:
                failed[run.name] = f"{run.after} failed"
                del todo[run.name]
        found = [run for run in todo.values() if run.after not in todo and run.after not in running][:free]
        for run in found:
            running.add(todo.pop(run.name).name)
        return found

    processes = max(1, min(workers, count))
    threads = max(1, cores() // processes)
    with closing(run_apart(partial(make_run, place), ready, processes, threads)) as outcomes:
        for outcome in outcomes:
            name = outcome.item.name
            running.remove(name)
            if outcome.error is not None:
                fix = " Give fewer --jobs." if isinstance(outcome.error, KilledError) else ""
                failed[name] = f"{outcome.error}{fix} (see {place.folder(name) / LOG})"
            say(f"[{count - len(todo) - len(running)}/{count}] {name}: {failed.get(name) or outcome.result()}")
    return failed


def make_run(place: StudyFolder, run: PlannedRun) -> str:
    """Make one run, or continue it; say how long it took. What it says goes to its log.

    Raises Pri3DError with the reason, of whatever kind, where it fails.
    """
    began = time.perf_counter()
    folder = place.folder(run.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, requested_options(run))
    with (folder / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            call(place, run)
        except Pri3DError:
            traceback.print_exc()
            raise
        except Exception as error:  # one run that fails must not end the others; the log has where it failed
            traceback.print_exc()
            raise Pri3DError(f"{type(error).__name__}: {error}") from None
    return f"{(time.perf_counter() - began) / 60:.1f} min"


def call(place: StudyFolder, run: PlannedRun) -> None:
    """Call the run's verb, to continue where its folder holds a part of it. Raises as the verb does."""
    folder = place.folder(run.name)
    options: dict[str, Any] = {**in_groups(run), "run": folder, "resume": RunPaths(folder).config.exists()}
    stores = [place.store(part) for part in run.parts]
    if run.verb == "pretrain":
        _name_images(place, options)
        pretrain(stores[0], **gathered("objectives", PretrainOptions, options))
    else:
        task, data = options.pop("task"), stores[0]
        options["weights"] = str(place.folder(run.after) if run.after else options["weights"])
        options["val"] = stores[1] if len(stores) > 1 else None
        options["label_map"] = options.pop("labels", None)
        finetune(task, data, **gathered("tasks", FinetuneOptions, options))


def in_groups(run: PlannedRun) -> dict[str, Any]:
    """Options of a run by their present names and in their groups.

    A study states them once for all rows of a table: those of objectives that are not in use are left out.
    """
    if run.verb != "pretrain":
        return current(run.options, str(run.options["task"]))
    options = current(run.options, "pretrain")
    shared = {name: value for name, value in options.items() if name in ("objectives", "keep")}
    idle = set(registry.names("objectives", registry.OBJECTIVES)) - set(
        resolve_pretraining(str(run.options["preset"]), shared).active
    )
    return {name: value for name, value in options.items() if name not in idle}


def settings_of(place: StudyFolder, run: PlannedRun) -> TrainSettings:
    """Settings that a run will have; of one in epochs with its steps. Raises ConfigError as the verbs do."""
    options = in_groups(run)
    preset = str(options.pop("preset"))
    if run.verb == "pretrain":
        return resolve_pretraining(preset, options)
    task = str(options.pop("task"))
    epochs = options.get("epochs")
    settings = {name: value for name, value in options.items() if name not in _OF_CALL}
    found = resolve_finetuning(task, preset, settings)
    if epochs is None:
        return found
    return dataclasses.replace(found, steps=max(1, math.ceil(epochs * _images(place, run) / found.batch)))


def _images(place: StudyFolder, run: PlannedRun) -> int:
    """Labelled images that a fine-tuning trains on: those of the folder where it is there, else what the study says."""
    part = run.parts[0]
    stated, fraction = place.study.settings["parts"][part], float(run.options["fraction"])
    try:
        images = open_labelled(place.store(part), "train", whole=len(run.parts) > 1)
        return len(images.subset(fraction))
    except Pri3DError:  # what is wrong with the folder is said by the run
        count = stated["rooms"]["rooms"] * stated["rooms"]["frames"] if "rooms" in stated else stated["count"]
        return round(fraction * int(count))


def command(place: StudyFolder, run: PlannedRun) -> str:
    """The run as a command to type, quoted for the shell."""
    options = in_groups(run)
    words = ["pri3d", run.verb]
    words += [options.pop("task")] if run.verb == "finetune" else []
    words.append(str(place.store(run.parts[0])))
    words += ["--val", str(place.store(run.parts[1]))] if len(run.parts) > 1 else []
    words += ["--weights", str(place.folder(run.after))] if run.after else []
    _name_images(place, options)
    if "labels" in options:
        options["label_map"] = options.pop("labels")
    for way, value in leaves(options):
        words += [f"--{'.'.join(way).replace('_', '-')}", str(value)]
    return shlex.join([*words, "--run", str(place.folder(run.name))])


def _name_images(place: StudyFolder, options: dict[str, Any]) -> None:
    """Put the folder of further images in the place of its name."""
    if "images" in options.get("moco", {}):
        options["moco"] = {**options["moco"], "images": place.folders[options["moco"]["images"]]}


def requested_options(run: PlannedRun) -> dict[str, Any]:
    """What ``reproduce.json`` says of a run."""
    return {"verb": run.verb, "after": run.after, "parts": list(run.parts), **run.options}


class RunCost(NamedTuple):
    """What a run takes, alone on the machine."""

    minutes: float
    gigabytes: float  #: of the GPU where there is one, else of the machine
    source: str  #: what says so

    def words(self) -> tuple[str, str, str]:
        """Cells of a table."""
        return f"{self.minutes:,.1f}", f"{self.gigabytes:.1f}", self.source


def estimate(place: StudyFolder, runs: Sequence[PlannedRun]) -> dict[str, RunCost]:
    """Run name -> cost. Kinds of runs of which none has finished are tried in a temporary folder.

    Raises ConfigError as the verbs do.
    """
    by_kind: dict[tuple[str, ...], list[PlannedRun]] = {}
    for run in runs:
        kind = (run.verb, *(str(run.options.get(key)) for key in _KIND_OPTIONS))
        by_kind.setdefault(kind, []).append(run)
    found: dict[tuple[str, ...], RunCost] = {}
    for kind, some in by_kind.items():
        done = [run for run in some if is_finished(place, run)]
        if done:
            paths = RunPaths(place.folder(done[0].name))
            found[kind] = RunCost(paths.minutes(), _gigabytes(paths), "a run like it")
    unknown = {kind: some[0] for kind, some in by_kind.items() if kind not in found}
    if unknown:
        settings = place.study.settings  # a trial is made on one rendered room, in the sizes of the study
        trial_study = place.study._replace(settings={**settings, "parts": {_ROOM: {}}})
        with TemporaryDirectory() as folder:
            trial = StudyFolder(Path(folder), trial_study)
            recording = trial.recording(_ROOM)
            with (trial.root / LOG).open("w") as log, redirect_stdout(log), redirect_stderr(log):
                size = settings["prepare"].get("size", "320x240")
                rooms(recording, rooms=1, frames=_ROOM_FRAMES, size=size, processes=1)
                prepare([recording], trial.store(_ROOM), processes=1, **settings["prepare"])
            for kind, run in track(unknown.items(), "trying"):
                found[kind] = _run_trial(trial, run, place)
    return {run.name: found[kind] for kind, some in by_kind.items() for run in some}


def _run_trial(place: StudyFolder, run: PlannedRun, full_place: StudyFolder) -> RunCost:
    """Make a few passes in a process of its own, whose memory is the run's."""
    full = settings_of(full_place, run)
    most = _TRIAL_BATCH if torch.cuda.is_available() or place.study.size == "small" else 2
    batch = min(full.micro_batch, most)
    options: dict[str, Any] = {**run.options, "steps": _PASSES, "batch": batch, "micro_batch": batch}
    if run.verb == "pretrain":
        options |= {"weights": "scratch", "holdout": 0.0, "eval_every": 0}
        if options.pop("images", None):
            options["mix"] = "frames"
    else:
        options |= {"weights": "scratch", "fraction": 1.0, "eval_every": _PASSES, "labels": None}
        options.pop("epochs", None)
    tried = PlannedRun(f"trial/{run.name}", run.verb, options, (_ROOM,) if run.verb == "pretrain" else (_ROOM, _ROOM))
    try:
        for outcome in run_in_processes(partial(make_run, place), [tried], 1):
            outcome.result()
    except KilledError as error:
        raise ConfigError(
            f"{run.name}: its trial with {batch} samples was killed, as systems do when memory runs out. Ask for the "
            "estimate on a machine with more."
        ) from error
    paths = RunPaths(place.folder(tried.name))
    timed = read_metrics(paths.metrics)[-3:-1]
    before, after = (row["step"] * batch / row["samples_per_s"] for row in timed)  # seconds since the start
    minutes = (after - before) * full.steps * full.batch / batch / 60
    return RunCost(minutes, _gigabytes(paths), f"{_PASSES} passes, tried now")


def _gigabytes(paths: RunPaths) -> float:
    return max(row["memory_mb"] for row in read_metrics(paths.metrics)) / 1000


class ExperimentPlan(NamedTuple):
    """An experiment, its runs and where they lie."""

    place: StudyFolder
    experiment: Experiment
    matrix: Matrix


def show_plan(plan: ExperimentPlan, jobs: int) -> None:
    """Print every run with its group, its state and what it will take, the commands, and the whole.

    Raises ConfigError where a folder holds a run of other options.
    """
    place, matrix = plan.place, plan.matrix
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=_TABLE_WIDTH)
    table = Table(title=plan.experiment.title)
    for column in ("group", "run", "state", "minutes", "GB", "from"):
        table.add_column(column, justify="right" if column in ("group", "minutes", "GB") else "left", overflow="fold")
    costs = estimate(place, matrix.runs)
    todo = []
    for number, runs in enumerate(groups(matrix)):
        for run in runs:
            finished, cost = is_finished(place, run), costs[run.name]
            todo += [] if finished else [(run, cost)]
            state = "finished" if finished else "begun" if place.folder(run.name).exists() else "to do"
            table.add_row(str(number), run.name, state, *cost.words())
    console.print(table)
    for run, _ in todo:
        console.print(command(place, run), soft_wrap=True, highlight=False)
    for row, why in matrix.left_out.items():
        console.print(f"left out: {row}: {why}", soft_wrap=True, highlight=False)
    hours = sum(cost.minutes for _, cost in todo) / 60
    gigabytes = max((cost.gigabytes for _, cost in todo), default=0.0)
    at_once = min(jobs, len(todo)) or 1
    console.print(
        f"{len(todo)} runs to do: about {hours:.1f} hours one after the other, {hours / at_once:.1f} with "
        f"--jobs {jobs}; {gigabytes * at_once:.1f} GB at most",
        soft_wrap=True,
        highlight=False,
    )


def write_slurm_script(path: Path, plan: ExperimentPlan, options: Sequence[str]) -> Path:
    """Write a bash script that submits three jobs: data, an array with one task a group, the table.

    ``options``: the words after ``pri3d reproduce`` that say what the work is. Raises ConfigError where it has no runs.
    """
    parts = groups(plan.matrix)
    if not parts:
        raise ConfigError(f"--slurm: {plan.experiment.name} has no runs; make it without.")
    words = ["pri3d", "reproduce", *options]

    def quoted(only: str) -> str:
        # The number of the task is for the node's shell to put in.
        return shlex.quote(f"{shlex.join(words)} --only {only}")

    text = _SLURM_SCRIPT.format(
        title=plan.experiment.title,
        runs=len(plan.matrix.runs),
        groups=len(parts),
        last=len(parts) - 1,
        logs=shlex.quote(str(plan.place.root / "slurm")),
        data=quoted("data"),
        group=quoted("$SLURM_ARRAY_TASK_ID"),
        table=quoted("table"),
    )
    return write_atomic(path, text.encode())

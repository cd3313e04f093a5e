"""The runs of an experiment: their data and execution, each in its own process or in several by torchrun."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

import torch

from pri3d import registry
from pri3d.api.finetune import FinetuneOptions, finetune, resolve_finetuning
from pri3d.api.plugins import gathered
from pri3d.api.prepare import prepare
from pri3d.api.presets import current
from pri3d.api.pretrain import PretrainOptions, pretrain, resolve_pretraining
from pri3d.api.rooms import rooms
from pri3d.api.training import TrainSettings
from pri3d.errors import ConfigError, DataError, FailedScenesError, Pri3DError
from pri3d.files.stamp import read_stamp, refuse_other_settings
from pri3d.labelled import open_labelled
from pri3d.machine import cores
from pri3d.processes import KilledError, run_apart
from pri3d.reproduction.matrix import PlannedRun, Study
from pri3d.runs import RunPaths, leaves, write_json

RECORD = "reproduce.json"  #: what a run was asked for; another request for the same folder is refused
LOG = "log.txt"  #: what the run said
_ELSEWHERE = "Choose another --out."
_OF_CALL = ("part", "labels", "weights", "epochs")  # options of finetune that are no settings


class RunHardware(NamedTuple):
    """What every run of an experiment is given of the machines; none of it changes what is trained but rounding."""

    devices: int = 1  #: processes on each machine, one a GPU
    nodes: int = 1  #: machines
    workers: int | None = None  #: loader processes of each process; None leaves it to the verb
    checkpoint_minutes: float | None = None  #: the same
    gpus: tuple[str, ...] = ()  #: those that one run may use, as CUDA_VISIBLE_DEVICES has them; empty: all there are

    def of_run(self, settings: TrainSettings) -> RunHardware:
        """Return as many devices as the passes of a step of a run can be shared by, on all machines or on one."""
        every = self.devices * self.nodes
        if settings.batch % (settings.pass_size(every) * every) == 0:
            return self
        fitting = [n for n in range(1, self.devices + 1) if settings.batch % (settings.pass_size(n) * n) == 0]
        return self._replace(devices=max(fitting, default=1), nodes=1)


class PlacedRun(NamedTuple):
    """A run and what it is made with."""

    run: PlannedRun
    hardware: RunHardware


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
                f"--on {self.study.on}: give the location of its data with --{option.replace('_', '-')} FOLDER."
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
                text = f"{share}, more than --max-failed {max_failed:g} allows. Fix them, or raise it. {error}"
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
    place: StudyFolder,
    runs: Sequence[PlannedRun],
    workers: int,
    say: Callable[[str], None],
    hardware: RunHardware = RunHardware(),  # noqa: B008 (frozen)
) -> dict[str, str]:
    """Make the runs, ``workers`` at a time, a pre-training before what begins with it; return why some failed.

    Where there are several GPUs, every run has ``devices`` of them to itself. Raises ConfigError where there are too
    few for that.
    """
    gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus = gpus or [str(k) for k in range(torch.cuda.device_count())]
    slots = share_gpus(gpus, workers, hardware.devices)
    todo = {run.name: run for run in runs if not is_finished(place, run)}
    count = len(todo)
    failed: dict[str, str] = {}
    running: dict[str, tuple[str, ...]] = {}  # run -> its GPUs

    def ready(free: int) -> list[PlacedRun]:
        """Runs that wait for none; those whose beginning failed go to ``failed``."""
        for run in list(todo.values()):
            if run.after in failed:
                failed[run.name] = f"{run.after} failed"
                del todo[run.name]
        found = [run for run in todo.values() if run.after not in todo and run.after not in running][:free]
        placed = []
        for run in found:
            running[run.name] = slots.pop()
            placed.append(PlacedRun(todo.pop(run.name), hardware._replace(gpus=running[run.name])))
        return placed

    processes = max(1, min(workers, count))
    threads = max(1, cores() // processes)
    with closing(run_apart(partial(make_run, place), ready, processes, threads)) as outcomes:
        for outcome in outcomes:
            name = outcome.item.run.name
            slots.append(running.pop(name))
            if outcome.error is not None:
                fix = " Give fewer --jobs." if isinstance(outcome.error, KilledError) else ""
                failed[name] = f"{outcome.error}{fix} (see {place.folder(name) / LOG})"
            say(f"[{count - len(todo) - len(running)}/{count}] {name}: {failed.get(name) or outcome.result()}")
    return failed


def share_gpus(gpus: Sequence[str], jobs: int, devices: int) -> list[tuple[str, ...]]:
    """GPUs of each of ``jobs`` runs at a time; empty where there is one GPU or none, which all use.

    Runs of one device share GPUs where there are more runs than GPUs. Raises ConfigError where several are asked for
    and are not there.
    """
    if len(gpus) < 2:
        return [()] * jobs
    if devices > 1 and jobs * devices > len(gpus):
        text = f"--jobs {jobs} --devices {devices}: this machine has {len(gpus)} GPUs."
        raise ConfigError(f"{text} Give fewer, so that every run has its own.")
    return [tuple(gpus[(k * devices + d) % len(gpus)] for d in range(devices)) for k in range(jobs)]


def make_run(place: StudyFolder, placed: PlacedRun) -> str:
    """Make one run, or continue it; say how long it took. What it says goes to its log.

    Raises Pri3DError with the reason, of whatever kind, where it fails.
    """
    began = time.perf_counter()
    run = placed.run
    folder = place.folder(run.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, requested_options(run))
    with (folder / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            hardware = placed.hardware.of_run(settings_of(place, run))
            if hardware.gpus:  # this process is the run's own, and has not looked at a GPU yet
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(hardware.gpus[: hardware.devices])
            if hardware.devices * hardware.nodes > 1:
                launch(place, run, hardware, log)
            else:
                call(place, run, hardware)
        except Pri3DError:
            traceback.print_exc()
            raise
        except Exception as error:  # one run that fails must not end the others; the log has where it failed
            traceback.print_exc()
            raise Pri3DError(f"{type(error).__name__}: {error}") from None
    return f"{(time.perf_counter() - began) / 60:.1f} min"


def launch(place: StudyFolder, run: PlannedRun, hardware: RunHardware, log: IO[str]) -> None:
    """Make a run with several processes, started by torchrun, on several machines by srun before it.

    Raises Pri3DError with its last line where it fails, ConfigError for several machines without Slurm.
    """
    words = command(place, run, hardware)[1:]
    words += ["--resume"] if RunPaths(place.folder(run.name)).config.exists() else []
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={hardware.devices}"]
    if hardware.nodes > 1:
        if shutil.which("srun") is None:
            raise ConfigError(f"--nodes {hardware.nodes}: several machines need Slurm, whose srun is not here.")
        job = int(os.environ.get("SLURM_JOB_ID", "0"))
        meeting = f"{os.environ.get('SLURMD_NODENAME') or socket.gethostname()}:{29500 + job % 1000}"
        start = ["srun", f"--nodes={hardware.nodes}", "--ntasks-per-node=1", *start, f"--nnodes={hardware.nodes}"]
        start += ["--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", f"--rdzv-id=pri3d-{job}"]
    else:
        start += ["--standalone"]
    threads = max(1, torch.get_num_threads() // hardware.devices)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    log.flush()

    def end(_number: int, _frame: FrameType | None) -> None:
        process.terminate()

    with subprocess.Popen(
        [*start, "-m", "--", "pri3d", *words], stdout=log, stderr=subprocess.STDOUT, env=environment
    ) as process:
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as nohup asks for
                signal.signal(number, end)
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            process.terminate()
    if code:
        said = Path(log.name).read_text(encoding="utf-8").splitlines()
        reasons = [line for line in said if re.match(r"(pri3d: )?[Ee]rror", line.strip())]
        raise Pri3DError(f"ended with code {code}: {(reasons or said or ['nothing was said'])[-1].strip()}")


def call(place: StudyFolder, run: PlannedRun, hardware: RunHardware = RunHardware()) -> None:  # noqa: B008 (frozen)
    """Call the run's verb, to continue where its folder holds a part of it. Raises as the verb does."""
    folder = place.folder(run.name)
    options: dict[str, Any] = {**in_groups(run), "run": folder, "resume": RunPaths(folder).config.exists()}
    options |= _of_call(hardware)
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


def _of_call(hardware: RunHardware) -> dict[str, Any]:
    """Options of a verb that say how the machine is used."""
    minutes = hardware.checkpoint_minutes
    return {
        **({} if hardware.workers is None else {"workers": hardware.workers}),
        **({} if minutes is None else {"checkpoint": {"minutes": minutes}}),
    }


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
    return dataclasses.replace(found, steps=max(1, math.ceil(epochs * count_images(place, run) / found.batch)))


def count_images(place: StudyFolder, run: PlannedRun) -> int:
    """Labelled images that a fine-tuning trains on: those of the folder where it is there, else what the study says."""
    part = run.parts[0]
    stated, fraction = place.study.settings["parts"][part], float(run.options["fraction"])
    try:
        images = open_labelled(place.store(part), "train", whole=len(run.parts) > 1)
        return len(images.subset(fraction))
    except Pri3DError:  # what is wrong with the folder is said by the run
        count = stated["rooms"]["rooms"] * stated["rooms"]["frames"] if "rooms" in stated else stated["count"]
        return round(fraction * int(count))


def command(place: StudyFolder, run: PlannedRun, hardware: RunHardware = RunHardware()) -> list[str]:  # noqa: B008
    """The run as the words of a command."""
    options = {**in_groups(run), **_of_call(hardware)}
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
    return [*words, "--run", str(place.folder(run.name))]


def _name_images(place: StudyFolder, options: dict[str, Any]) -> None:
    """Put the folder of further images in the place of its name."""
    if "images" in options.get("moco", {}):
        options["moco"] = {**options["moco"], "images": place.folders[options["moco"]["images"]]}


def requested_options(run: PlannedRun) -> dict[str, Any]:
    """What ``reproduce.json`` says of a run."""
    return {"verb": run.verb, "after": run.after, "parts": list(run.parts), **run.options}

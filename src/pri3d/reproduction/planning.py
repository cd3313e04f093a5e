"""Cost of the runs of an experiment: measured here, or estimated for other machines; and the script for Slurm."""

from __future__ import annotations

import heapq
import shlex
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pri3d import registry
from pri3d.api.prepare import prepare
from pri3d.api.pretrain import PretrainSettings
from pri3d.api.reproduce import ReproduceOptions
from pri3d.api.rooms import rooms
from pri3d.api.training import TrainSettings
from pri3d.errors import ConfigError
from pri3d.files.atomic import write_atomic
from pri3d.geometry.resize import parse_size
from pri3d.networks.encoders import build_encoder
from pri3d.networks.segmentation import build_segmentation
from pri3d.networks.unet import UNet
from pri3d.objectives import VIEWS, any_decodes
from pri3d.processes import KilledError, run_in_processes
from pri3d.reproduction.matrix import Experiment, Matrix, PlannedRun, groups
from pri3d.reproduction.work import (
    LOG,
    PlacedRun,
    RunHardware,
    StudyFolder,
    command,
    count_images,
    is_finished,
    make_run,
    settings_of,
)
from pri3d.runs import RunPaths, read_metrics
from pri3d.terminal import Terminal, track

_PASSES = 4  #: of a trial; the last but one is timed, for the last is followed by a validation
_TRIAL_BATCH = 16  #: samples of such a pass; 2 for the paper's sizes without a GPU
_ROOM, _ROOM_FRAMES = "room", 24  #: what a trial trains on
_KIND_OPTIONS = ("preset", "encoder", "task")  # what tells kinds of runs apart
_TABLE_WIDTH = 140  #: characters of the table where it goes to a file
_SLURM_SCRIPT = """#!/bin/bash
# {title}: {runs} runs in {groups} groups, each a pre-training with the fine-tunings that begin with it, or a
# fine-tuning alone. Run this file on the login node, in a folder that all nodes see. Options for every sbatch
# (partition, account, time) go into SBATCH_OPTIONS. Run it again after a failure: finished runs stay.
set -eo pipefail
mkdir -p {logs}
options=(${{SBATCH_OPTIONS}})
submit=(sbatch --parsable --output={logs}/%x-%j.txt "${{options[@]}}")
data=$("${{submit[@]}}" --job-name=pri3d-data{share} --wrap={data})
runs=$("${{submit[@]}}" --job-name=pri3d-runs --array=0-{last} \\
    --nodes={nodes} --ntasks-per-node=1 --gpus-per-node={devices}{share} \\
    --dependency="afterok:${{data%%;*}}" --wrap={group})
table=$("${{submit[@]}}" --job-name=pri3d-table --dependency="afterany:${{runs%%;*}}" --wrap={table})
echo "data ${{data}}, runs ${{runs}}, table ${{table}}"
"""


class Gpu(NamedTuple):
    """What a kind of GPU can do, by its maker's tables."""

    title: str
    tflops: float  #: dense products a second in the precision that ``auto`` takes there, in 10^12
    bytes: int  #: of a number in that precision: 2 of bf16, 4 where there is none
    bandwidth: float  #: of its memory, 10^12 bytes a second
    memory: float  #: 10^9 bytes


GPUS = {
    "v100": Gpu("V100 32 GB", 15.7, 4, 0.9, 32),
    "a100": Gpu("A100 80 GB", 312.0, 2, 2.0, 80),
    "a100-40": Gpu("A100 40 GB", 312.0, 2, 1.55, 40),
    "h100": Gpu("H100 80 GB", 989.0, 2, 3.35, 80),
    "rtx4090": Gpu("RTX 4090 24 GB", 165.0, 2, 1.0, 24),
    "rtx3090": Gpu("RTX 3090 24 GB", 71.0, 2, 0.94, 24),
}
#: The model of cost, none of which was measured on a GPU. Products: those of the network, forward and twice backward,
#: at this share of the GPU's peak, by the bytes of a number: what ResNet-50 reaches on published benchmarks.
SHARE_OF_PEAK = {2: 0.2, 4: 0.5}
SHARE_OF_BANDWIDTH = 0.5  #: at which the 3D network gathers and adds features, which is what it waits for
VOXELS = 170_000  #: of a frame's chunk at 2 cm in a room of ScanNet's size
LINK = (
    10.0  #: 10^9 bytes a second between machines; inside one the exchange of gradients hides behind the backward pass
)
#: 3D network -> numbers that a forward pass reads and adds a voxel, bytes it keeps of one in fp32, and its parameters
NET3D = {
    "34C": (24_257.0, 7400.0, 37_855_424),
    "18A": (22_894.0, 7000.0, 15_492_544),
    "14A": (13_027.0, 4000.0, 8_023_872),
    "tiny": (4_782.0, 1500.0, 1_249_168),
}
#: kind of run -> CPU milliseconds of a loader process a pair or image (benchmarks/loading.py; of detection by estimate)
LOADER_MS = {"geometry": 13.0, "pairs": 10.0, "moco": 12.0, "semantic": 4.0, "instance": 20.0}
SCENE_MB = 12.0  #: of a prepared scan: 66 frames of 320 x 240 and 300,000 voxels
_DETECTOR = 2.0  # products of FPN, proposals and heads beside the backbone's: as many
_OVERHEAD = 1.5  # GB of a GPU that PyTorch and its libraries take


class Machine(NamedTuple):
    """GPUs that a plan is made for."""

    gpus: int
    gpu: Gpu

    @classmethod
    def of(cls, text: str) -> Machine:
        """``8xa100`` -> a machine. Raises ConfigError listing the kinds."""
        if text.lower() in GPUS:  # rtx4090 has an x of its own
            return cls(1, GPUS[text.lower()])
        for split in range(len(text)):
            count, name = text[:split], text[split + 1 :].lower()
            if count.isdecimal() and int(count) and text[split].lower() == "x" and name in GPUS:
                return cls(int(count), GPUS[name])
        raise ConfigError(f"--machine {text}: write a number and a kind, as in 8xa100. Kinds: {', '.join(GPUS)}.")


class ModelledCost(NamedTuple):
    """What a run takes by the model."""

    steps: int
    hours: float
    gigabytes: float  #: of each GPU
    disk: float  #: GB that it leaves
    waits: bool  #: whether the GPU would wait for the loader
    gpus: int

    def words(self) -> tuple[str, ...]:
        """Cells of a table."""
        numbers = f"{self.hours:,.1f}", f"{self.gigabytes:.0f}", f"{self.disk:.1f}"
        return f"{self.steps:,}", str(self.gpus), *numbers, "*" if self.waits else ""


class _Pass(NamedTuple):
    """One image through a network."""

    flops: float  #: of the forward pass
    numbers: float  #: kept for the backward pass
    parameters: int


@cache
def _count_unet(encoder: str, decoder: str | None, channels: int | Literal["auto"], size: tuple[int, int]) -> _Pass:
    """Count the encoder alone without a decoder."""
    with torch.device("meta"):
        net = build_encoder(encoder)
        return _count(net if decoder is None else UNet(net, decoder, channels), size)


def _count(net: nn.Module, size: tuple[int, int]) -> _Pass:
    kept = [0.0]
    kinds = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    for module in net.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _module, _given, out: kept.__setitem__(0, kept[0] + out.numel()))
    images = torch.empty(2, 3, size[1], size[0], device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    return _Pass(counter.get_total_flops() / 2, kept[0] / 2, sum(p.numel() for p in net.parameters()))


def model_cost(
    place: StudyFolder, run: PlannedRun, settings: TrainSettings, gpu: Gpu, hardware: RunHardware
) -> ModelledCost:
    """Return what a run of these settings takes on GPUs of a kind by the model above, as many as it is given."""
    hardware = hardware.of_run(settings)
    devices = hardware.devices * hardware.nodes
    micro = settings.pass_size(devices)
    moved = voxels = 0.0  # numbers of the 3D network a sample, and its voxels
    kept3d = 0.0
    if isinstance(settings, PretrainSettings):
        size = parse_size(settings.size)
        if settings.crops_alone:
            one = _count_unet(settings.encoder, None, 0, (settings.own["moco"].crop,) * 2)
            # The query is learnt from, the key goes through alone.
            flops, numbers, parameters, kind = one.flops * 4, one.numbers, 2 * one.parameters, "moco"
        else:
            decoder = settings.unet.decoder if any_decodes(settings.active) else None
            one = _count_unet(settings.encoder, decoder, settings.unet.channels if decoder else 0, size)
            shown: set[str] = set()  # images of a pair that the network sees
            for name in settings.active:
                own = registry.load("objectives", registry.OBJECTIVES, name).views
                shown |= set(VIEWS[: settings.own["geometry"].chunks] if name == "geometry" else own)
            views = max(1, len(shown))
            flops, numbers, parameters, kind = 3 * views * one.flops, views * one.numbers, one.parameters, "pairs"
            if "geometry" in settings.own:
                geo: Any = settings.own["geometry"]
                per_voxel, kept3d, of_net = NET3D[geo.net3d]
                voxels, kind = geo.chunks * VOXELS * (0.02 / geo.voxel) ** 2, "geometry"
                moved, parameters = 3 * per_voxel * voxels, parameters + of_net
        measured = 0.0
    else:
        kind = str(run.options["task"])
        flops, numbers, parameters, measured = _count_finetuning(place, run, settings)
    compute = flops / (1e12 * gpu.tflops * SHARE_OF_PEAK[gpu.bytes])
    compute += moved * gpu.bytes / (1e12 * gpu.bandwidth * SHARE_OF_BANDWIDTH)
    exchange = 2 * 4 * parameters / (1e9 * LINK) if hardware.nodes > 1 else 0.0
    step = settings.batch / devices * compute + exchange
    loaders = max(1, 1 if hardware.workers is None else hardware.workers)
    loading = settings.batch / devices * LOADER_MS[kind] / 1e3 / loaders
    seconds = settings.steps * max(step, loading)
    # A measurement makes forward passes alone.
    seconds += measured * flops / 3 / (1e12 * gpu.tflops * SHARE_OF_PEAK[gpu.bytes]) / devices
    memory = 12 * parameters + micro * (numbers * gpu.bytes + voxels * kept3d * gpu.bytes / 4)
    disk = (8 + 3 * 4) * parameters / 1e9  # a checkpoint with its momentum; weights first, last and best
    return ModelledCost(settings.steps, seconds / 3600, memory / 1e9 + _OVERHEAD, disk, loading > step, devices)


def _count_finetuning(place: StudyFolder, run: PlannedRun, settings: Any) -> tuple[float, float, int, float]:
    """Products of a training image, numbers kept, parameters, and images measured while the run trains."""
    if settings.network == "unet":
        own = settings.own["semantic"]
        one = _count_unet(settings.encoder, own.decoder, own.channels, parse_size(own.size))
    elif settings.network == "maskrcnn":
        short = sum(settings.own["instance"].short_sides) // len(settings.own["instance"].short_sides)
        alone = _count_unet(settings.encoder, None, 0, (short * 4 // 3, short))
        one = _Pass(alone.flops * _DETECTOR, alone.numbers * _DETECTOR, int(alone.parameters * _DETECTOR))
    else:
        with torch.device("meta"):
            net = build_segmentation(settings.network, build_encoder(settings.encoder), 20)
        one = _count(net, parse_size(settings.own["semantic"].size))
    stated = place.study.settings["parts"][run.parts[0]]
    val = int(stated.get("val", 0)) or count_images(place, run)
    return 3 * one.flops, one.numbers, one.parameters, val * (settings.steps // settings.validation.every + 1)


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
        for outcome in run_in_processes(partial(make_run, place), [PlacedRun(tried, RunHardware())], 1):
            outcome.result()
    except KilledError as error:
        raise ConfigError(
            f"{run.name}: its trial with {batch} samples was killed, probably because memory ran out. Ask for the "
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


def show_plan(plan: ExperimentPlan, jobs: int, hardware: RunHardware, machine: Machine | None) -> None:
    """Print every run with its group, its state and what it will take, the commands, and the whole.

    For a ``machine`` by the model of cost, else by trials on this one. Raises ConfigError where a folder holds a run of
    other options.
    """
    place, matrix = plan.place, plan.matrix
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=_TABLE_WIDTH)
    costs = estimate(place, matrix.runs) if machine is None else {}
    modelled: dict[str, ModelledCost] = {}
    if machine is not None:
        settings = {run.name: settings_of(place, run) for run in matrix.runs}
        modelled = {r.name: model_cost(place, r, settings[r.name], machine.gpu, hardware) for r in matrix.runs}
    columns = ("minutes", "GB", "from") if machine is None else ("steps", "GPUs", "hours", "GB a GPU", "GB of disk", "")
    table = Table(title=plan.experiment.title)
    for column in ("group", "run", "state", *columns):
        table.add_column(column, justify="left" if column in ("run", "state", "from", "") else "right", overflow="fold")
    todo = []
    for number, runs in enumerate(groups(matrix)):
        for run in runs:
            finished = is_finished(place, run)
            todo += [] if finished else [run]
            state = "finished" if finished else "begun" if place.folder(run.name).exists() else "to do"
            cells = costs[run.name].words() if machine is None else modelled[run.name].words()
            table.add_row(str(number), run.name, state, *cells)
    console.print(table)
    for run in todo:
        console.print(shlex.join(command(place, run, hardware)), soft_wrap=True, highlight=False)
    for row, why in matrix.left_out.items():
        console.print(f"left out: {row}: {why}", soft_wrap=True, highlight=False)
    if machine is not None:
        lines = [f"{len(todo)} runs to do on {machine.gpus} x {machine.gpu.title}:"]
        for devices in dict.fromkeys((1, machine.gpus)):  # the two ways to use them
            share = hardware._replace(devices=devices, nodes=1)
            shared = {run.name: model_cost(place, run, settings[run.name], machine.gpu, share) for run in todo}
            at_once = max(1, machine.gpus // devices)
            lines.append(f"  --jobs {at_once} --devices {devices}: {_schedule(todo, shared, at_once):,.0f} hours")
        lines += _describe_machine(place, matrix, [modelled[run.name] for run in todo], machine.gpu)
    else:
        hours = sum(costs[run.name].minutes for run in todo) / 60
        gigabytes = max((costs[run.name].gigabytes for run in todo), default=0.0)
        at_once = min(jobs, len(todo)) or 1
        lines = [
            f"{len(todo)} runs to do: about {hours:.1f} hours one after the other, {hours / at_once:.1f} with "
            f"--jobs {jobs}; {gigabytes * at_once:.1f} GB at most"
        ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _describe_machine(place: StudyFolder, matrix: Matrix, todo: Sequence[ModelledCost], gpu: Gpu) -> list[str]:
    """Lines on the memory and the disk of the whole, and what the figures rest on."""
    most = max((cost.gigabytes for cost in todo), default=0.0)
    fits = "" if most <= gpu.memory else f", more than its {gpu.memory:.0f} GB: give a smaller --micro-batch"
    lines = [f"  memory: {most:.0f} GB of a GPU at most{fits}"]
    data = 0.0
    for part in matrix.parts:
        stated = place.study.settings["parts"][part]
        scenes = stated["rooms"]["rooms"] if "rooms" in stated else 1201 if "recording" in stated else 0
        data += scenes * SCENE_MB / 1e3
    lines.append(f"  disk: {data:.0f} GB of prepared data, {sum(cost.disk for cost in todo):.0f} GB of runs")
    if any(cost.waits for cost in todo):
        lines.append("  runs marked with * wait for their loaders: raise --workers")
    return [
        *lines,
        f"By a model that was not measured on a GPU: products at {SHARE_OF_PEAK[gpu.bytes]:.0%} of {gpu.tflops:g} "
        f"TFLOP/s, the 3D network at {SHARE_OF_BANDWIDTH:.0%} of {gpu.bandwidth:g} TB/s, {VOXELS:,} voxels a chunk.",
    ]


def _schedule(todo: Sequence[PlannedRun], costs: Mapping[str, ModelledCost], jobs: int) -> float:
    """Hours until the last of the runs is done, ``jobs`` at a time, each as soon as what it begins with is there."""
    done: dict[str, float] = {}
    free = [0.0] * jobs
    # Long chains first, and what begins with a run after it.
    names = {run.name for run in todo}
    chain = {r.name: sum(costs[o.name].hours for o in todo if r.name in (o.name, o.after)) for r in todo}
    order = sorted(todo, key=lambda run: (run.after in names, -chain[run.name]))
    for run in order:
        begin = max(heapq.heappop(free), done.get(str(run.after), 0.0))
        done[run.name] = begin + costs[run.name].hours
        heapq.heappush(free, done[run.name])
    return max(done.values(), default=0.0)


def write_slurm_script(path: Path, plan: ExperimentPlan, options: ReproduceOptions, words: Sequence[str]) -> Path:
    """Write a bash script that submits three jobs: data, an array with one task a group, the table.

    ``words``: those after ``pri3d reproduce`` that say what the work is. Raises ConfigError where it has no runs.
    """
    parts = groups(plan.matrix)
    if not parts:
        raise ConfigError(f"--slurm: {plan.experiment.name} has no runs; make it without.")
    words = ["pri3d", "reproduce", *words]
    share = "" if options.cpus is None else f" --cpus-per-task={options.cpus}"
    share += "" if options.memory is None else f" --mem={options.memory}"

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
        nodes=options.nodes,
        devices=options.devices,
        share=share,
    )
    return write_atomic(path, text.encode())

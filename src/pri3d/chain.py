"""``pri3d demo``: the whole chain on rooms rendered on the spot, from RGB-D frames to a better backbone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from pri3d.api.demo import DemoOptions
from pri3d.api.finetune import finetune
from pri3d.api.prepare import prepare
from pri3d.api.pretrain import MatchingOptions, pretrain
from pri3d.api.probe import probe
from pri3d.api.rooms import rooms
from pri3d.api.training import ValidationOptions
from pri3d.errors import ConfigError
from pri3d.exporting.export import export
from pri3d.intervals import interval_text, mean_interval
from pri3d.machine import cores, limit_spinning
from pri3d.processes import process_pool
from pri3d.reporting.report import build_page, write_overview
from pri3d.reporting.sources import find_sources
from pri3d.runs import Run, read_json, write_json
from pri3d.terminal import Terminal

MARK = ".pri3d-demo"  #: file by which a demo knows its own folder
ENCODER = "tf_efficientnet_lite0"  #: its ImageNet weights come by pip
SIZE = "160x120"


class RoomsPart(NamedTuple):
    """Rooms of one purpose; no room is in two parts."""

    first: int
    rooms: int
    frames: int  #: of a room
    pairs: bool  #: whether pairs are found, and a surface is fused
    labels: bool


#: what is rendered: to pre-train on, to find points in, to fine-tune on, to score segmentation on
PARTS = {
    "pretrain": RoomsPart(0, 24, 40, pairs=True, labels=False),
    "unseen": RoomsPart(240, 8, 16, pairs=True, labels=False),
    "labelled": RoomsPart(100, 10, 6, pairs=False, labels=True),
    "test": RoomsPart(200, 24, 5, pairs=False, labels=True),
}
DISTANCE = 0.04  #: metres; a pixel of so small an image is that wide a few metres away
VOXEL = 0.16  #: metres, of the surface that the report shows
PAIRS, FRAMES = 200, 64  #: that the probe measures at most
SEEDS = (0, 1)
STARTS = ("scratch", "imagenet", "pri3d")
PRETRAIN_STEPS, FINETUNE_STEPS = 250, 120
LEARNING_RATE = 1e-3  #: of fine-tuning from every start: what suited random weights best (docs/results/demo.md)
TRIAL_STEPS = 8  #: of pre-training, to see how fast the machine is
BATCH = 8  #: of the presets
FINETUNE_COST = 0.6  #: of a fine-tuning step, in pre-training steps
PROBE_COST = 60  #: of the probe, in pre-training steps
START_SECONDS = 8.0  #: of each run: building networks, reading data, the final validation
REPORT_SECONDS = 25.0  #: kept back for export and report


class DemoSteps(NamedTuple):
    """Steps that fit the time."""

    pretrain_steps: int
    finetune_steps: int
    shortened: bool


class DemoRuns(NamedTuple):
    """What was trained and measured."""

    steps: DemoSteps
    pretrained: Path
    finetuned: dict[str, list[Path]]  #: by start, a run a seed
    probed: Path  #: .json file


def demo(options: DemoOptions) -> Path:
    """Run the whole chain on rendered rooms: no data, no GPU, no download.

    See :func:`pri3d.demo` for the options.
    """
    out = Path(options.out)
    began = time.perf_counter()
    workers = options.processes or cores()
    say = Terminal(stderr=True, highlight=False).print
    limit_spinning()  # of the processes started below
    # Empty the folder of an earlier demo; refuse one that holds anything else.
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise ConfigError(f"--out {out}: holds something that no demo wrote. Choose a new or empty folder.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()
    stores = {name: _make(out, name, options.seed, workers, say) for name in PARTS}
    deadline = began + options.max_minutes * 60 - REPORT_SECONDS
    made = _train(out, stores, deadline, options.seed, workers, say)
    say("exporting, and writing the report")
    exported = export(made.pretrained, to="timm", out=out / "pri3d_lite0.safetensors")
    scores = {
        name: [read_json(run / "scores.json")["last"]["miou"] for run in runs] for name, runs in made.finetuned.items()
    }
    settings = {
        "encoder": ENCODER,
        "rooms": {name: {"rooms": part.rooms, "frames": part.frames} for name, part in PARTS.items()},
        "size": SIZE,
        "distance": DISTANCE,
        "finetune_seeds": list(SEEDS),
        "learning_rate": LEARNING_RATE,
        "seed": options.seed,
        **made.steps._asdict(),
    }
    sources = find_sources([out / "runs"])
    write_overview(out / "overview.png", sources, out / "prepared")
    difference = _difference(read_json(made.probed))
    lead = _takeaway(difference, scores, made.steps)
    page = build_page(sources, out / "prepared", "Pri3D on rendered rooms", lead)
    page.facts("The demo", settings)
    report = page.write(out / "report.html")
    minutes = round((time.perf_counter() - began) / 60, 2)
    results = {"semantic_miou": scores, "matching": difference, "minutes": minutes, "settings": settings}
    write_json(out / "results.json", results)
    _show(scores, difference, minutes, exported, report)
    return report


def _make(out: Path, name: str, seed: int, workers: int, say: Callable[[str], None]) -> Path:
    """Render and prepare the rooms of one part; returns the prepared dataset."""
    part, recording, store = PARTS[name], out / "recordings" / name, out / "prepared" / name
    say(f"rendering and preparing {part.rooms} rooms: {name}")
    rooms(
        recording, rooms=part.rooms, frames=part.frames, size=SIZE, labels=part.labels, seed=seed, first=part.first,
        processes=workers,
    )  # fmt: skip
    prepare(
        [recording], store, size=SIZE, distance=DISTANCE, voxel=VOXEL, pairs=part.pairs,
        surface=part.pairs, processes=workers,
    )  # fmt: skip
    return store


def _train(
    out: Path, stores: dict[str, Path], deadline: float, seed: int, workers: int, say: Callable[[str], None]
) -> DemoRuns:
    """Pre-train, fine-tune and probe, with a process a core; what does not need the pre-trained weights goes first."""
    run, probed = out / "runs/pri3d", out / "runs/probe.json"
    processes = min(workers, len(STARTS) * len(SEEDS) - 1)
    with process_pool(processes, max(1, cores() // processes)) as pool:
        left = deadline - time.perf_counter()
        steps = pool.submit(_plan_steps, out / "trial", stores["pretrain"], left, seed, processes).result()
        if steps.shortened:
            say(f"cut to fit the time: {steps.pretrain_steps} and {steps.finetune_steps} steps")
        say(
            f"pre-training from ImageNet, {steps.pretrain_steps} steps; beside it, fine-tuning from scratch and from "
            f"ImageNet, {steps.finetune_steps} steps"
        )
        training = pool.submit(_pretrain, stores["pretrain"], run, steps.pretrain_steps, seed)
        jobs = {name: _finetune(pool, out, stores, name, name, steps.finetune_steps) for name in STARTS[:-1]}
        training.result()
        say("fine-tuning from the pre-trained weights, and finding points in rooms that no training has seen")
        jobs[STARTS[-1]] = _finetune(pool, out, stores, STARTS[-1], str(run), steps.finetune_steps)
        pool.submit(_probe, stores["unseen"], run, probed).result()
        return DemoRuns(steps, run, {name: [job.result() for job in started] for name, started in jobs.items()}, probed)


def _pretrain(store: Path, run: Path, steps: int, seed: int) -> Run:
    """Pre-train on all rooms of the first part, from ImageNet: the preset is that for weights that are good already."""
    return pretrain(
        store,
        run=run,
        encoder=ENCODER,
        weights="imagenet",
        steps=steps,
        seed=seed,
        holdout=0.0,
        matching=MatchingOptions(distance=DISTANCE),
        workers=0,
    )


def _plan_steps(trial: Path, store: Path, seconds: float, seed: int, processes: int) -> DemoSteps:
    """Time a few steps of pre-training and cut both numbers of steps alike where they do not fit ``seconds``."""
    began = time.perf_counter()
    rate = _pretrain(store, trial, TRIAL_STEPS, seed).metrics[-1]["samples_per_s"]
    shutil.rmtree(trial)
    one = FINETUNE_COST * FINETUNE_STEPS
    runs = len(STARTS) * len(SEEDS)
    # All that is to be done by all processes, or what has to be done one after the other: whatever takes longer.
    units = max((PRETRAIN_STEPS + PROBE_COST + one * runs) / processes, PRETRAIN_STEPS + one)
    seconds -= time.perf_counter() - began + START_SECONDS * max((runs + 2) / processes, 2)
    share = min(1.0, max(0.0, seconds) * rate / (BATCH * units))
    return DemoSteps(max(10, int(share * PRETRAIN_STEPS)), max(10, int(share * FINETUNE_STEPS)), share < 1)


def _finetune(
    pool: Executor, out: Path, stores: dict[str, Path], name: str, weights: str, steps: int
) -> list[Future[Path]]:
    """Start a fine-tuning with every seed; the results are the run folders."""
    runs = {seed: out / f"runs/{name}-{seed}" for seed in SEEDS}
    common = (stores["labelled"], stores["test"], weights, steps)
    return [pool.submit(_finetune_once, run, seed, *common) for seed, run in runs.items()]


def _finetune_once(run: Path, seed: int, data: Path, val: Path, weights: str, steps: int) -> Path:
    every = ValidationOptions(every=steps)
    finetune(
        "semantic", data, val=val, encoder=ENCODER, weights=weights, part="encoder", run=run, seed=seed, steps=steps,
        validation=every, lr=LEARNING_RATE, workers=0,
    )  # fmt: skip
    return run


def _probe(store: Path, run: Path, out: Path) -> None:
    """Measure the encoder before and after pre-training in rooms that it has not seen."""
    probe(
        store, weights=[run], features="encoder", portion="all", tasks="matching,depth,normals", size=SIZE,
        max_pairs=PAIRS, max_frames=FRAMES, out=out,
    )  # fmt: skip


def _difference(found: dict[str, Any]) -> dict[str, Any]:
    """Recall of points, the mean over the angles, before and after, and the ends of the difference's interval."""
    before, after = found["networks"].values()
    of = next(iter(after["differences"].values()))["matching / balanced"]
    values = {"before": before["matching"]["balanced"], "after": after["matching"]["balanced"]}
    return {**values, **{end: of[end] for end in ("difference", "low", "high")}}


def _takeaway(matching: dict[str, Any], scores: dict[str, list[float]], steps: DemoSteps) -> str:
    """Say what a reader may conclude: what the intervals allow, and no more."""
    cut = "The machine was too slow for all steps, so that this is a shortened demo. " if steps.shortened else ""
    points = (
        f"Points of rooms that no training has seen are found again in another view {matching['before']:.1%} of the "
        f"time by ImageNet's features, and {matching['after']:.1%} after {steps.pretrain_steps} steps of Pri3D on "
        f"{PARTS['pretrain'].rooms} other rooms: {_gain(matching)}. "
    )
    means = ", ".join(f"{_NAMES[name]} {np.mean(values):.1%}" for name, values in scores.items())
    return (
        f"{cut}{points}Segmentation, fine-tuned for {steps.finetune_steps} steps on {PARTS['labelled'].rooms} rooms "
        f"and scored on {PARTS['test'].rooms} others, mean IoU: {means}. {_conclusion(scores)}"
    )


_NAMES = {"scratch": "from scratch", "imagenet": "ImageNet", "pri3d": "ImageNet + Pri3D"}


def _gain(matching: dict[str, Any]) -> str:
    """Difference of the recall with its interval, of which a file says None where it is not known."""
    low, high = matching["low"], matching["high"]
    known = low is not None and high is not None and np.isfinite(low)
    ends = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}" if known else "of too few frames for an interval"
    return f"{100 * matching['difference']:+.1f} points, {ends}"


def _conclusion(scores: dict[str, list[float]]) -> str:
    """Whether the seeds show that Pri3D's segmentation differs from ImageNet's."""
    gains = [ours - theirs for ours, theirs in zip(scores["pri3d"], scores["imagenet"], strict=True)]
    mean, half = mean_interval(gains)
    said = f"Pri3D minus ImageNet: {interval_text(100 * mean, 100 * half)} points"
    if np.isnan(half) or abs(mean) <= half:
        return f"{said}; so few seeds do not show whether that is more than chance."
    return f"{said}, 95 % interval of {len(gains)} seeds."


def _show(
    scores: dict[str, list[float]], matching: dict[str, Any], minutes: float, exported: Path, report: Path
) -> None:
    table = Table(title="semantic segmentation of unseen rooms, mIoU in %")
    for column in ("start", *(f"seed {seed}" for seed in SEEDS), "mean"):
        table.add_column(column, justify="left" if column == "start" else "right")
    for name, values in scores.items():
        table.add_row(_NAMES[name], *(f"{100 * v:.1f}" for v in values), f"{100 * np.mean(values):.1f}")
    console = Terminal()
    console.print(table)
    console.print(_conclusion(scores))
    console.print(
        f"Points found again in unseen rooms: {matching['before']:.1%} before, {matching['after']:.1%} after; "
        f"{_gain(matching)}. {minutes:.1f} minutes."
    )
    console.print(f"weights: {exported}\nreport:  {report}")

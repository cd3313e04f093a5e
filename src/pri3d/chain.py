"""``pri3d demo``: the whole chain on rooms rendered on the spot, from RGB-D frames to a better backbone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from rich.table import Table

from pri3d.api.demo import DemoOptions
from pri3d.api.finetune import finetune
from pri3d.api.prepare import prepare
from pri3d.api.pretrain import MatchingOptions, pretrain
from pri3d.api.rooms import rooms
from pri3d.api.training import ValidationOptions
from pri3d.errors import ConfigError
from pri3d.exporting.export import export
from pri3d.machine import cores, limit_spinning
from pri3d.objectives.geometry import GeometryOptions
from pri3d.processes import process_pool
from pri3d.reporting.report import build_page, write_overview
from pri3d.reporting.sources import find_sources
from pri3d.runs import Run, read_json, write_json
from pri3d.terminal import Terminal

MARK = ".pri3d-demo"  #: file by which a demo knows its own folder
SIZE = "160x120"
#: Rooms of each part: (first room, rooms, frames a room). No room is in two parts.
PARTS = {"pretrain": (0, 24, 40), "labelled": (100, 10, 6), "test": (200, 24, 5)}
VOXEL = 0.16  #: metres; a CPU wants few voxels
DISTANCE = 0.04  #: metres; a pixel of so small an image is that wide a few metres away
SEEDS = (0, 1)
PRETRAIN_STEPS, FINETUNE_STEPS = 400, 120
#: What fine-tuning takes of the pre-trained weights; docs/results/demo.md compares.
PART: Literal["all", "encoder"] = "encoder"
#: The learning rates that suit each best; docs/results/demo.md has the search.
LEARNING_RATES = {"pretrain": 4e-3, "scratch": 1e-3, "pri3d": 2e-3}
TRIAL_STEPS = 10  #: of pre-training, to see how fast the machine is
BATCH = 8  #: of the quick presets
FINETUNE_COST = 0.4  #: of a fine-tuning step, in pre-training steps
START_SECONDS = 20.0  #: of the runs: building networks, reading stores, the final validation
REPORT_SECONDS = 20.0  #: kept back for export and report


class DemoSteps(NamedTuple):
    """Steps that fit the time."""

    pretrain_steps: int
    finetune_steps: int
    shortened: bool


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
    stores = {}
    for name, (first, count, frames) in PARTS.items():
        say(f"rendering and preparing {count} rooms for {name}")
        recording, stores[name] = out / "recordings" / name, out / "prepared" / name
        pairs, seed = name == "pretrain", options.seed
        rooms(
            recording, rooms=count, frames=frames, size=SIZE, labels=not pairs, seed=seed, first=first,
            processes=workers,
        )  # fmt: skip
        prepare(
            [recording], stores[name], size=SIZE, distance=DISTANCE, voxel=VOXEL, pairs=pairs, surface=pairs,
            processes=workers,
        )  # fmt: skip
    deadline = began + options.max_minutes * 60 - REPORT_SECONDS
    steps, run, runs = _train(out, stores, deadline, options.seed, workers, say)
    exported = export(run, to="torchvision", out=out / "pri3d_resnet18.safetensors")
    scores = {name: [read_json(r / "scores.json")["last"]["miou"] for r in some] for name, some in runs.items()}
    settings = {
        "rooms": {name: {"rooms": count, "frames": frames} for name, (_, count, frames) in PARTS.items()},
        "size": SIZE,
        "voxel": VOXEL,
        "distance": DISTANCE,
        "part": PART,
        "finetune_seeds": list(SEEDS),
        "learning_rates": LEARNING_RATES,
        "seed": options.seed,
        **steps._asdict(),
    }
    sources = find_sources([out / "runs"])
    write_overview(out / "overview.png", sources, out / "prepared")
    counts = {name: count for name, (_, count, _) in PARTS.items()}
    cut = ", cut to fit the time" if steps.shortened else ""
    about = (
        f"Pre-trained on {counts['pretrain']} rendered rooms for {steps.pretrain_steps} steps, fine-tuned on "
        f"{counts['labelled']} other rooms for {steps.finetune_steps} steps{cut}, scored on {counts['test']} rooms "
        "that neither training saw. So few seeds are an indication, not an error bound."
    )
    page = build_page(sources, out / "prepared", "Pri3D on rendered rooms", about)
    page.facts("The demo", settings)
    report = page.write(out / "report.html")
    minutes = round((time.perf_counter() - began) / 60, 2)
    write_json(out / "results.json", {"semantic_miou": scores, "minutes": minutes, "settings": settings})
    _show(scores, minutes, exported, report)
    return report


def _train(
    out: Path, stores: dict[str, Path], deadline: float, seed: int, workers: int, say: Callable[[str], None]
) -> tuple[DemoSteps, Path, dict[str, list[Path]]]:
    """Pre-train and fine-tune side by side: the steps, the pre-training run, and start -> fine-tuning runs."""
    run = out / "runs/pri3d"
    processes = min(workers, 2 * len(SEEDS))
    threads = max(1, cores() // processes)
    with process_pool(processes, threads) as pool:
        left = deadline - time.perf_counter()
        steps = pool.submit(_plan_steps, out / "trial", stores["pretrain"], left, seed, processes).result()
        if steps.shortened:
            say(f"cut to fit the time: {steps.pretrain_steps} and {steps.finetune_steps} steps")
        say(f"pre-training View+Geo, {steps.pretrain_steps} steps; beside it, fine-tuning from scratch")
        training = pool.submit(_pretrain, stores["pretrain"], run, steps.pretrain_steps, seed)
        scratch = _finetune(pool, out, stores, "scratch", "scratch", steps.finetune_steps)
        training.result()
        say(f"fine-tuning from the pre-trained weights, {steps.finetune_steps} steps")
        jobs = {"scratch": scratch, "pri3d": _finetune(pool, out, stores, "pri3d", str(run), steps.finetune_steps)}
        return steps, run, {name: [job.result() for job in started] for name, started in jobs.items()}


def _pretrain(store: Path, run: Path, steps: int, seed: int) -> Run:
    """Pre-train on all rooms of the first part; the quick preset has both objectives."""
    return pretrain(
        store,
        run=run,
        steps=steps,
        seed=seed,
        lr=LEARNING_RATES["pretrain"],
        holdout=0.0,
        matching=MatchingOptions(distance=DISTANCE),
        options=[GeometryOptions(voxel=VOXEL)],
        workers=1,
    )


def _plan_steps(trial: Path, store: Path, seconds: float, seed: int, processes: int) -> DemoSteps:
    """Time a few steps of pre-training and cut both numbers of steps alike where they do not fit ``seconds``."""
    began = time.perf_counter()
    run = _pretrain(store, trial, TRIAL_STEPS, seed)
    rate = run.metrics[-1]["samples_per_s"]
    shutil.rmtree(trial)
    seconds -= time.perf_counter() - began + START_SECONDS
    # What fine-tuning adds to the time of pre-training: with a process of its own, starting from scratch costs none.
    rounds = 2 * len(SEEDS) if processes == 1 else -(-len(SEEDS) // processes)
    units = PRETRAIN_STEPS + FINETUNE_COST * FINETUNE_STEPS * rounds
    share = min(1.0, max(0.0, seconds) * rate / (BATCH * units))
    return DemoSteps(max(10, int(share * PRETRAIN_STEPS)), max(10, int(share * FINETUNE_STEPS)), share < 1)


def _finetune(
    pool: Executor, out: Path, stores: dict[str, Path], name: str, weights: str, steps: int
) -> list[Future[Path]]:
    """Start a fine-tuning with every seed; the results are the run folders."""
    runs = {seed: out / f"runs/{name}-{seed}" for seed in SEEDS}
    common = (stores["labelled"], stores["test"], weights, steps, LEARNING_RATES[name])
    return [pool.submit(_finetune_once, run, seed, *common) for seed, run in runs.items()]


def _finetune_once(run: Path, seed: int, data: Path, val: Path, weights: str, steps: int, lr: float) -> Path:
    every = ValidationOptions(every=steps)
    finetune(
        "semantic", data, val=val, weights=weights, part=PART, run=run, seed=seed, steps=steps, validation=every, lr=lr,
        workers=0,
    )  # fmt: skip
    return run


def _show(scores: dict[str, list[float]], minutes: float, exported: Path, report: Path) -> None:
    table = Table(title="semantic segmentation of unseen rooms, mIoU in %")
    for column in ("start", *(f"seed {seed}" for seed in SEEDS), "mean"):
        table.add_column(column, justify="left" if column == "start" else "right")
    for name, values in scores.items():
        table.add_row(name, *(f"{100 * v:.1f}" for v in values), f"{100 * np.mean(values):.1f}")
    console = Terminal()
    console.print(table)
    gain = 100 * (np.mean(scores["pri3d"]) - np.mean(scores["scratch"]))
    console.print(f"Pri3D is {gain:+.1f} points from scratch, after {minutes:.1f} minutes.")
    console.print(f"weights: {exported}\nreport:  {report}")

"""Every pre-training of the paper's table 1, and the unsupervised one, for a few steps on rendered rooms.

    OMP_NUM_THREADS=1 python -m benchmarks.presets [--steps 50] [--out docs/results/presets.md] [--work FOLDER]

Runs the very commands the table shows, in FOLDER, and reads the losses from the runs' metrics.csv. Seconds are of one
command without the imports: of the process and its loader, and by the clock.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from statistics import mean, variance
from typing import Any, NamedTuple

import torch
import yaml
from benchmarks.machine import describe_machine

from pri3d.cli import main as run_verb
from pri3d.files.atomic import write_atomic
from pri3d.runs import RunPaths, read_metrics

MEAN_OF = 5  #: steps at either end
STEPS = 50
SIZE = "160x120"
VOXEL = 0.16
ROOMS, FRAMES = 12, 20
IMAGE_ROOMS = 4
MOCO_FILE = "moco_v2.pth.tar"
#: A queue that fills in a few steps, and the paper's slow key encoder; see the page for what others do.
MOCO = "--batch 32 --micro-batch 32 --moco.queue 128 --moco.momentum 0.999 --moco.temperature 0.1 --lr 0.001"


class Row(NamedTuple):
    """One pre-training."""

    preset: str
    paper: str  #: what the paper calls it
    options: str = ""
    run: str = ""  #: folder of the run, where it is not the preset's name

    @property
    def name(self) -> str:
        """Of the run."""
        return self.run or self.preset


ROWS = (
    Row("view", "View"),
    Row("geo", "Geo"),
    Row("paper", "View+Geo"),
    Row("trivial", "Trivial Correspondences"),
    Row("depth", "Depth Prediction"),
    Row("moco", "MoCoV2-supIN→SN", f"--weights runs/view {MOCO}"),
    Row("moco-combine", "MoCoV2-IN+SN (combine)", f"--moco.images images {MOCO}"),
    Row("moco-mixed", "MoCoV2-IN+SN (mixing batch)", f"--moco.images images {MOCO}"),
    Row("unsupervised", "Unsupervised Pri3D (supplement)", f"--weights {MOCO_FILE}"),
    Row("released", "View+Geo as the released code has it"),
)
#: Why the MoCo rows have settings of their own.
CONTROLS = (
    Row("moco", "as `small` has it", run="moco-small"),
    Row(
        "moco",
        "small queue, fast keys",
        "--batch 16 --micro-batch 16 --moco.queue 64 --moco.momentum 0.9",
        "moco-fast",
    ),
)


class Result(NamedTuple):
    """What a run's metrics.csv says."""

    row: Row
    command: str
    metrics: list[dict[str, float]]  #: one row a step
    settled: int  #: steps until moco's queue holds real keys alone; 0 without moco, or where it never does
    weights: dict[str, float]  #: objective -> weight
    cpu: float  #: seconds of the process and its loader
    wall: float  #: seconds by the clock

    def ends(self, name: str) -> tuple[list[float], list[float]]:
        """Values of a column in the first steps, from ``settled`` on, and in the last."""
        values = [row[name] for row in self.metrics]
        count = min(MEAN_OF, max(1, (len(values) - self.settled) // 2))
        return values[self.settled :][:count], values[-count:]

    def chance(self) -> float | None:
        """Loss of a network that cannot tell anything apart; None where an objective has no such loss."""
        if any(f"{name}/chance" not in self.metrics[-1] for name in self.weights):
            return None
        return sum(weight * mean(self.ends(f"{name}/chance")[1]) for name, weight in self.weights.items())

    def fell(self) -> str:
        """Whether the loss fell by more than twice the standard error of the difference of the means."""
        first, last = self.ends("loss")
        drop = mean(first) - mean(last)
        if drop <= 0:
            return "no"
        error = math.sqrt(sum(variance(end) / len(end) for end in (first, last))) if len(first) > 1 else 0.0
        return "yes" if drop > 2 * error else "within noise"


def pri3d(command: str) -> None:
    """Run a command line of ours in this process. Raises SystemExit where it fails."""
    code = run_verb(shlex.split(command)[1:])
    if code:
        raise SystemExit(f"{command}: exit code {code}")


def data_commands(rooms: int, frames: int, size: str, overlap: str) -> list[str]:
    """How the rooms come about; ``overlap`` are options of prepare."""
    return [
        f"pri3d rooms raw --rooms {rooms} --frames {frames} --size {size} --processes 1",
        " ".join(filter(None, [f"pri3d prepare raw store --size {size} --voxel {VOXEL}", overlap, "--processes 1"])),
        f"pri3d rooms others --rooms {IMAGE_ROOMS} --frames {frames} --size {size} --first 100 --processes 1",
    ]


def make_data(commands: Sequence[str]) -> None:
    """Rooms, the store, and the colour images of other rooms, in the present folder."""
    for command in commands:
        pri3d(command)
    for room in sorted(Path("others").glob("room-*")):
        shutil.copytree(room / "color", Path("images") / room.name)


def write_moco_file(run: RunPaths, path: Path) -> None:
    """The state of a MoCo run in the layout of MoCo v2's released checkpoints: encoder_q, its fc, encoder_k, queue."""
    state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    names = {
        "unet.encoder.": "encoder_q.",
        "objective.terms.moco.head.": "encoder_q.fc.",
        "objective.terms.moco.key_encoder.": "encoder_k.",
        "objective.terms.moco.key_head.": "encoder_k.fc.",
        "objective.terms.moco.queue": "queue",
        "objective.terms.moco.pointer": "queue_ptr",
    }
    renamed = {
        f"module.{new}{key.removeprefix(old)}": value
        for key, value in state.items()
        for old, new in names.items()
        if key.startswith(old)
    }
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": renamed}, path)


def processor_seconds() -> float:
    """Of this process and of those it started and waited for."""
    gc.collect()  # ends the loader's process
    return sum(os.times()[:4])


def run_row(row: Row, steps: int, extra: str) -> Result:
    """Pre-train in the present folder, which :func:`make_data` has filled."""
    if MOCO_FILE in row.options:
        write_moco_file(RunPaths(Path("runs/moco")), Path(MOCO_FILE))
    words = ["pri3d pretrain store", f"--preset {row.preset},small", row.options, f"--steps {steps}", extra]
    command = " ".join(filter(None, [*words, f"--run runs/{row.name}"]))
    cpu, wall = processor_seconds(), time.perf_counter()
    pri3d(command)
    cpu, wall = processor_seconds() - cpu, time.perf_counter() - wall
    run = RunPaths(Path("runs") / row.name)
    settings: dict[str, Any] = yaml.safe_load(run.config.read_text())["settings"]
    moco = settings["objectives"].get("moco", 0) > 0
    metrics = read_metrics(run.metrics)
    settled = math.ceil(settings["moco"]["queue"] / settings["batch"]) if moco else 0
    settled = settled if settled < len(metrics) else 0
    return Result(row, command, metrics, settled, settings["objectives"], cpu, wall)


def number(value: float | None) -> str:
    """For a cell of a table."""
    return "-" if value is None else f"{value:.2f}"


def main_table(results: Sequence[Result], heading: str = "row of the paper") -> list[str]:
    """One line a pre-training."""
    lines = [
        f"| {heading} | command | first 5 | last 5 | chance | fell | CPU s | wall s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        first, last = (mean(end) for end in result.ends("loss"))
        cells = [result.row.paper, f"`{result.command}`", number(first), number(last), number(result.chance())]
        lines.append(f"| {' | '.join([*cells, result.fell(), f'{result.cpu:.0f}', f'{result.wall:.0f}'])} |")
    return lines


def term_table(results: Sequence[Result]) -> list[str]:
    """One line a term of a pre-training, and what tells how well it does."""
    lines = [
        "| run | term | loss, first 5 | last 5 | chance | recall, first 5 | last 5 | rmse m, first 5 | last 5 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name in result.weights:
            cells: list[float | None] = []
            for measure in ("loss", "chance", "recall", "rmse"):
                column = f"{name}/{measure}"
                there = column in result.metrics[-1]
                ends = [mean(end) for end in result.ends(column)] if there else [None, None]
                cells += ends[-1:] if measure == "chance" else ends
            lines.append(f"| `{result.row.name}` | {name} | {' | '.join(map(number, cells))} |")
    return lines


def moco_notes(results: Sequence[Result]) -> list[str]:
    """What the first steps of the MoCo runs are."""
    shown = [
        f"`{result.row.name}` {mean(row['loss'] for row in result.metrics[: result.settled]):.2f}"
        for result in results
        if result.settled
    ]
    if not shown:
        return []
    settled = max(result.settled for result in results)
    return [
        f'In the MoCo rows "first 5" are the steps after the first {settled}, when the queue holds real keys alone. It',
        "begins as noise, which no query resembles: the very first loss is small and rises while keys take its place.",
        f"Means of these first {settled} steps: {', '.join(shown)}.",
        "",
    ]


NOTES = """
Values are means of the first and the last five steps, all from the runs' `metrics.csv`; "fell" is *yes* if the decrease
is more than twice the standard error of the difference of the two means. Chance is the loss of a network that cannot
distinguish points (or images). The learning rate rises over the first tenth and ends at 0, so 50 steps are a complete
small training.

No ImageNet weights were downloaded: with `small` every row starts from scratch. Two rows need weights nevertheless:
MoCoV2-supIN→SN starts from the encoder of the View run instead of the supervised ImageNet one, and Unsupervised Pri3D
from this page's own MoCo run, written as a checkpoint in MoCo v2's layout (`module.encoder_q.*`, `module.encoder_k.*`,
the queue). A perfect depth prediction scores log 0.5 = -0.69. The image folder holds other rendered rooms. The machine
had other load, so wall-clock seconds are overestimated.
"""

MOCO_NOTES = """
The MoCo rows have their own settings. With those of `small` 50 steps show nothing: 400 keys enter a queue of 2048, the
rest stays noise, and the loss rises as the noise is replaced. With a queue that fills at once and a fast key encoder it
also rises, towards chance. The likely reason: queries and newest keys drift together away from the older keys in the
queue, so similarity reflects the age of a key and not its image, and the drift ends with the learning rate.

MOCO_TABLE

Hence a queue that is full after 4 steps, and the paper's momentum of 0.999, with which the keys change little;
temperature, batch and learning rate were chosen among about ten combinations so that the loss falls. Still, 50 steps on
about 200 frames are far too few for instance discrimination, and from scratch the loss stays near chance: these rows
show that the three variants run and their losses decrease, not that they learn useful features.
"""


def page(results: Sequence[Result], controls: Sequence[Result], commands: Sequence[str], steps: int) -> str:
    """The whole of docs/results/presets.md."""
    lines = [
        "# Every pre-training of the paper, small scale",
        "",
        "`OMP_NUM_THREADS=1 python -m benchmarks.presets` makes this page: each preset of the paper's table 1, the",
        f"unsupervised one and the released code's, laid under `small`, for {steps} steps on rendered rooms.",
        describe_machine(),
        "",
        "```bash",
        *commands,
        "```",
        "",
        "The colour images of `others` are copied into `images`. Then:",
        "",
        *main_table(results),
        NOTES,
        *moco_notes(results),
        "## Term by term",
        "",
        *term_table(results),
        "",
        "Recall is the share of points (or images) whose partner is the most similar of all. Geo learns slowest;",
        "depth as one of three terms (`released`) gains much less in as many steps than alone.",
    ]
    if controls:
        table = "\n".join(main_table(controls, "MoCo"))
        lines += ["", "## MoCo in few steps", MOCO_NOTES.rstrip().replace("MOCO_TABLE", table)]
    return "\n".join(lines) + "\n"


def run(
    work: Path,
    rows: Sequence[Row] = ROWS,
    controls: Sequence[Row] = CONTROLS,
    steps: int = STEPS,
    rooms: int = ROOMS,
    frames: int = FRAMES,
    size: str = SIZE,
    overlap: str = "",
    extra: str = "",
) -> str:
    """Make the rooms and run every row in the empty folder ``work``; return the page.

    ``overlap`` goes to `pri3d prepare`, ``extra`` to every `pri3d pretrain`.
    """
    work.mkdir(parents=True, exist_ok=True)
    commands = data_commands(rooms, frames, size, overlap)
    with chdir(work):
        make_data(commands)
        results = []
        for row in (*rows, *controls):
            results.append(run_row(row, steps, extra))
            print(main_table(results[-1:])[-1], flush=True)
    return page(results[: len(rows)], results[len(rows) :], commands, steps)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("docs/results/presets.md"))
    parser.add_argument("--work", type=Path, help="empty folder for rooms and runs; a temporary one by default")
    options = parser.parse_args()
    out = options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        text = run((options.work or Path(folder)).resolve(), steps=options.steps)
    write_atomic(out, text.encode())
    print(f"{out}")


if __name__ == "__main__":
    main()

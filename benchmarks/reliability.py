"""What is lost, and what is silent: pairs of processes, kills, signals, flipped bits, damaged inputs, full disks.

    python -m benchmarks.reliability [--pairs 20] [--kills 10] [--signals 8] [--flips 100] [--mutations 5000] [--seed 0]
        [--only pairs kills signals flips mutations places] [--log FILE]

Small rooms and a network of 0.4 million parameters; commands run in forked processes, and each result is compared with
that of an undisturbed run: tensors, arrays and files bit by bit. Prints the table of docs/results/reliability.md. The
moments of kills are spread over the time that an undisturbed run takes. ``places`` needs root for its file systems.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks.damage import (
    Kind,
    flip,
    read_features,
    read_recording,
    read_run,
    read_store,
    read_weights,
    score_damage,
    write_inputs,
    write_others,
)
from benchmarks.machine import describe_machine
from benchmarks.tries import OUTCOMES, Command, Ended, Running, Score, content_of, difference, judge, run

from pri3d.reproduction import matrix

GROUPS = ("pairs", "kills", "signals", "flips", "mutations", "places")
RECORDINGS = ("tum", "folder", "nerfstudio", "colmap", "scannet-sens", "record3d", "stray", "polycam", "arkitscenes")
SIZE = ("--size", "64x48")
TRAINING = (
    *("--encoder", "test_resnet", "--weights", "scratch", "--objectives", "{view: 1}", *SIZE),
    *("--batch", "2", "--micro-batch", "2", "--contrast.points", "32", "--matching.distance", "0.1"),
    *("--holdout", "0", "--validation.every", "0", "--checkpoint.every", "1"),
)
_SMALL: dict[str, Any] = {"steps": 2, "batch": 2, "micro_batch": 2, "eval_every": 2}
#: a study of two rooms, in the place of that of ``--scale small``
STUDY: dict[str, Any] = {
    "layer": "small",
    "encoder": "test_resnet",
    "seeds": [0],
    "base": "scratch",
    "without": ["imagenet", "moco", "moco-combine", "moco-mixed", "trivial", "depth", "geo", "view+geo"],
    "parts": {
        "pretrain": {"rooms": {"first": 0, "rooms": 1, "frames": 8}},
        "labelled": {"rooms": {"first": 10, "rooms": 1, "frames": 4}},
        "labelled-val": {"rooms": {"first": 20, "rooms": 1, "frames": 2}},
    },
    "prepare": {"size": "64x48", "distance": 0.1, "voxel": 0.08, "min_overlap": 0.2},
    "pretrain": {**_SMALL, "holdout": 0.0, "distance": 0.1, "init": "scratch", "size": "64x48", "points": 32},
    "semantic": {**_SMALL, "size": "64x48"},
    "instance": _SMALL,
}
#: what commands import when they run: once here, and not in every process that is forked
MODULES = (
    *(
        "training.pretrain",
        "training.finetune",
        "evaluation.embed",
        "exporting.export",
        "exporting.hf",
        "reporting.report",
    ),
    *("preparation.prepare", "reproduction.reproduce", "worlds.write", "tasks.semantic", "objectives.view"),
)
ALONE = """
import json, sys
from pri3d.cli import main
codes = [main(words) for words in json.loads(sys.argv[1])]
open(sys.argv[2], "w").write(json.dumps(codes))
"""


class Bench(NamedTuple):
    """Inputs, commands, and what each leaves when nothing disturbs it."""

    root: Path
    commands: dict[str, Command]
    whole: dict[str, dict[str, str]]
    seconds: dict[str, float]
    study: Path  #: data of reproduce, to begin with

    def out(self, name: str) -> Path:
        """A new place for a command's result."""
        folder = Path(tempfile.mkdtemp(dir=self.root / "outs"))
        if name == "reproduce":
            shutil.copytree(self.study, folder / "out")
        return folder / "out"

    def start(self, name: str, out: Path, again: bool = False, setup: Callable[[], None] | None = None) -> Running:
        """Begin a command that writes there."""
        log = self.root / "outs" / f"{time.monotonic_ns()}.log"
        return Running(self.commands[name].to(out, again), log, setup)

    def judge(self, score: Score, name: str, out: Path, ends: Sequence[Ended], refused: bool = False) -> None:
        """Count what the ends of commands have left; ``refused``: one of them has said why it does nothing."""
        outcome = judge(out, self.whole[name], ends)
        said = "" if outcome == "harmless" else difference(out, self.whole[name], ends)
        score.add("found" if refused and outcome == "harmless" else outcome, said)
        shutil.rmtree(out.parent, ignore_errors=True)


def make_bench(root: Path) -> Bench:
    """Make the inputs, and run each command once without disturbance, here and then in a process, by the clock."""
    (root / "outs").mkdir(parents=True)
    store, weights, pictures = root / "store", root / "run", root / "pictures"
    rooms = ("rooms", str(root / "rec"), "--rooms", "2", "--frames", "8", *SIZE, "--no-labels", "--processes", "1")
    sizes = (*SIZE, "--distance", "0.1", "--voxel", "0.16", "--min-overlap", "0.15", "--processes")
    pretrain = ("pretrain", str(store), "--run", "{out}", "--steps", "4", *TRAINING, "--workers")
    again = ("--resume",)
    commands = [
        Command("prepare", ("prepare", str(root / "rec"), "{out}", *sizes, "1")),
        Command("prepare --processes 2", ("prepare", str(root / "rec"), "{out}", *sizes, "2")),
        Command("pretrain", (*pretrain, "0"), again),
        Command("pretrain --workers 2", (*pretrain, "2"), again),
        Command("embed", ("embed", str(weights), str(pictures), "--out", "{out}/e.npz", "--batch", "2")),
        Command("export", ("export", str(weights), "--to", "hf", "--out", "{out}")),
        Command("reproduce", ("reproduce", "table1", "--only", "0", "--out", "{out}")),
    ]
    by_name = {command.name: command for command in commands}
    matrix.stated("studies")["rooms"]["small"] = STUDY
    inputs = [
        rooms,
        by_name["prepare"].to(store),
        by_name["pretrain"].to(weights),
        ("reproduce", "table1", "--only", "data", "--out", str(root / "study")),
    ]
    for words in inputs:
        _must(run(words, root / "log"))
    pictures.mkdir()
    for k, file in enumerate(sorted((root / "rec" / "room-0000" / "color").iterdir())):
        shutil.copy(file, pictures / f"bild ä [{k}].jpg")
    bench = Bench(root, by_name, {}, {}, root / "study")
    for name in by_name:
        for _ in range(2):  # the first one compiles and imports
            out, begun = bench.out(name), time.monotonic()
            _must(bench.start(name, out).end())
            bench.seconds[name] = time.monotonic() - begun
        bench.whole[name] = content_of(out)
    return bench


def _must(end: Ended) -> None:
    if end.code:
        raise SystemExit(f"an undisturbed command has failed:\n{end.text}")


def pairs(bench: Bench, name: str, what: str, count: int, seed: int) -> Score:
    """Two processes that write to one place: both are done, or one says that the other writes there."""
    score, rng = Score("pairs of processes", what), np.random.default_rng(seed)
    for _ in range(count):
        out = bench.out(name)
        first = bench.start(name, out)
        time.sleep(float(rng.uniform(0, bench.seconds[name])))
        second = bench.start(name, out, again=True)
        ends = sorted((first.end(), second.end()), key=lambda end: end.code != 1)  # the refused one first
        bench.judge(score, name, out, ends, refused=ends[0].code == 1)
    return score


def interrupt(bench: Bench, name: str, count: int, number: signal.Signals, child: bool, group: str) -> Score:
    """A signal at moments spread over a command, and then the command again."""
    target = " of a child" if child else ""
    score, k = Score(group, f"{name}, {number.name}{target}"), 0
    moments = [(j + 0.5) / count for j in range(count)]
    while moments and k < 3 * count:
        k += 1
        out = bench.out(name)
        running = bench.start(name, out)
        ended = running.wait(moments[0] * bench.seconds[name])
        hit = not ended and running.send(number, k if child else None)
        end = running.end()
        if not hit:  # it was faster, or had no child then: another moment
            moments[0] *= 0.7 if ended else 1.2
            shutil.rmtree(out.parent)
            continue
        moments.pop(0)
        bench.judge(score, name, out, [end, bench.start(name, out, again=True).end()])
    return score


def flip_checkpoints(bench: Bench, count: int) -> Score:
    """A run that was stopped half-way continues from a checkpoint with one other bit."""
    score, half = Score("bit flips", "last.ckpt, then pretrain --resume"), bench.root / "half"
    running = bench.start("pretrain", half)
    limit = time.monotonic() + 100
    while not (half / "last.ckpt").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    running.send(signal.SIGTERM)
    if running.end().code != 130:
        raise SystemExit("a run that was to stop half-way did not")
    good = (half / "last.ckpt").read_bytes()
    for k in range(-1, count):
        out = bench.out("pretrain")
        shutil.copytree(half, out)
        if k < 0:  # as it is
            _must(bench.start("pretrain", out, again=True).end())
            continue
        (out / "last.ckpt").write_bytes(flip(good, k * len(good) // count, k % 8))
        end = bench.start("pretrain", out, again=True).end()
        if end.code == 1 and end.is_clean() and "last.ckpt" in end.text:
            score.add("found")
            shutil.rmtree(out.parent)
        else:
            bench.judge(score, "pretrain", out, [end])
    return score


def flips(bench: Bench, count: int, seed: int) -> Iterator[Score]:
    """One bit of what pri3d has written, read again."""
    yield flip_checkpoints(bench, count)
    out = bench.out("embed")
    _must(bench.start("embed", out).end())
    export = bench.out("export")
    _must(bench.start("export", export).end())
    kinds = (
        Kind("prepared dataset", bench.root / "store", read_store),
        Kind("features of embed", out / "e.npz", read_features),
        Kind("weights of a run", bench.root / "run" / "weights.safetensors", read_weights),
        Kind("weights of an export", export / "model.safetensors", read_weights),
    )
    for k, kind in enumerate(kinds):
        yield score_damage(kind, bench.root / f"flips-{k}", count, seed + k, flips=True)


def mutations(bench: Bench, count: int, seed: int, names: Sequence[str] = RECORDINGS) -> Iterator[Score]:
    """Damaged inputs and files of pri3d, ``count`` in all."""
    out = bench.out("embed")
    _must(bench.start("embed", out).end())
    kinds = [
        *write_inputs(bench.root / "samples", names),
        Kind("recording: rooms", bench.root / "rec", read_recording),
        *write_others(bench.root / "others", sorted((bench.root / "pictures").iterdir())),
        Kind("prepared dataset", bench.root / "store", read_store),
        Kind("run, for the report", bench.root / "run", read_run),
        Kind("weights .safetensors", bench.root / "run" / "weights.safetensors", read_weights),
        Kind("features of embed", out / "e.npz", read_features),
    ]
    for k, kind in enumerate(kinds):
        share = count * (k + 1) // len(kinds) - count * k // len(kinds)
        yield score_damage(kind, bench.root / f"mutations-{k}", share, seed + k, flips=False)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mount a file system of that size in memory; False where that is not allowed."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = (
        shutil.which("mount") is not None and not subprocess.run(words, capture_output=True, check=False).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def places(bench: Bench, repeats: int) -> Iterator[Score]:
    """Disks that are full or cannot be written, terminals that are closed, other environments."""
    names = ("prepare", "pretrain", "embed", "export")
    yield from _full_disks(bench, names, repeats)
    for what, setup in (
        ("stdout closed", _close_stdout),
        ("stdout a pipe that nobody reads", _break_stdout),
        ("umask 077", lambda: os.umask(0o077)),
    ):
        score = Score("places", what)
        for name in names:
            out = bench.out(name)
            end = bench.start(name, out, setup=setup).end()
            if end.code == 1 and end.is_clean():  # said; the work must not be lost
                end = bench.start(name, out, again=True).end()
            modes = [path.stat().st_mode & 0o077 for path in out.rglob("*")]
            if what == "umask 077" and any(modes):
                score.add("lost", f"{name}: others may read what it wrote")
            else:
                bench.judge(score, name, out, [end])
        yield score
    plain = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    bare = {"LANG": "C", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for what, flags, environment in (
        ("no HOME, an empty environment", (), plain),
        ("LANG=C, no UTF-8", (), {**os.environ, **bare}),
        ("python -O", ("-O",), dict(os.environ)),
    ):
        yield _alone(bench, what, names, flags, environment)


def _full_disks(bench: Bench, names: Sequence[str], repeats: int) -> Iterator[Score]:
    full, fixed = Score("places", "a full disk, then room"), Score("places", "a disk that cannot be written")
    for name in names:
        for k in range(repeats):
            with small_disk(bench.root / "outs" / f"disk-{name}-{k}", "2m") as mounted:
                folder = bench.root / "outs" / f"disk-{name}-{k}"
                if not mounted:
                    sys.stderr.write("file systems cannot be mounted here: full and read-only disks are left out\n")
                    return
                (folder / "filler").write_bytes(bytes((2 << 20) - (k * 150_000 + 8192)))
                ends = [bench.start(name, folder / "own" / "out").end()]
                (folder / "filler").unlink()
                _remount(folder, "size=200m")
                ends.append(bench.start(name, folder / "own" / "out", again=True).end())
                bench.judge(full, name, folder / "own" / "out", ends, refused=ends[0].code == 1)
        with small_disk(bench.root / "outs" / f"fixed-{name}", "8m") as mounted:
            folder = bench.root / "outs" / f"fixed-{name}"
            _remount(folder, "ro")
            end = bench.start(name, folder / "own" / "out").end()
            said = end.is_clean() and end.code == 1 and str(folder) in end.text
            fixed.add("found" if said else "traceback" if end.code == 70 else "lost", end.text)
    yield full
    yield fixed


def _close_stdout() -> None:
    os.close(1)
    sys.stdout = None  # type: ignore[assignment]  # as Python starts then


def _break_stdout() -> None:
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(reading)


def _alone(bench: Bench, what: str, names: Sequence[str], flags: Sequence[str], environment: dict[str, str]) -> Score:
    """All commands in an interpreter that starts in another environment."""
    score, outs = Score("places", what), {name: bench.out(name) for name in names}
    words = [bench.commands[name].to(out) for name, out in outs.items()]
    codes = bench.root / "outs" / "codes.json"
    codes.write_text("[]")
    done = subprocess.run(
        [sys.executable, *flags, "-c", ALONE, json.dumps(words), str(codes)],
        env={**environment, "OMP_NUM_THREADS": "1"},  # as here: more threads sum in another order
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    for k, (name, out) in enumerate(outs.items()):
        found = json.loads(codes.read_text())
        bench.judge(score, name, out, [Ended(found[k] if k < len(found) else 70, said)])
    return score


def measure(root: Path, asked: argparse.Namespace) -> Iterator[Score]:
    """Scores of the groups asked for."""
    torch.set_num_threads(1)
    for module in MODULES:
        import_module(f"pri3d.{module}")
    bench = make_bench(root)
    if "pairs" in asked.only:
        kinds = {"prepare": "prepared dataset", "pretrain": "run", "embed": "features", "export": "export"}
        for k, (name, what) in enumerate({**kinds, "reproduce": "study of reproduce"}.items()):
            yield pairs(bench, name, what, asked.pairs, asked.seed + k)
    for group, count, numbers in (
        ("kills", asked.kills, ((signal.SIGKILL, False), (signal.SIGKILL, True))),
        ("signals", asked.signals, ((signal.SIGTERM, False), (signal.SIGHUP, False))),
    ):
        for number, child in numbers if group in asked.only else ():
            for name in ("prepare --processes 2", "pretrain --workers 2", "embed", "export"):
                if not child or " 2" in name:  # the others have none
                    yield interrupt(bench, name, count, number, child, group)
    if "flips" in asked.only:
        yield from flips(bench, asked.flips, asked.seed)
    if "mutations" in asked.only:
        yield from mutations(bench, asked.mutations, asked.seed)
    if "places" in asked.only:
        yield from places(bench, asked.places)


def main(words: Sequence[str] | None = None) -> str:
    """Print the table, and write what was not as it must be to the log."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability")
    for name, count in (
        ("pairs", 20),
        ("kills", 10),
        ("signals", 8),
        ("flips", 100),
        ("mutations", 5000),
        ("places", 4),
    ):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--log", type=Path)
    asked = parser.parse_args(words)
    scores = []
    heads = ("tries of", "what", "tries", *OUTCOMES)
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    print(*lines, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for score in measure(Path(folder) / "work", asked):
            scores.append(score)
            lines.append(score.row())
            print(lines[-1], flush=True)
            if asked.log is not None:
                asked.log.write_text("\n\n".join(said for each in scores for said in each.said))
    total = {outcome: sum(score.counts[outcome] for score in scores) for outcome in OUTCOMES}
    lines.append(f"| all | | {sum(total.values())} | {' | '.join(map(str, total.values()))} |")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    minutes = sum(each.ru_utime + each.ru_stime for each in used) / 60
    print(lines[-1], f"{minutes:.0f} CPU minutes. {describe_machine()}", sep="\n")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

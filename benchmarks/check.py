"""How often `pri3d check` names a mistake, and raises a false alarm.

    OMP_NUM_THREADS=1 python -m benchmarks.check [DATA] [--only FAULT] [--good] [--bad] [--fresh N] [--seeds N]

Makes every mistake of benchmarks/faults.py on rendered rooms and, with DATA (which holds 7scenes_redkitchen and
7scenes_redkitchen_unregistered), on real frames; then judges good recordings. A mistake counts as named where the
faults found, or the warning, are exactly those expected and so is the correction. ``--fresh N`` takes other rooms;
``--seeds N`` judges each good recording with N samples of frames and pairs: an alarm, advice, or a verdict that is not
that of the first counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults import (
    FAULTS,
    coarser,
    cropped,
    every,
    faulty,
    first,
    room_scene,
    slow_room_scene,
)
from benchmarks.machine import describe_machine

from pri3d.checking.verdict import Judgement, judge
from pri3d.recordings import Scene
from pri3d.recordings.sevenscenes import SevenScenesReader

#: 7-Scenes RedKitchen as published: docs/own-data.md
AS_PUBLISHED = """
color: {width: 640, height: 480, fx: 517.7, fy: 517.7, cx: 320.5, cy: 237.5}
depth: {width: 640, height: 480, fx: 585.0, fy: 585.0, cx: 320.5, cy: 240.5}
color_from_depth: {translation: [-0.0217, 0, 0]}
pose_of: depth
"""


class Outcome(NamedTuple):
    """One recording judged."""

    said: str  #: faults, or warnings
    right: bool
    seconds: float  #: of processor time


def bases(data: Path | None, fresh: int) -> dict[str, Callable[[], Scene]]:
    """Recordings in which mistakes are made."""
    found: dict[str, Callable[[], Scene]] = {
        "room 160x120": lambda: room_scene(7 + fresh, 0, 40, (160, 120)),
        "room 80x60": lambda: room_scene(3 + fresh, 1, 40, (80, 60)),
        "room 320x240": lambda: room_scene(11 + fresh, 2, 30, (320, 240), noise=False),
    }
    if data is not None:
        found["kitchen"] = lambda: real(data, "7scenes_redkitchen")
    return found


def real(data: Path, name: str, cameras: Path | None = None) -> Scene:
    """The only scene of a real recording."""
    return SevenScenesReader(data / name, cameras).scenes()[0]


def good(data: Path | None, work: Path, fresh: int) -> Iterator[tuple[str, Callable[[], Scene]]]:
    """Recordings without a mistake."""
    sizes = ((80, 60), (120, 90), (160, 120), (200, 150), (320, 240))
    for seed in range(20, 30):
        size = sizes[seed % 5]
        noise = seed % 2 == 0
        what = f"room {seed}, {size[0]}x{size[1]}, {'noise' if noise else 'exact'}"
        yield what, lambda seed=seed, size=size, noise=noise: room_scene(seed + fresh, 1, 40, size, noise)  # type: ignore[misc]
    for seed in (30, 31, 32):
        yield f"room {seed}, filmed", lambda seed=seed: slow_room_scene(seed + fresh, 0, 240, (120, 90))  # type: ignore[misc]
    for count in (8, 14, 20):
        yield f"room 33, {count} frames", lambda count=count: room_scene(33 + fresh, 0, count, (160, 120))  # type: ignore[misc]
    yield "room 34, cropped", lambda: cropped(room_scene(34 + fresh, 0, 40, (160, 120)), 24, 12, 120, 90)
    yield "room 35, cropped", lambda: cropped(room_scene(35 + fresh, 0, 40, (320, 240)), 60, 50, 180, 150)
    yield "room 36, coarse depth", lambda: coarser(room_scene(36 + fresh, 0, 40, (320, 240)), 80, 60)
    yield "room 37, coarse depth", lambda: coarser(room_scene(37 + fresh, 0, 40, (160, 120)), 64, 48)
    if data is None:
        return
    work.write_text(AS_PUBLISHED)
    yield "kitchen", lambda: real(data, "7scenes_redkitchen")
    yield "kitchen, every 2nd", lambda: every(real(data, "7scenes_redkitchen"), 2)
    yield "kitchen, every 6th", lambda: every(real(data, "7scenes_redkitchen"), 6)
    yield "kitchen, first 80", lambda: first(real(data, "7scenes_redkitchen"), 80)
    yield "kitchen, cropped", lambda: cropped(real(data, "7scenes_redkitchen"), 80, 60, 480, 360)
    yield "kitchen as published, cameras stated", lambda: real(data, "7scenes_redkitchen_unregistered", work)


def said(judgement: Judgement) -> tuple[str, ...]:
    """Names of the faults, or of the warnings where there is no fault."""
    worst = "fault" if judgement.faults else "warning"
    return tuple(f.fault or f.check for f in judgement.findings if f.verdict == worst)


def outcome(
    scene: Scene, named: tuple[str, ...], correct: str | None, frames: int, pairs: int, seed: int = 0
) -> Outcome:
    """Judge a scene, and compare."""
    start = time.process_time()
    judgement = judge(scene, frames, pairs, seed)
    seconds = time.process_time() - start
    found = said(judgement)
    if not named:  # a warning about a good recording is no alarm
        found = tuple(f.fault for f in judgement.faults) or (("advice",) if judgement.correct else ())
    right = sorted(found) == sorted(named) and (correct is None or judgement.correct == correct)
    words = ", ".join(found) + (f" ({judgement.correct})" if judgement.correct else "")
    return Outcome(words or judgement.verdict, right, seconds)


def run_faults(data: Path | None, only: str | None, frames: int, pairs: int, fresh: int = 0) -> tuple[int, int]:
    """Print fault x recording; return how many were named, and how many there were."""
    named = total = 0
    for base, make in bases(data, fresh).items():
        scene = make()
        for name, fault in FAULTS.items():
            if only is not None and only != name:
                continue
            result = outcome(faulty(scene, name), fault.named, fault.correct, frames, pairs)
            named, total = named + result.right, total + 1
            mark = "" if result.right else "   <- WRONG"
            print(f"| {base:14} | {name:28} | {result.said:60} | {result.seconds:5.1f} |{mark}", flush=True)
    if data is not None and only is None:
        result = outcome(real(data, "7scenes_redkitchen_unregistered"), ("colour not registered",), None, frames, pairs)
        named, total = named + result.right, total + 1
        mark = "" if result.right else "   <- WRONG"
        print(f"| kitchen        | as published, no cameras     | {result.said:60} | {result.seconds:5.1f} |{mark}")
    return named, total


def run_good(data: Path | None, work: Path, frames: int, pairs: int, fresh: int = 0, seeds: int = 1) -> tuple[int, int]:
    """Print the verdict on every good recording; return how many raise a false alarm, and how many there are."""
    alarms = total = 0
    for name, make in good(data, work, fresh):
        scene = make()
        results = [outcome(scene, (), None, frames, pairs, seed) for seed in range(seeds)]
        same = len({result.said for result in results}) == 1
        alarms, total = alarms + (not same or not all(result.right for result in results)), total + 1
        words, seconds = "; ".join(sorted({result.said for result in results})), results[0].seconds
        print(f"| {name:36} | {words:40} | {seconds:5.1f} |" + "   <- VERDICTS DIFFER" * (not same), flush=True)
    return alarms, total


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--only", help="one mistake")
    parser.add_argument("--good", action="store_true", help="only the good recordings")
    parser.add_argument("--bad", action="store_true", help="only the mistakes")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1, help="samples of every good recording")
    parser.add_argument("--fresh", type=int, default=0, help="added to the seeds of all rooms")
    options = parser.parse_args()
    print(describe_machine())
    if not options.good:
        named, count = run_faults(options.data, options.only, options.frames, options.pairs, options.fresh)
        print(f"named: {named} of {count}")
    if not options.bad:
        work = Path("check-benchmark-cameras.yaml")
        try:
            alarms, count = run_good(options.data, work, options.frames, options.pairs, options.fresh, options.seeds)
        finally:
            work.unlink(missing_ok=True)
        print(f"false alarms: {alarms} of {count}")


if __name__ == "__main__":
    main()

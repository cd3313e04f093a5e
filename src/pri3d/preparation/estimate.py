"""The estimate before preparation: scenes, frames, pairs, gigabytes and minutes, measured on a few frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

import numpy as np

from pri3d.preparation.frames import Picked, pick_frames
from pri3d.preparation.pipeline import SceneJob, open_job, open_scene, prepare_scene
from pri3d.recordings import ChangedScene, Scene
from pri3d.store import scene_folder
from pri3d.types import Frame

T = TypeVar("T")
COUNTED = 50  #: scenes whose frames are counted; more are taken to be like them
MEASURED = 3  #: scenes of which a few frames are prepared
WORTH = 100  #: frames; less is done sooner than measured
_FRAMES = 3  # neighbours of one scene: three pairs
_PATIENCE = 5.0  # seconds after which no further scene is measured


class SceneCost(NamedTuple):
    """What a scene takes of one process, and gives."""

    frame: float  #: seconds a frame, until it is stored and its cells are counted
    pair: float  #: seconds a pair
    scene: float  #: seconds a scene, for its mesh
    frame_bytes: float
    scene_bytes: float


class Estimate(NamedTuple):
    """What scenes that are not finished will take, and give."""

    scenes: int
    frames: int  #: that are looked at, rejected ones included
    pairs: int  #: of all frames of a scene with each other: no more can be measured or kept
    counted: int  #: scenes whose frames were counted; the rest of ``frames`` and ``pairs`` is extrapolated
    measured: int  #: scenes of which frames were prepared, 0 where time and size are not known
    seconds: float  #: of one process
    bytes: float
    unreadable: list[str]  #: why scenes could be neither counted nor measured
    total: int  #: frames of the scenes
    rule: str  #: how those that are looked at were picked, in words

    def text(self, processes: int) -> str:
        """Say it in a sentence or two; ``processes`` 0 where it is not known how many there will be."""
        known = self.counted >= self.scenes
        about = "" if known else "about "
        said = f"to prepare: {self.scenes:,} scenes, {about}{self.frames:,} "
        said += f"of {self.total:,} frames ({self.rule})" if self.frames < self.total else "frames"
        said += f", up to {self.pairs:,} pairs"
        if self.measured:
            minutes = self.seconds / 60 / max(1, processes)
            who = f"{processes} process{'es' * (processes > 1)}" if processes else "one worker; divide by their number"
            said += f", about {self.bytes / 1e9:.2g} GB, {minutes:.2g} minutes of {who}"
            said += f". Measured on {_FRAMES} frames of {self.measured}, as if every pair were measured"
        if not known:
            said += f"; frames counted in {self.counted} scenes"
        lost = f" {len(self.unreadable)} could not be read, the first: {self.unreadable[0]}" if self.unreadable else ""
        return f"{said}.{lost}"


def estimate(jobs: Sequence[SceneJob], worth: int = WORTH) -> Estimate:
    """Look at a few scenes of ``jobs``, in seconds; nothing is written but to a temporary folder.

    The frames of ``COUNTED`` scenes at most are counted; those of ``MEASURED`` are prepared by threes where there are
    at least ``worth`` frames. A scene that cannot be read is passed over.
    """
    unreadable: list[str] = []
    counts = [count for job in _spread(jobs, COUNTED) if (count := _try(_pick, job, unreadable)) is not None]
    costs: list[SceneCost] = []
    if counts and sum(len(count.indices) for count in counts) / len(counts) * len(jobs) >= worth:
        end = time.monotonic() + _PATIENCE
        for job in _spread(jobs, 2 * MEASURED):
            if not costs:
                _try(_measure, job, [])  # what is loaded and compiled once does not count
            cost = _try(_measure, job, unreadable)
            costs += [] if cost is None else [cost]
            if len(costs) == MEASURED or (costs and time.monotonic() > end):
                break
    return combine(len(jobs), counts, costs, list(dict.fromkeys(unreadable)))


def combine(scenes: int, counts: Sequence[Picked], costs: Sequence[SceneCost], unreadable: list[str]) -> Estimate:
    """Multiply: ``counts`` are the frames of some of the scenes, ``costs`` those of some, which the others are like."""
    share = scenes / len(counts) if counts else 0.0
    numbers = [len(count.indices) for count in counts]
    frames = round(share * sum(numbers))
    pairs = round(share * sum(n * (n - 1) // 2 for n in numbers))
    rule = ", ".join(dict.fromkeys(count.rule for count in counts if len(count.indices) < count.total))
    cost = SceneCost(*np.mean(np.array(costs), axis=0).tolist()) if costs else SceneCost(0, 0, 0, 0, 0)
    seconds = frames * cost.frame + pairs * cost.pair + scenes * cost.scene
    size = frames * cost.frame_bytes + scenes * cost.scene_bytes
    total = round(share * sum(count.total for count in counts))
    return Estimate(scenes, frames, pairs, len(counts), len(costs), seconds, size, unreadable, total, rule)


def _pick(job: SceneJob) -> Picked:
    return pick_frames(open_scene(job), open_job(job).reader, job.settings.select, job.settings.frame_step)


def _measure(job: SceneJob) -> SceneCost:
    """Prepare a few neighbouring frames from the middle of a scene, with a clock."""
    marks: dict[str, list[tuple[float, int]]] = {}

    def report(step: str, _done: int, total: int) -> None:
        marks.setdefault(step, []).append((time.perf_counter(), total))

    scene, settings = open_scene(job), job.settings
    kept = _pick(job).indices
    middle = max(0, (len(kept) - _FRAMES) // 2)
    few = _FewFrames(scene, kept[middle : middle + _FRAMES])
    plain = settings._replace(frame_step=1, select="every", min_overlap=0.001)
    with TemporaryDirectory() as folder:
        record = prepare_scene(job._replace(out=Path(folder), settings=plain), report, few)
        files = ("frames.zip", "surface.npz")
        images, surface = ((scene_folder(Path(folder), job.scene) / name).stat().st_size for name in files)
    end = time.perf_counter()
    frames = max(1, record["frames"])
    mined, measured = marks.get("pairs", [(end, 0)])[0]
    fused = marks.get("surface", [(end, 0)])[0][0]
    per_scene = scene.mesh() is not None  # else every frame adds to the surface, at most as much as these
    return SceneCost(
        frame=((mined - marks["frames"][0][0]) + (end - fused) * (not per_scene)) / frames,
        pair=(fused - mined) / max(1, measured),
        scene=(end - fused) * per_scene,
        frame_bytes=(images + surface * (not per_scene)) / frames,
        scene_bytes=surface * per_scene,
    )


class _FewFrames(ChangedScene):
    """Some frames of a scene, as one."""

    def __init__(self, scene: Scene, indices: Sequence[int]) -> None:
        super().__init__(scene)
        self._indices = indices
        self.names = [scene.names[index] for index in indices]

    @property
    def times(self) -> None:  # type: ignore[override]
        return None

    def frame(self, index: int) -> Frame:
        return self.scene.frame(self._indices[index])


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread, the first among them."""
    number = min(most, len(items))
    return [items[k * len(items) // number] for k in range(number)]


def _try(look: Callable[[SceneJob], T], job: SceneJob, unreadable: list[str]) -> T | None:
    try:
        return look(job)
    except Exception as error:  # the scene fails again when it is its turn, and is listed then
        unreadable.append(f"{job.scene}: {error}")
        return None

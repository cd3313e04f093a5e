"""One scene through all steps: frames, pairs, surface, and into the store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pri3d.errors import DataError
from pri3d.geometry.fusion import REACH
from pri3d.geometry.resize import parse_size
from pri3d.preparation.frames import SceneFrames, read_frames
from pri3d.preparation.overlap import Mode
from pri3d.preparation.pairs import mine, pair_table
from pri3d.preparation.scale import ScaledScene
from pri3d.preparation.select import Select
from pri3d.preparation.surface import scene_surface
from pri3d.recordings import Recording, Scene, find_reader, open_recording
from pri3d.recordings._shared.text import clean_id
from pri3d.store import PairTable, SceneWriter
from pri3d.types import Voxels

Match = Literal["point", "relative"]
Report = Callable[[str, int, int], None]  #: told a step's name, how much of it is done, and how much there is


class Settings(NamedTuple):
    """What decides the content of a prepared store, see :func:`pri3d.preparation.run.prepare`."""

    size: str
    frame_step: int | None  #: None leaves it to the format
    max_depth: float
    overlap: Mode
    min_overlap: float
    distance: float
    voxel: float
    pairs: bool
    surface: bool
    cameras: str | None  #: digest of the file of cameras, None where none is given
    split: str = "train"  #: which scenes of a data set with an official split; what older stores were made with
    correct: str = ""  #: mistakes of the recording, see pri3d.recordings._shared.correction
    min_confidence: int = 50  #: percent; depth that its device trusts less is invalid
    match: Match = "point"  #: whether the distance is in metres or a share of the depth
    select: Select = "every"  #: frames in steps, or as the camera's motion has it

    def step(self, reader: Recording) -> int:
        """Frames of a recording to go on by; motion chooses among all where no step is given."""
        usual = reader.frame_step if self.select == "every" else 1
        return self.frame_step or usual


class Job(NamedTuple):
    """One scene to prepare; plain values, so that it travels to a worker process."""

    recording: Path
    reader: str | None
    cameras: Path | None
    scene: str
    out: Path
    settings: Settings
    threads: int = 1  #: for the mining


class Opened(NamedTuple):
    """A recording that is open."""

    name: str  #: of its format
    reader: Recording
    scenes: dict[str, Scene]  #: by id
    camera_files: dict[str, list[tuple[int, Path]]]  #: its files that state cameras, see :func:`_camera_files`


@lru_cache(maxsize=4)
def open_cached(
    recording: Path, reader: str | None, cameras: Path | None, split: str = "train", correct: str = ""
) -> Opened:
    """A recording and its scenes by id; a worker opens a recording once for all its scenes."""
    name = reader or find_reader(recording)
    opened = open_recording(recording, name, cameras, split, correct)
    files = {} if cameras is not None else _camera_files(recording)  # --cameras stands for them
    return Opened(name, opened, {scene.id: scene for scene in opened.scenes()}, files)


def _camera_files(recording: Path) -> dict[str, list[tuple[int, Path]]]:
    """Files that state cameras by the names that scenes of their folder may begin with, and their rank.

    A cameras.yaml goes before other files, a deeper one before those above it.
    """
    names = ("cameras.yaml", "camera-intrinsics.txt")
    files = [path for name in names for level in ("*/*/", "*/", "") for path in recording.glob(level + name)]
    found: dict[str, list[tuple[int, Path]]] = {}
    for rank, path in enumerate(files):
        parts = path.parent.relative_to(recording).parts
        for name in {clean_id("-".join(parts)), parts[-1]} if parts else {""}:
            found.setdefault(name, []).append((rank, path))
    return found


def open_job(job: Job) -> Opened:
    """:func:`open_cached` of the scene's recording."""
    return open_cached(job.recording, job.reader, job.cameras, job.settings.split, job.settings.correct)


def open_scene(job: Job) -> Scene:
    """Return the job's scene, of its own: what it reads goes with it, and does not add up over thousands of scenes."""
    return copy(open_job(job).scenes[job.scene])


def prepare_scene(
    job: Job, report: Report = lambda _step, _done, _total: None, source: Scene | None = None
) -> dict[str, Any]:
    """Prepare and store one scene; return its record (scene.json).

    ``source`` takes the place of the job's own scene, as a part of it does. Raises DataError where no frame is usable
    or no two frames overlap; nothing is left behind then.
    """
    start = time.perf_counter()
    settings = job.settings
    opened = open_job(job)
    source = source or open_scene(job)
    scene = _in_metres(source, settings)
    with SceneWriter(job.out, job.scene) as writer:
        frames = read_frames(
            scene,
            writer,
            size=parse_size(settings.size),
            max_depth=settings.max_depth,
            select=settings.select,
            frame_step=settings.step(opened.reader),
            min_confidence=settings.min_confidence,
            reach=_reach(settings),
            keep_depth=settings.pairs or settings.surface,
            keep_views=settings.surface,
            progress=lambda done, total: report("frames", done, total),
        )
        relative = not source.metric or settings.match == "relative"
        pairs = _pairs(job, frames, relative, report) if settings.pairs else PairTable.empty()
        surface = Voxels(np.zeros((0, 3), np.int32), settings.voxel)
        if settings.surface:
            report("surface", 0, 1)
            surface = scene_surface(scene.mesh(), frames, settings.voxel)
        record = {
            "source": str(job.recording),
            "cameras": stated_cameras(job),
            "reader": opened.name,
            "split": source.split,
            "match": "relative" if relative else "point",
            "scale": scene.factor if isinstance(scene, ScaledScene) else None,
            "source_frames": len(scene.names),
            "frame_step": settings.step(opened.reader),
            "frames": len(frames.rows),
            "rejected": len(frames.reasons),
            "pairs": len(pairs.i),
            "voxels": len(surface.cells),
            "width": writer.size[0],
            "height": writer.size[1],
            "seconds": round(time.perf_counter() - start, 2),
        }
        return writer.finish(pairs, surface, record)


def _in_metres(scene: Scene, settings: Settings) -> Scene:
    """The scene, scaled where its unit is not known. Raises DataError where it has no poses and they are needed."""
    if not scene.posed:
        if settings.pairs or settings.surface:
            raise DataError(
                "its frames have no poses, so that they can be neither paired nor fused to a surface. Add --no-pairs "
                "--no-surface; what learns from single images, as --preset moco does, needs neither."
            )
        return scene
    return scene if scene.metric else ScaledScene(scene)


def stated_cameras(job: Job) -> dict[str, str]:
    """Return the file of the recording that states the scene's cameras, relative to it, and its digest.

    That is the nearest ``cameras.yaml`` of the scene's folder and those above it up to the recording, else the nearest
    ``camera-intrinsics.txt``; empty where there is neither, or where --cameras stands for them.
    """
    cameras, parts = open_job(job).camera_files, job.scene.split("-")
    names = {"", job.scene, *("-".join(parts[:end]) for end in range(1, len(parts)))}
    for _, path in sorted({item for name in names for item in cameras.get(name, ())}):
        if _holds(job.recording, path.parent, job.scene):
            return {path.relative_to(job.recording).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    return {}


def _holds(recording: Path, folder: Path, scene: str) -> bool:
    """Whether the scene's folder is ``folder`` or lies in it: readers name a scene by the folders down to it."""
    parts = folder.relative_to(recording).parts
    name = clean_id("-".join(parts))
    inner = scene.removeprefix(f"{name}-")
    own = scene == name or (scene == folder.name and not (recording / scene).is_dir())  # scans/scene0000_00
    return not parts or own or (inner != scene and (folder / inner).is_dir())


def _reach(settings: Settings) -> float:
    """Metres from the origin that the finest cells of the steps to come reach."""
    cells = [settings.voxel] * settings.surface + [2 * settings.distance] * settings.pairs
    return REACH * min(cells, default=float("inf"))


def _pairs(job: Job, frames: SceneFrames, relative: bool, report: Report) -> PairTable:
    settings = job.settings
    if len(frames.rows) < 2:
        why = f" The first rejected: {frames.reasons[0]}" if frames.reasons else ""
        raise DataError(f"pairs need two usable frames, found {len(frames.rows)} of {frames.total}.{why}")
    pairs, overlaps, best = mine(
        frames.stack,
        distance=settings.distance,
        min_overlap=settings.min_overlap,
        mode=settings.overlap,
        relative=relative,
        threads=job.threads,
        progress=lambda done, total: report("pairs", done, total),
    )
    if len(pairs) == 0:
        raise DataError(
            f"no two of {len(frames.rows)} frames overlap by {settings.min_overlap:g}; the best pair by "
            f"{best:.2f}. Check poses and cameras (docs/own-data.md), or lower --min-overlap, --frame-step."
        )
    return pair_table(job.scene, frames.rows, pairs, overlaps, frames.stack.world_from_camera)

"""One scene through all steps: frames, pairs, surface, and into the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pri3d.errors import DataError
from pri3d.geometry.images import parse_size
from pri3d.preparation.frames import SceneFrames, read_frames
from pri3d.preparation.overlap import Mode
from pri3d.preparation.pairs import mine, pair_table
from pri3d.preparation.surface import scene_surface
from pri3d.readers import Reader, Scene, open_recording
from pri3d.store import PairTable, SceneWriter
from pri3d.types import Voxels

Report = Callable[[str, int, int], None]  #: told a step's name, how much of it is done, and how much there is


class Settings(NamedTuple):
    """What decides the content of a prepared store, see :func:`pri3d.preparation.run.prepare`."""

    size: str
    frame_step: int
    max_depth: float
    overlap: Mode
    min_overlap: float
    distance: float
    voxel: float
    pairs: bool
    surface: bool
    cameras: str | None  #: digest of the file of cameras, None where none is given


class Job(NamedTuple):
    """One scene to prepare; plain values, so that it travels to a worker process."""

    recording: Path
    reader: str | None
    cameras: Path | None
    scene: str
    out: Path
    settings: Settings
    threads: int = 1  #: for the mining


@lru_cache(maxsize=4)
def open_cached(recording: Path, reader: str | None, cameras: Path | None) -> tuple[Reader, dict[str, Scene]]:
    """:func:`pri3d.readers.open_recording` and its scenes by id; a worker opens a recording once for all its scenes."""
    opened = open_recording(recording, reader, cameras)
    return opened, {scene.id: scene for scene in opened.scenes()}


def prepare_scene(job: Job, report: Report = lambda _step, _done, _total: None) -> dict[str, Any]:
    """Prepare and store one scene; return its record (scene.json).

    Raises DataError where no frame is usable or no two frames overlap; nothing is left behind then.
    """
    start = time.perf_counter()
    settings = job.settings
    opened, scenes = open_cached(job.recording, job.reader, job.cameras)
    scene = scenes[job.scene]
    with SceneWriter(job.out, job.scene) as writer:
        frames = read_frames(
            scene,
            writer,
            size=parse_size(settings.size),
            max_depth=settings.max_depth,
            frame_step=settings.frame_step,
            keep_views=settings.surface,
            progress=lambda done, total: report("frames", done, total),
        )
        pairs = _pairs(job, frames, report) if settings.pairs else PairTable.empty()
        surface = Voxels(np.zeros((0, 3), np.int32), settings.voxel)
        if settings.surface:
            report("surface", 0, 1)
            surface = scene_surface(scene.mesh(), frames, settings.voxel)
        record = {
            "source": str(job.recording),
            "reader": job.reader or type(opened).__name__,
            "source_frames": len(scene.names),
            "frames": len(frames.rows),
            "rejected": len(frames.reasons),
            "pairs": len(pairs.i),
            "voxels": len(surface.cells),
            "width": writer.size[0],
            "height": writer.size[1],
            "seconds": round(time.perf_counter() - start, 2),
        }
        return writer.finish(pairs, surface, record)


def _pairs(job: Job, frames: SceneFrames, report: Report) -> PairTable:
    settings = job.settings
    if len(frames.rows) < 2:
        why = f" The first rejected: {frames.reasons[0]}" if frames.reasons else ""
        raise DataError(f"pairs need two usable frames, found {len(frames.rows)} of {frames.total}.{why}")
    pairs, overlaps, best = mine(
        frames.stack,
        distance=settings.distance,
        min_overlap=settings.min_overlap,
        mode=settings.overlap,
        threads=job.threads,
        progress=lambda done, total: report("pairs", done, total),
    )
    if len(pairs) == 0:
        raise DataError(
            f"no two of {len(frames.rows)} frames overlap by {settings.min_overlap:g}; the best pair by "
            f"{best:.2f}. Check poses and cameras (docs/own-data.md), or lower --min-overlap, --frame-step."
        )
    return pair_table(job.scene, frames.rows, pairs, overlaps, frames.stack.world_from_camera)

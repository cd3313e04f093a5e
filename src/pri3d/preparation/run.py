"""Recordings -> the prepared store: scenes in parallel, kept where they are finished, one manifest."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.progress import Progress

from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import is_full, remove_leftovers
from pri3d.geometry.resize import parse_size
from pri3d.machine import cores
from pri3d.preparation.cluster import check_cluster, run_on_cluster
from pri3d.preparation.ending import finish, listed, summary
from pri3d.preparation.estimate import estimate
from pri3d.preparation.scene import Job, Report, Settings, open_cached, open_scene, stated_cameras
from pri3d.preparation.select import Select
from pri3d.preparation.workers import Outcome, run_here, run_in_processes
from pri3d.recordings import find_reader
from pri3d.recordings._shared.correction import parse_correction
from pri3d.store import MANIFEST, read_manifest, read_scene_record, scene_folder, write_manifest

_PACKAGES = ("pri3d", "numpy", "numba", "pillow", "scipy")
_UNITS = {
    "length": "metre",
    "depth image": "millimetre",
    "angle": "radian",
    "camera axes": "x right, y down, z forward",
}
_READERS = 8  # files read at a time: file systems of clusters answer late


def prepare(
    recordings: list[Path],
    out: Path,
    reader: str | None = None,
    cameras: Path | None = None,
    size: str = "320x240",
    frame_step: int | None = None,
    max_depth: float = 6.0,
    overlap: Literal["paper", "max"] = "paper",
    min_overlap: float = 0.3,
    distance: float = 0.02,
    voxel: float = 0.02,
    pairs: bool = True,
    surface: bool = True,
    split: Literal["train", "val", "test", "all"] = "train",
    correct: str = "",
    min_confidence: int = 50,
    match: Literal["point", "relative"] = "point",
    select: Select = "every",
    workers: int = 0,
    cluster: str | None = None,
    dry_run: bool = False,
) -> None:
    """Turn recordings into a prepared store: frames, overlapping pairs and the surface of every scene.

    Finished scenes are kept, so a stopped run continues, more recordings can be added later, and a second run changes
    nothing. A scene that fails is listed with its reason while the others go on.

    Args:
        recordings: folders of the recordings.
        out: folder of the store, created where it is missing.
        reader: format of the recordings; found out from their layout where it is not given.
        cameras: YAML file that states the colour and the depth camera, for recordings that do not.
        size: largest stored image, WIDTHxHEIGHT in pixels; the aspect ratio is kept and nothing is enlarged.
        frame_step: take every so many frames; without it the format decides: 25 for videos, as the paper does with
            ScanNet, 1 where frames were chosen already.
        max_depth: metres; farther depth counts as invalid.
        overlap: "paper" for corresponding pixels of both frames over valid pixels of both, "max" for the larger of the
            two frames' shares, as the authors' code has it.
        min_overlap: pairs that overlap by less are left out.
        distance: metres within which two points correspond; a share of the depth with match relative.
        voxel: edge length of the surface's cells in metres.
        pairs: whether to mine pairs; labelled images for fine-tuning need none.
        surface: whether to voxelise the surface; only the Geometry objective needs it.
        split: which scenes of a data set that has an official split (ScanNet); scenes in none of its lists, and
            recordings of your own, count as train.
        correct: what `pri3d check` found wrong, such as `inverse` (poses are world to camera), `opengl` (camera axes),
            `ray` (depth along the ray), `depth=0.2` (its factor), `translation=0.001` (that of the poses' places),
            `shift=1` (frames that depth is late), by commas.
        min_confidence: percent; depth that the device itself trusts less counts as invalid (phones say low, medium
            and high: 0, 50 and 100).
        match: what the distance is: `point`, metres as in the paper, or `relative`, a share of the depth, for scenes
            with far things; scenes without a known unit (structure from motion) always take the latter.
        select: `every` frame (of each frame_step), or those that the camera's `motion` chooses: the sharpest of each
            stretch of 10 cm or 10 degrees, of every frame of a video unless frame_step is given.
        workers: processes; 0 takes one per core. With cluster slurm, how many jobs to submit.
        cluster: machines to share the scenes among, all with the same file system: `slurm` submits jobs as dask's
            jobqueue.yaml says, `dask:tcp://HOST:8786` takes the workers of a running dask scheduler.

        dry_run: say what there is to do and what it will take, from a few frames of a few scenes, and stop there.

    Raises:
        ConfigError: a flag is out of range, or ``out`` was made with other settings.
        DataError: some scene failed (the others are there), the disk is full, or the cluster's scheduler is lost.
    """
    open_cached.cache_clear()  # recordings may have changed since an earlier call
    digest = None if cameras is None else hashlib.sha256(_read(cameras)).hexdigest()[:16]
    settings = Settings(
        size,
        frame_step,
        max_depth,
        overlap,
        min_overlap,
        distance,
        voxel,
        pairs,
        surface,
        digest,
        split,
        str(parse_correction(correct)),
        min_confidence,
        match,
        select,
    )
    _check(settings, recordings, workers)
    if cluster is not None:
        check_cluster(cluster, workers)
    old = _claim(out, settings)
    jobs, class_names = _jobs([Path(r).resolve() for r in recordings], reader, cameras, out, settings)
    with ThreadPoolExecutor(_READERS) as pool:
        todo = [job for job, there in zip(jobs, pool.map(_is_finished, jobs), strict=True) if not there]
    if _announce(todo, workers, cluster, dry_run):
        return
    manifest = {
        "state": "unfinished",
        "settings": old["settings"] if old else settings._asdict(),
        "units": _UNITS,
        "class_names": _merge_names(old, class_names),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "scenes": {},
        "failed": {},
    }
    with _disk(out):
        for folder in (out, out / "scenes"):
            remove_leftovers(folder)
        if todo or old is None:
            out.mkdir(parents=True, exist_ok=True)
            write_manifest(out, {**(old or manifest), "state": "unfinished"})
        failed = _run(todo, workers, cluster)
        if old is not None and len(failed) == len(todo):
            manifest["versions"] = old["versions"]  # nothing new was made
        finish(out, manifest, failed)
    summary(out, manifest)
    if failed:
        raise DataError(f"{len(failed)} of {len(jobs)} scenes failed, the others are in {out}:{listed(failed)}")


def _check(settings: Settings, recordings: list[Path], workers: int) -> None:
    parse_size(settings.size)
    limits = {
        "--frame_step": (1 if settings.frame_step is None else settings.frame_step, 1, float("inf")),
        "--min_confidence": (settings.min_confidence, 0, 100),
        "--max_depth": (settings.max_depth, 0.01, 65.0),
        "--min_overlap": (settings.min_overlap, 0.001, 1.0),
        "--distance": (settings.distance, 1e-4, 10.0),
        "--voxel": (settings.voxel, 1e-3, 10.0),
        "--workers": (workers, 0, 1024),
    }
    wrong = [
        f"{flag} {v:g} (allowed: {low:g} to {high:g})"
        for flag, (v, low, high) in limits.items()
        if not low <= v <= high
    ]
    if settings.overlap not in ("paper", "max"):
        wrong.append(f"--overlap {settings.overlap} (allowed: paper, max)")
    if settings.select not in get_args(Select):
        wrong.append(f"--select {settings.select} (allowed: {', '.join(get_args(Select))})")
    if settings.match not in ("point", "relative"):
        wrong.append(f"--match {settings.match} (allowed: point, relative)")
    if not recordings:
        wrong.append("no recording given")
    if wrong:
        raise ConfigError(f"prepare: {'; '.join(wrong)}.")


def _claim(out: Path, settings: Settings) -> dict[str, Any] | None:
    """Return the manifest that is already there. Raises ConfigError where ``out`` is something else or differs."""
    if not (out / MANIFEST).is_file():
        if out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
            raise ConfigError(f"{out}: exists and is no prepared store. Choose an empty or new folder.")
        return None
    old = read_manifest(out)
    there, now = old["settings"], settings._asdict()
    there = {**Settings._field_defaults, **there}
    differ = [f"{name}: {there.get(name)!r}, now {now[name]!r}" for name in now if there.get(name) != now[name]]
    if differ:
        raise ConfigError(
            f"{out}: was prepared with other settings ({'; '.join(differ)}). Choose another OUT or delete it."
        )
    return old


def _jobs(
    recordings: list[Path], reader: str | None, cameras: Path | None, out: Path, settings: Settings
) -> tuple[list[Job], list[str] | None]:
    """Return all scenes of all recordings, and the class names they share."""
    jobs: dict[str, Job] = {}
    names: list[list[str] | None] = []
    for recording in recordings:
        name = reader or find_reader(recording)  # once, not by every worker
        opened = open_cached(recording, name, cameras, settings.split, settings.correct)
        classes = opened.reader.class_names
        names.append(None if classes is None else list(classes))
        for scene in opened.scenes:
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", scene):
                raise DataError(f"{recording}: scene id {scene!r} is no folder name; use letters, digits, - _ and .")
            if scene in jobs:
                raise DataError(f"scene {scene} is in {jobs[scene].recording} and in {recording}. Rename one folder.")
            jobs[scene] = Job(recording, name, cameras, scene, out, settings)
    if any(other != names[0] for other in names):
        raise DataError("the recordings have different class names. Prepare them into one store each.")
    return list(jobs.values()), names[0]


def _merge_names(old: dict[str, Any] | None, new: list[str] | None) -> list[str] | None:
    if old is not None and old["class_names"] != new:
        raise DataError("the recordings' class names differ from the store's. Prepare them into another OUT.")
    return new


def _is_finished(job: Job) -> bool:
    """Whether the store has this scene. Raises ConfigError where its source or cameras are or look other ones."""
    record = read_scene_record(job.out, job.scene)
    if record is None:
        return False
    frames = len(open_scene(job).names)
    for what, there, now in (
        ("comes from", record["source"], str(job.recording)),
        ("was made of", record["source_frames"], frames),
    ):
        if there != now:
            folder = scene_folder(job.out, job.scene)
            raise ConfigError(f"scene {job.scene} {what} {there}, now {now}. Delete {folder} to make it anew.")
    cameras = stated_cameras(job)
    before = record.get("cameras", {})
    if before != cameras:
        files = " and ".join(sorted({*before, *cameras}))
        raise ConfigError(
            f"scene {job.scene} was made with other cameras: {files} of {job.recording} has changed since. Restore it, "
            f"or delete {scene_folder(job.out, job.scene)} to make the scene anew."
        )
    return True


def _announce(jobs: list[Job], workers: int, cluster: str | None, dry_run: bool) -> bool:
    """Print what there is to do and what it will take; return whether that was all that was asked."""
    if jobs:
        processes = workers if cluster is not None else min(workers or cores(), len(jobs))
        said = estimate(jobs, worth=0).text(processes) if dry_run else estimate(jobs).text(processes)
        Console(stderr=True, highlight=False).print(said, markup=False, soft_wrap=True)
    elif dry_run:
        Console(stderr=True).print("to prepare: nothing, every scene is there", markup=False)
    return dry_run


def _run(jobs: list[Job], workers: int, cluster: str | None) -> dict[str, str]:
    """Prepare the scenes; return the failed ones and why."""
    failed: dict[str, str] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        overall = progress.add_task("scenes" if cluster is None else f"scenes on {cluster}", total=len(jobs))
        for job, reason in _outcomes(jobs, workers, cluster, progress):
            progress.advance(overall)
            if reason is not None:
                failed[job.scene] = reason
    return failed


def _outcomes(jobs: list[Job], workers: int, cluster: str | None, progress: Progress) -> Iterator[Outcome]:
    if cluster is not None and jobs:
        return run_on_cluster(jobs, cluster, workers)
    processes = max(1, min(workers or cores(), len(jobs)))
    jobs = [job._replace(threads=(workers or cores()) // processes) for job in jobs]
    if processes > 1:
        return run_in_processes(jobs, processes)
    bar = progress.add_task("", total=None)

    def report(job: Job) -> Report:
        return lambda step, done, total: progress.update(
            bar, description=f"{job.scene}: {step}", completed=done, total=total
        )

    return run_here(jobs, report)


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise DataError(f"{out}: the disk is full. Free some space and run the same command again.") from error


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"--cameras {path}: cannot be read ({error}).") from error

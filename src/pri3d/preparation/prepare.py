"""Recordings -> the prepared dataset: scenes in parallel, one manifest, and the printed summary."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

from pri3d.api.prepare import PrepareOptions
from pri3d.errors import ConfigError, DataError, FailedScenesError
from pri3d.files.atomic import is_full, remove_leftovers
from pri3d.files.kinds import is_id
from pri3d.files.lock import clear_lock, lock_folder
from pri3d.files.stamp import refuse_other_settings
from pri3d.geometry.resize import parse_size
from pri3d.machine import cores
from pri3d.preparation.estimate import estimate
from pri3d.preparation.executors import (
    check_cluster,
    prepare_here,
    prepare_on_cluster,
)
from pri3d.preparation.pipeline import Report, SceneJob, StoreSettings, open_cached, open_scene, stated_cameras
from pri3d.recordings import find_reader, name_left_out
from pri3d.recordings._shared.correction import parse_correction
from pri3d.recordings._shared.text import absolute
from pri3d.store import (
    MANIFEST,
    PairTable,
    SceneStore,
    finished_scenes,
    read_manifest,
    read_scene_record,
    scene_folder,
    write_manifest,
    write_pairs,
)
from pri3d.terminal import Terminal

_PACKAGES = ("pri3d", "numpy", "numba", "pillow", "scipy")
_UNITS = {
    "length": "metre",
    "depth image": "millimetre",
    "angle": "radian",
    "camera axes": "x right, y down, z forward",
}
_NAMED = 5  # scenes that a line names
_READERS = 8  # files read at a time: file systems of clusters answer late
SHOWN = 40  #: scenes, and reasons of failure, that are printed; the manifest has all


def prepare(options: PrepareOptions) -> None:
    """Turn recordings into a prepared dataset: frames, overlapping pairs and the surface of every scene.

    See :func:`pri3d.prepare` for the options.
    """
    recordings = [Path(each) for each in options.recordings]
    out = Path(options.out)
    cameras = None if options.cameras is None else Path(options.cameras)
    open_cached.cache_clear()  # recordings may have changed since an earlier call
    digest = None if cameras is None else hashlib.sha256(_read(cameras)).hexdigest()[:16]
    settings = StoreSettings(
        options.size,
        options.frame_step,
        options.max_depth,
        options.overlap,
        options.min_overlap,
        options.distance,
        options.voxel,
        options.pairs,
        options.surface,
        digest,
        options.split,
        str(parse_correction(options.correct)),
        options.min_confidence,
        options.match,
        options.select,
    )
    parse_size(settings.size)
    if not recordings:
        raise ConfigError("prepare: no recording given.")
    if options.cluster is not None:
        check_cluster(options.cluster, options.processes)
    old = _claim(out, settings)
    jobs, class_names = _jobs([absolute(r) for r in recordings], options.reader, cameras, out, settings)
    if old is not None and old["class_names"] != class_names:
        raise DataError("the recordings' class names differ from those in OUT. Prepare them into another OUT.")
    with ThreadPoolExecutor(_READERS) as pool:
        todo = [job for job, there in zip(jobs, pool.map(_is_finished, jobs), strict=True) if not there]
    if _announce(todo, options.processes, options.cluster, options.dry_run):
        return
    manifest = {
        "state": "unfinished",
        "settings": old["settings"] if old else settings._asdict(),
        "units": _UNITS,
        "class_names": class_names,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "scenes": {},
        "failed": {},
    }
    adds = bool(todo) or old is None  # else the store may lie where nobody can write
    if not adds:
        clear_lock(out)
    with _disk(out), lock_folder(out) if adds else nullcontext():
        for folder in (out, out / "scenes"):
            remove_leftovers(folder)
        if adds:
            write_manifest(out, {**(old or manifest), "state": "unfinished"})
        failed = _run(todo, options.processes, options.cluster)
        if old is not None and len(failed) == len(todo):
            manifest["versions"] = old["versions"]  # nothing new was made
        finish_store(out, manifest, failed)
    print_summary(out, manifest)
    if failed:
        text = f"{len(failed)} of {len(jobs)} scenes failed, the others are in {out}:{list_failures(failed)}"
        raise FailedScenesError(text, failed, len(jobs))


def _claim(out: Path, settings: StoreSettings) -> dict[str, Any] | None:
    """Return the manifest that is already there. Raises ConfigError where ``out`` is something else or differs."""
    if not (out / MANIFEST).is_file():
        if out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
            raise ConfigError(f"{out}: exists and is not a prepared dataset. Choose an empty or new folder.")
        return None
    old = read_manifest(out)
    stated = {**StoreSettings._field_defaults, **old["settings"]}  # an older store states fewer
    refuse_other_settings(out, stated, settings._asdict(), "Choose another OUT or delete it.")
    return old


def _jobs(
    recordings: list[Path], reader: str | None, cameras: Path | None, out: Path, settings: StoreSettings
) -> tuple[list[SceneJob], list[str] | None]:
    """Return all scenes of all recordings, and the class names they share."""
    jobs: dict[str, SceneJob] = {}
    names: list[list[str] | None] = []
    for recording in recordings:
        name = reader or find_reader(recording)  # once, not by every worker
        opened = open_cached(recording, name, cameras, settings.split, settings.correct)
        classes = opened.reader.class_names
        names.append(None if classes is None else list(classes))
        for scene in opened.scenes:
            if not is_id(scene):
                raise DataError(f"{recording}: scene id {scene!r} is not a folder name; use letters, digits, - _ and .")
            if scene in jobs:
                raise DataError(f"scene {scene} is in {jobs[scene].recording} and in {recording}. Rename one folder.")
            jobs[scene] = SceneJob(recording, name, cameras, scene, out, settings)
    if any(other != names[0] for other in names):
        raise DataError("the recordings have different class names. Prepare them into one folder each.")
    return list(jobs.values()), names[0]


def _is_finished(job: SceneJob) -> bool:
    """Whether the store has this scene. Raises ConfigError where its source or cameras are or look other ones."""
    record = read_scene_record(job.out, job.scene)
    if record is None:
        return False
    frames = len(open_scene(job).names)
    for what, there, now in (
        ("comes from", record["source"], str(job.recording.resolve())),
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


def _announce(jobs: list[SceneJob], workers: int, cluster: str | None, dry_run: bool) -> bool:
    """Print what there is to do and what it will take; return whether that was all that was asked."""
    if jobs:
        processes = workers if cluster is not None else min(workers or cores(), len(jobs))
        said = estimate(jobs, worth=0).text(processes) if dry_run else estimate(jobs).text(processes)
        say = Terminal(stderr=True, highlight=False, soft_wrap=True).print
        say(said)
        for line in filter(None, map(name_left_out, dict.fromkeys(job.recording for job in jobs))):
            say(line)
        if jobs[0].settings.surface:
            with ThreadPoolExecutor(_READERS) as pool:
                meshes = pool.map(lambda job: open_scene(job).mesh(), jobs)
                fused = [job.scene for job, mesh in zip(jobs, meshes, strict=True) if mesh is None]
            if len(fused) == len(jobs):
                say("surface: no scene has a mesh; it is fused from the depth images")
            elif fused:
                more = f" and {len(fused) - _NAMED} more" if len(fused) > _NAMED else ""
                say(
                    f"surface: {len(fused)} of {len(jobs)} scenes have no mesh, theirs is fused from the depth images: "
                    f"{', '.join(fused[:_NAMED])}{more}"
                )
    elif dry_run:
        Terminal(stderr=True).print("to prepare: nothing, every scene is prepared")
    return dry_run


def _run(jobs: list[SceneJob], workers: int, cluster: str | None) -> dict[str, str]:
    """Prepare the scenes; return the failed ones and why."""
    failed: dict[str, str] = {}
    processes = max(1, min(workers or cores(), len(jobs)))
    with Progress(console=Terminal(stderr=True), transient=True) as progress:
        overall = progress.add_task("scenes" if cluster is None else f"scenes on {cluster}", total=len(jobs))
        if cluster is not None and jobs:
            done = prepare_on_cluster(jobs, cluster, workers)
        else:
            jobs = [job._replace(threads=(workers or cores()) // processes) for job in jobs]
            bar = progress.add_task("", total=None, visible=processes == 1)

            def report(job: SceneJob) -> Report:
                return lambda step, done, total: progress.update(
                    bar, description=f"{job.scene}: {step}", completed=done, total=total
                )

            done = prepare_here(jobs, processes, report)
        with closing(done):
            for job, reason in done:
                progress.advance(overall)
                if reason is not None:
                    failed[job.scene] = reason
    return failed


def finish_store(out: Path, manifest: dict[str, Any], failed: dict[str, str]) -> None:
    """Write the pairs of all finished scenes and the manifest, which gets their records and the failed ones."""
    scenes = finished_scenes(out)
    with ThreadPoolExecutor(_READERS) as pool:
        if manifest["settings"]["pairs"]:
            # Without the column of the scene's name: a hundred thousand scenes have gigabytes of it.
            unnamed = np.zeros(0, "<U1")
            stores = (SceneStore(scene_folder(out, scene)) for scene in scenes)
            tables = list(pool.map(lambda store: store.pairs()._replace(scene=unnamed), stores))
            names = np.repeat(np.array(scenes, dtype=str), [len(table.i) for table in tables])
            write_pairs(out, PairTable.concatenate(tables)._replace(scene=names))
        records = pool.map(lambda scene: read_scene_record(out, scene), scenes)
        manifest["scenes"] = dict(zip(scenes, records, strict=True))
    # One that failed here may be there all the same, made by a run at the same time.
    manifest["failed"] = {scene: why for scene, why in sorted(failed.items()) if scene not in manifest["scenes"]}
    manifest["state"] = "finished" if scenes else "failed"
    write_manifest(out, manifest)


def print_summary(out: Path, manifest: dict[str, Any]) -> None:
    """Print one line a scene, of ``SHOWN`` at most, and totals."""
    columns = ("frames", "rejected", "pairs", "voxels", "seconds", "bytes")
    counts = (Column(name, justify="right", no_wrap=True) for name in (*columns[:-1], "MB"))
    table = Table(Column("scene", overflow="fold"), *counts, title=str(out))
    scenes, failed = manifest["scenes"], manifest["failed"]
    for scene, record in list(scenes.items())[:SHOWN]:
        table.add_row(scene, *_cells(record))
    if len(scenes) > SHOWN:
        table.add_row(f"... and {len(scenes) - SHOWN:,} more")
    for scene in list(failed)[:SHOWN]:
        table.add_row(scene, Text("failed", "red"))
    if len(failed) > SHOWN:
        table.add_row(f"... and {len(failed) - SHOWN:,} more", Text("failed", "red"))
    if len(scenes) > 1:
        totals = {column: sum(record[column] for record in scenes.values()) for column in columns}
        table.add_row(f"all {len(scenes):,}" if len(scenes) > SHOWN else "all", *_cells(totals), style="bold")
    console = Terminal(stderr=True, soft_wrap=True, highlight=False)
    console.print(table, soft_wrap=False)  # long names are folded: it fits the terminal
    for line in _remarks(scenes)[:SHOWN]:
        console.print(line)


def _remarks(scenes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines on what the counts do not say: why most frames of a scene are gone, pairs that show one view twice."""
    lines = []
    taken: dict[str, list[int]] = {}  # rule -> frames that were looked at, frames of the scenes
    for record in scenes.values():
        if "frame_rule" not in record:  # an older store
            continue
        number, total = record["frames"] + record["rejected"], record["source_frames"]
        if number < total:
            known = taken.setdefault(record["frame_rule"], [0, 0])
            taken[record["frame_rule"]] = [known[0] + number, known[1] + total]
    assumed: dict[str, list[str]] = {}
    for scene, record in scenes.items():
        if record.get("assumed"):
            assumed.setdefault(record["assumed"], []).append(scene)
    lines += [
        f"{found[0]}{f' and {len(found) - 1:,} more scenes' * (len(found) > 1)}: {what}"
        for what, found in assumed.items()
    ]
    lines += [f"{n:,} of {total:,} frames were taken ({rule})." for rule, (n, total) in taken.items()]
    still, pairs = (sum(record.get(name, 0) for record in scenes.values()) for name in ("still_pairs", "pairs"))
    if still:
        lines.append(
            f"{still:,} of {pairs:,} pairs have no baseline: the camera stood still between their frames. They show "
            f"the same view twice and do not help training; --select motion skips such frames."
        )
    lines += [
        f"{scene}: {', '.join(record['doubts'])}: poses, cameras or depth are likely wrong. Run pri3d check "
        f"{record['source']}"
        for scene, record in scenes.items()
        if record.get("doubts")
    ]
    # Scenes of which half is lost come first: the lines that are printed are limited.
    lossy = [(scene, record) for scene, record in scenes.items() if record.get("first_rejected")]
    for scene, record in sorted(lossy, key=lambda item: item[1]["rejected"] < item[1]["frames"]):
        rejected, frames = record["rejected"], record["frames"]
        lines.append(f"{scene}: {rejected:,} of {rejected + frames:,} frames rejected: {record['first_rejected']}")
    return lines


def list_failures(failed: dict[str, str]) -> str:
    """The reasons as indented lines, of ``SHOWN`` scenes at most."""
    lines = [f"\n  {scene}: {why}" for scene, why in sorted(failed.items())]
    more = f"\n  and {len(lines) - SHOWN:,} more, all in {MANIFEST}" * (len(lines) > SHOWN)
    return "".join(lines[:SHOWN]) + more


def _cells(record: dict[str, Any]) -> list[str]:
    counts = [f"{record[name]:,.0f}" for name in ("frames", "rejected", "pairs", "voxels")]
    return [*counts, f"{record['seconds']:,.1f}", f"{record['bytes'] / 1e6:,.1f}"]


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

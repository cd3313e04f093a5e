"""Preparing many scenes: what a scene costs, how it grows with processes, and what a hundred thousand cost in books.

    python -m benchmarks.scale
    python -m benchmarks.scale --scenes 40 --books 20000

A made-up ScanNet: a few rooms are rendered and written as .sens files of 640 x 480, of whose frames every 25th is
prepared, 12 a scene; the scenes are hard links to them under official names. The files are in the system's cache. All
are prepared with one and with two processes. Then the books alone: a recording of so many scenes whose store is whole
(every scene a folder, its record and pairs), and how long a run takes to find that out, and to write pairs.npz and the
manifest. About 1 GB below --folder, removed at the end.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pri3d.api.prepare import prepare
from pri3d.preparation.pipeline import SceneJob, StoreSettings, open_cached
from pri3d.preparation.prepare import finish_store
from pri3d.recordings.scannet import official_split
from pri3d.store import PairTable, read_manifest
from pri3d.types import Frame
from pri3d.worlds.render import render_room
from pri3d.worlds.room import build_room

STEP, ROOMS = 25, 3
SIZE = (640, 480)
PAIRS = 500  # a scene of the books; ScanNet's have about that many
_LINKS = 20_000  # to one file; file systems allow some ten thousand


def write_sens(path: Path, frames: list[Frame]) -> None:
    """A .sens file in which every frame stands ``STEP`` times in a row."""
    camera = frames[0].color_camera
    k = np.eye(4, dtype="<f4")
    k[0, 0], k[1, 1], k[0, 2], k[1, 2] = camera.fx, camera.fy, camera.cx - 0.5, camera.cy - 0.5
    with path.open("wb") as file:
        file.write(struct.pack("<IQ", 4, 4) + b"made" + (k.tobytes() + np.eye(4, dtype="<f4").tobytes()) * 2)
        file.write(struct.pack("<2i4IfQ", 2, 1, *camera[:2], *camera[:2], 1000.0, STEP * len(frames)))
        for frame in frames:
            buffer = io.BytesIO()
            Image.fromarray(frame.color).save(buffer, "JPEG", quality=90)
            depth = zlib.compress(np.rint(frame.depth * 1000).astype("<u2").tobytes())
            pose = np.asarray(frame.world_from_camera, "<f4").tobytes()
            head = pose + struct.pack("<4Q", 0, 0, len(buffer.getvalue()), len(depth))
            file.write((head + buffer.getvalue() + depth) * STEP)
        file.write(struct.pack("<Q", 0))


def link_scenes(root: Path, names: list[str], files: list[Path]) -> None:
    """A folder a scene, its .sens a hard link to one of the files."""
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        os.link(files[k % len(files)], root / name / f"{name}.sens")


def run_verb(recording: Path, out: Path, workers: int) -> float:
    """Seconds of ``pri3d prepare`` from start to end."""
    words = ["prepare", recording, out, "--frame-step", STEP, "--processes", workers]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pri3d", *map(str, words)],
        check=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return time.perf_counter() - start


def cpu_seconds() -> float:
    """Seconds that processes started here, and ended, have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepare_scenes(folder: Path, scenes: int, kept: int) -> list[tuple[str, str]]:
    """Name and value of the figures of preparing ``scenes`` scenes of ``kept`` frames."""
    folder.mkdir(exist_ok=True)
    files = []
    for room in range(ROOMS):
        files.append(folder / f"{room}.sens")
        write_sens(files[-1], render_room(build_room(0, room), kept, *SIZE))
    names = [name for name, part in official_split().items() if part == "train"][:scenes]
    link_scenes(folder / "scans", names, files)
    seconds, cpu = {}, {}
    for workers in (1, 2):
        out = folder / f"out-{workers}"
        before = cpu_seconds()
        seconds[workers] = run_verb(folder / "scans", out, workers)
        cpu[workers] = cpu_seconds() - before
        records = read_manifest(out)["scenes"].values()
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        count = sum(1 for path in out.rglob("*") if path.is_file())
        shutil.rmtree(out)
    total = {key: sum(record[key] for record in records) for key in ("frames", "pairs")}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return [
        ("scenes, frames, pairs", f"{len(records)}, {total['frames']:,}, {total['pairs']:,}"),
        ("minutes with 1 process", f"{seconds[1] / 60:.2f}"),
        ("minutes with 2 processes", f"{seconds[2] / 60:.2f}"),
        ("times faster with 2", f"{seconds[1] / seconds[2]:.2f}"),
        ("CPU seconds a scene with 1, 2 processes", f"{cpu[1] / len(records):.2f}, {cpu[2] / len(records):.2f}"),
        ("read, MB a scene's file", f"{files[0].stat().st_size / 1e6:.0f}"),
        ("written, MB", f"{size / 1e6:.0f}"),
        ("files", f"{count:,}"),
        ("most memory of a process, MB", f"{peak:.0f}"),
        ("load of the machine at the end", f"{os.getloadavg()[0]:.1f}"),
    ]


def write_books(folder: Path, scenes: int, source: Path) -> tuple[Path, Path]:
    """A recording of so many scenes, and a store that says it has them all; returns both."""
    recording, out, given = folder / "many", folder / "books", folder / "given"
    given.mkdir()
    copies = [shutil.copy(source, given / f"{k}.sens") for k in range(-(-scenes // _LINKS))]
    names = [f"scene{k:06d}_00" for k in range(scenes)]
    link_scenes(recording, names, [Path(path) for path in copies])
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 66, (2, PAIRS)).astype(np.int32)
    table = PairTable(np.full(PAIRS, names[0]), *numbers, *rng.random((3, PAIRS), dtype=np.float32))
    pairs = [given / f"{k}.npz" for k in range(len(copies))]
    for path in pairs:
        np.savez_compressed(path, **table._asdict())
    record: dict[str, Any] = {
        "source": str(recording.resolve()),
        "cameras": {},
        "reader": "scannet",
        "split": None,
        "match": "point",
        "scale": None,
        "source_frames": 1,
        "frame_step": STEP,
        **dict.fromkeys(("frames", "rejected", "pairs", "voxels", "width", "height", "bytes"), 1),
        "seconds": 1.0,
        "hash": "0" * 64,
    }
    text = json.dumps(record, indent=1)
    for k, name in enumerate(names):
        scene = out / "scenes" / name
        scene.mkdir(parents=True)
        (scene / "scene.json").write_text(text)
        os.link(pairs[k % len(pairs)], scene / "pairs.npz")
    return recording, out


def timed(work: Callable[[], Any]) -> str:
    """Seconds of it, as text."""
    start = time.perf_counter()
    work()
    return f"{time.perf_counter() - start:.1f}"


def keep_books(folder: Path, scenes: int) -> list[tuple[str, str]]:
    """Name and value of the figures that only grow with the number of scenes."""
    folder.mkdir(exist_ok=True)
    source = folder / "one.sens"
    frame = render_room(build_room(0, 0), 1, 32, 24)[0]
    write_sens(source, [frame])
    with source.open("r+b") as file:  # a header that says one frame
        file.seek(struct.calcsize("<IQ") + 4 + struct.calcsize("<64f2i4If"))
        file.write(struct.pack("<Q", 1))
    recording, out = write_books(folder, scenes, source)
    settings = StoreSettings("320x240", STEP, 6.0, "paper", 0.05, 0.02, 0.02, True, True, None)
    manifest = {"state": "unfinished", "settings": settings._asdict(), "class_names": None}
    rows = [
        ("listing the scenes", timed(lambda: open_cached(recording, None, None))),
        ("finishing: pairs.npz and manifest", timed(lambda: finish_store(out, dict(manifest), {}))),
        (
            "finding every scene finished (listing, records, headers)",
            timed(lambda: prepare([recording], out, frame_step=STEP, dry_run=True)),
        ),
        (
            "finding none finished, and the estimate",
            timed(lambda: prepare([recording], folder / "none", frame_step=STEP, dry_run=True)),
        ),
    ]
    job = SceneJob(recording, "scannet", None, "scene000000_00", out, settings)
    sizes = [(out / name).stat().st_size / 1e6 for name in ("pairs.npz", "dataset.json")]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return [
        *((f"{name}, s", seconds) for name, seconds in rows),
        ("pairs.npz, dataset.json, MB", f"{sizes[0]:.0f}, {sizes[1]:.0f}"),
        ("most memory, MB", f"{peak:.0f}"),
        ("a task as it is sent, bytes", f"{len(pickle.dumps(job))}"),
        ("load of the machine at the end", f"{os.getloadavg()[0]:.1f}"),
    ]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--kept", type=int, default=12, help="frames a scene that are prepared; ScanNet has 66")
    parser.add_argument("--books", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder unless stated")
    options = parser.parse_args()
    for count, title, work in (
        (options.scenes, "scenes prepared", partial(prepare_scenes, kept=options.kept)),
        (options.books, "scenes in the books", keep_books),
    ):
        if count:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                print(f"\n{count:,} {title}")
                for name, value in work(Path(folder), count):
                    print(f"  {name:58} {value:>22}", flush=True)


if __name__ == "__main__":
    main()

"""Rooms on disk: the layout of the ``folder`` reader (docs/own-data.md), one scene a room, and rooms.json."""

from __future__ import annotations

import shutil
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import trimesh
import yaml
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from pri3d.api.rooms import RoomsOptions
from pri3d.files.atomic import put_folder, remove_leftovers, temporary
from pri3d.files.stamp import stamp
from pri3d.geometry.resize import parse_size
from pri3d.machine import cores
from pri3d.processes import run_in_processes
from pri3d.types import Camera
from pri3d.worlds.render import render_room
from pri3d.worlds.room import CLASS_NAMES, build_room

_VERSION = 1  # of the pictures: raised when the same seed gives other rooms


def rooms(options: RoomsOptions) -> None:
    """Write procedural rooms with exact poses and labels: a recording that needs no download.

    See :func:`pri3d.rooms` for the options.
    """
    out = Path(options.out)
    width, height = parse_size(options.size)
    settings = {
        "format": "pri3d rooms",
        "version": _VERSION,
        "seed": options.seed,
        "frames": options.frames,
        "width": width,
        "height": height,
        "class_names": list(CLASS_NAMES) if options.labels else None,
    }
    stamp(out / "rooms.json", settings, "Choose another folder, or remove this one.")
    remove_leftovers(out)
    missing = [k for k in range(options.first, options.first + options.rooms) if not (out / room_id(k)).is_dir()]
    work = partial(_write_room, out, options.seed, options.frames, width, height, options.labels)
    workers = min(options.processes or cores(), len(missing))
    if workers <= 1:
        for index in track(missing, "rooms"):
            work(index)
        return
    with closing(run_in_processes(work, missing, workers)) as outcomes:
        for outcome in track(outcomes, "rooms", total=len(missing)):
            outcome.result()


def room_id(index: int) -> str:
    """Return the folder name, and scene id, of room ``index``."""
    return f"room-{index:04d}"


def _write_room(out: Path, seed: int, frames: int, width: int, height: int, labels: bool, index: int) -> None:
    """Render one room into a temporary folder and rename it, so that a folder with the final name is complete."""
    target = out / room_id(index)
    part = temporary(target)
    shutil.rmtree(part, ignore_errors=True)  # left by a killed process of the same number
    try:
        room = build_room(seed, index)
        pictures = render_room(room, frames, width, height)
        for name in ("color", "depth", "pose", *(("label", "instance") if labels else ())):
            (part / name).mkdir(parents=True)
        for frame in pictures:
            Image.fromarray(frame.color).save(part / "color" / f"{frame.name}.jpg", quality=92, subsampling=0)
            millimetres = np.round(frame.depth * 1000).astype(np.uint16)
            Image.fromarray(millimetres).save(part / "depth" / f"{frame.name}.png")
            np.savetxt(part / "pose" / f"{frame.name}.txt", frame.world_from_camera, fmt="%.9f")
            if labels and frame.label is not None and frame.instance is not None:
                Image.fromarray(frame.label).save(part / "label" / f"{frame.name}.png")
                Image.fromarray(frame.instance).save(part / "instance" / f"{frame.name}.png")
        (part / "cameras.yaml").write_text(_cameras(pictures[0].color_camera))
        if labels:  # named here too, so that a room can be opened alone
            (part / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
        # The first colour of each triangle's material.
        color: NDArray[np.float64] = room.materials.color[room.material, 0] ** (1 / 2.2) * 255
        mesh = trimesh.Trimesh(room.vertices, room.faces, face_colors=color.astype(np.uint8), process=False)
        mesh.export(part / "mesh.ply")
        put_folder(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _cameras(camera: Camera) -> str:
    return yaml.safe_dump({"color": camera._asdict(), "depth": camera._asdict(), "depth_scale": 0.001}, sort_keys=False)

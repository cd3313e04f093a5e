"""A small recording in every built-in layout, all of the same rendered room; a new format adds its writer here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pri3d.types import Frame
from pri3d.worlds.render import render_room
from pri3d.worlds.scene import build_room
from pri3d.worlds.write import rooms

FRAMES, WIDTH, HEIGHT, SEED = 3, 48, 36, 7


class Sample(NamedTuple):
    """A recording and the files of its first scene's first frame."""

    root: Path
    color: Path
    depth: Path
    pose: Path


@cache
def rendered() -> list[Frame]:
    """The frames that every sample holds."""
    return render_room(build_room(SEED, 0), FRAMES, WIDTH, HEIGHT)


def write_rooms(root: Path) -> Sample:
    rooms(root, rooms=2, frames=FRAMES, size=f"{WIDTH}x{HEIGHT}", seed=SEED, workers=1)
    scene = root / "room-0000"
    return Sample(root, scene / "color/000000.jpg", scene / "depth/000000.png", scene / "pose/000000.txt")


def write_folder(root: Path) -> Sample:
    """One room alone is a recording of the folder layout."""
    write_rooms(root)
    scene = root / "room-0000"
    return Sample(scene, scene / "color/000000.jpg", scene / "depth/000000.png", scene / "pose/000000.txt")


def write_sevenscenes(root: Path) -> Sample:
    folder = root / "seq-01"
    folder.mkdir(parents=True)
    camera = rendered()[0].color_camera
    k = ((camera.fx, 0, camera.cx - 0.5), (0, camera.fy, camera.cy - 0.5), (0, 0, 1))
    np.savetxt(root / "camera-intrinsics.txt", k)
    for frame in rendered():
        stem = folder / f"frame-{frame.name}"
        Image.fromarray(frame.color).save(f"{stem}.color.png")
        millimetres = np.round(frame.depth * 1000).astype(np.uint16)
        Image.fromarray(np.where(millimetres == 0, 65535, millimetres).astype(np.uint16)).save(f"{stem}.depth.png")
        np.savetxt(f"{stem}.pose.txt", frame.world_from_camera)
    first = folder / "frame-000000"
    return Sample(root, *(Path(f"{first}.{part}") for part in ("color.png", "depth.png", "pose.txt")))


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "rooms": write_rooms,
    "folder": write_folder,
    "sevenscenes": write_sevenscenes,
}

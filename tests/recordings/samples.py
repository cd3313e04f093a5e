"""A small recording in every built-in layout, all of the same rendered room; a new format adds its writer here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sample_frames import FRAMES, HEIGHT, SEED, WIDTH, Sample, rendered
from samples_desk import DESK
from samples_outdoor import OUTDOOR
from samples_phone import PHONE
from samples_single import SINGLE
from sens_writer import matrix, parts, write_sens

from pri3d.api.rooms import rooms


def write_rooms(root: Path) -> Sample:
    rooms(root, rooms=2, frames=FRAMES, size=f"{WIDTH}x{HEIGHT}", seed=SEED, processes=1)
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


NYU40 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)


def write_scannet(root: Path, exported: bool = False) -> Sample:
    """The layout of scannet_frames_25k, or that of ScanNet's exporter, which has no labels."""
    scene = root / "scene0191_00"
    for part in ("color", "depth", "pose", *(("intrinsic",) if exported else ("label", "instance"))):
        (scene / part).mkdir(parents=True)
    for k, frame in enumerate(rendered()):
        name = str(k) if exported else f"{100 * k:06d}"
        Image.fromarray(frame.color).save(scene / "color" / f"{name}.jpg", quality=95, subsampling=0)
        Image.fromarray(np.round(frame.depth * 1000).astype(np.uint16)).save(scene / "depth" / f"{name}.png")
        np.savetxt(scene / "pose" / f"{name}.txt", frame.world_from_camera)
        if not exported:
            ids = np.zeros(256, np.uint8)
            ids[:20] = NYU40
            Image.fromarray(ids[frame.label]).save(scene / "label" / f"{name}.png")
            Image.fromarray(frame.instance).save(scene / "instance" / f"{name}.png")
    for camera in ("color", "depth"):
        file = f"intrinsic/intrinsic_{camera}.txt" if exported else f"intrinsics_{camera}.txt"
        np.savetxt(scene / file, matrix(rendered()[0].color_camera), fmt="%.9f")
        if exported:
            np.savetxt(scene / f"intrinsic/extrinsic_{camera}.txt", np.eye(4), fmt="%.6f")
    first = "0" if exported else "000000"
    return Sample(root, *(scene / part / f"{first}{end}" for part, end in _PARTS))


_PARTS = (("color", ".jpg"), ("depth", ".png"), ("pose", ".txt"))


def write_scannet_sens(root: Path) -> Sample:
    """As the download script leaves it. All parts lie in one file."""
    path = root / "scans" / "scene0191_00" / "scene0191_00.sens"
    write_sens(path, [parts(frame) for frame in rendered()], rendered()[0].color_camera)
    return Sample(root, path, path, path)


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "rooms": write_rooms,
    "folder": write_folder,
    "sevenscenes": write_sevenscenes,
    "scannet": write_scannet,
    "scannet-exported": lambda root: write_scannet(root, exported=True),
    "scannet-sens": write_scannet_sens,
    **DESK,
    **PHONE,
    **OUTDOOR,
    **SINGLE,
}

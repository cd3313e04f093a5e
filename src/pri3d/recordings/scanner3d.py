"""3D Scanner App's export of all data (LiDAR scans)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError
from pri3d.geometry.pose import OPENGL_FLIP, check_rigid
from pri3d.recordings._shared.cameras import Cameras, intrinsics, registered, same_camera
from pri3d.recordings._shared.files import MILLIMETRES, Origin, build_frame, read_color, read_depth, read_levels
from pri3d.recordings._shared.scenes import PosedList, SceneReader, entries
from pri3d.recordings._shared.text import frame_json, framed, numbers
from pri3d.types import Frame

_IMAGE = re.compile(r"frame_([0-9]+)\.(jpg|jpeg|png|webp)", re.IGNORECASE)


class Scanner3DReader(SceneReader):
    """SCAN with frame_00000.jpg, frame_00000.json, depth_00000.png, and conf_00000.png where there is one.

    The JSON holds ``intrinsics``, the 9 numbers of a matrix in rows, for the image, and ``cameraPoseARFrame``, the 16
    numbers of camera to world in rows, in metres, with OpenGL's camera axes; y of the world points up; ``time`` are
    seconds. Depth is in
    millimetres, 16 bits, of the same view as the image, which is larger; confidence is 0, 1 or 2. The app writes JSON
    and depth of more frames than it writes images of: those with an image are read. Its meshes are not used.
    Known from the files that the app writes, as published readers of them describe them; tested on written files.
    """

    parts = (("frame_*.json",), ("frame_*.jpg",), ("depth_*.png",))
    signs = ("info.json",)
    looks_for: ClassVar[str] = "frame_00000.jpg, frame_00000.json and depth_00000.png (3D Scanner App, all data)"
    frame_step = 2  # two images a second

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether a folder holds frames of the app."""
        return all(next(path.glob(pattern), None) is not None for pattern in ("frame_*.json", "depth_*.png"))

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Open a scan. Raises DataError where it has no image."""
        found = [(match[1], path) for path in entries(source) if (match := _IMAGE.fullmatch(path.name))]
        if not found:
            raise DataError(f"{source}: has no frame_00000.jpg. Export the scan with all data.")
        digits = max(len(number) for number, _ in found)
        named = {number.zfill(digits): (number, path) for number, path in found}
        return PosedList(
            list(named),
            lambda name: _load(name, *named[name], given),
            lambda name: _pose(_json(*named[name])),
            given,
            time=lambda name: _time(_json(*named[name])),
        )


def _time(path: Path) -> float | None:
    """Seconds at which a frame was taken, None where its JSON does not say."""
    stated = frame_json(path).get("time")
    return float(stated) if isinstance(stated, (int, float)) else None


def _json(number: str, image: Path) -> Path:
    return image.with_name(f"frame_{number}.json")


def _load(name: str, number: str, image: Path, given: Cameras | None) -> Frame:
    path, depth_path = _json(number, image), image.with_name(f"depth_{number}.png")
    pose = _pose(path)
    color = read_color(image)
    depth = read_depth(depth_path, MILLIMETRES if given is None else given.depth_scale)
    origin = Origin(str(image), str(depth_path), str(path))
    cameras = given
    if cameras is None:
        values = framed(lambda: numbers(frame_json(path).get("intrinsics"), (9,), f"{path}: its intrinsics"))
        cameras = registered(
            same_camera(intrinsics(values[[0, 4, 2, 5]], str(path))), color.shape, depth.shape, origin.depth
        )
    return build_frame(
        name,
        color,
        depth,
        pose,
        cameras,
        origin,
        confidence=read_levels(image.with_name(f"conf_{number}.png")),
    )


def _pose(path: Path) -> NDArray[np.float64]:
    """Camera to world (4, 4), OpenCV axes."""
    stated = frame_json(path).get("cameraPoseARFrame")
    pose = framed(lambda: numbers(stated, (4, 4), f"{path}: cameraPoseARFrame"))
    return check_rigid(pose, str(path)) @ OPENGL_FLIP

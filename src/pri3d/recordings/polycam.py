"""Polycam's raw data (LiDAR and room mode, exported in developer mode)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError
from pri3d.geometry.pose import OPENGL_FLIP, check_rigid
from pri3d.recordings._shared.cameras import Cameras, intrinsics, registered, same_camera
from pri3d.recordings._shared.files import COLOR, MILLIMETRES, Origin, build_frame, read_bytes, read_color, read_depth
from pri3d.recordings._shared.scenes import PosedList, SceneReader, entries
from pri3d.recordings._shared.text import frame_json, framed, numbers
from pri3d.types import Frame

_POSE = tuple(f"t_{row}{column}" for row in range(3) for column in range(4))


class PolycamReader(SceneReader):
    """CAPTURE/keyframes with images, cameras and depth, and confidence, named by time in microseconds.

        keyframes/images/TIME.jpg, keyframes/cameras/TIME.json     as ARKit gave them
        keyframes/corrected_images, keyframes/corrected_cameras    undistorted, poses optimised; taken where both exist
        keyframes/depth/TIME.png                                   16 bits, millimetres, smaller than the images
        keyframes/confidence/TIME.png                              0, 127 or 255: becomes percent; may be missing

    A camera file holds fx, fy, cx, cy, width, height and t_00 to t_23, the rows of camera to world in metres, with
    OpenGL's camera axes; y of the world points up. Depth is of the same view as the image. raw.glb is in another world
    frame and is not used. Known from Polycam's description of its raw data; tested on written files.
    """

    parts = (("keyframes/images",), ("keyframes/cameras", "keyframes/corrected_cameras"), ("keyframes/depth",))
    looks_for: ClassVar[str] = "keyframes/images, cameras and depth, or captures that hold them (Polycam raw data)"

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether a folder holds key frames."""
        keyframes = path / "keyframes"
        return any((keyframes / f"{kind}cameras").is_dir() for kind in ("", "corrected_"))

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Open a capture. Raises DataError where it has no frame or no depth."""
        keyframes = source / "keyframes"
        if not (keyframes / "depth").is_dir():
            raise DataError(f"{keyframes}: has no folder depth. Polycam exports it of captures in LiDAR or room mode.")
        corrected = all((keyframes / f"corrected_{part}").is_dir() for part in ("images", "cameras"))
        kind = "corrected_" if corrected else ""
        images = [path for path in entries(keyframes / f"{kind}images") if path.suffix.lower() in COLOR]
        if not images:
            raise DataError(f"{keyframes / f'{kind}images'}: holds no image.")
        digits = max(len(path.stem) for path in images)
        named = {path.stem.zfill(digits): path for path in images}
        cameras = keyframes / f"{kind}cameras"
        return PosedList(
            list(named),
            lambda name: _load(name, named[name], cameras, given),
            lambda name: _pose(cameras / f"{named[name].stem}.json"),
            given,
            time=lambda name: int(name) / 1e6 if name.isdecimal() else None,
        )


def _load(name: str, image: Path, folder: Path, given: Cameras | None) -> Frame:
    path = folder / f"{image.stem}.json"
    pose = _pose(path)
    color = read_color(image)
    files = [folder.parent / part / f"{image.stem}.png" for part in ("depth", "confidence")]
    depth = read_depth(files[0], MILLIMETRES if given is None else given.depth_scale)
    origin = Origin(str(image), str(files[0]), str(path))
    confidence = read_bytes(files[1]) if files[1].is_file() else None
    cameras = given
    if cameras is None:
        stated = frame_json(path)
        values = [stated.get(key) for key in ("fx", "fy", "cx", "cy", "width", "height")]
        cameras = registered(same_camera(intrinsics(values, str(path))), color.shape, depth.shape, origin.depth)
    return build_frame(
        name,
        color,
        depth,
        pose,
        cameras,
        origin,
        confidence=None if confidence is None else _percent(confidence),
    )


def _percent(confidence: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """0..255 -> 0..100, so that 127 becomes 50."""
    return ((confidence.astype(np.uint16) * 100 + 127) // 255).astype(np.uint8)


def _pose(path: Path) -> NDArray[np.float64]:
    """Camera to world (4, 4), OpenCV axes."""
    stated = frame_json(path)
    pose = np.eye(4)
    pose[:3] = framed(lambda: numbers([stated.get(key) for key in _POSE], (3, 4), f"{path}: its pose"))
    return check_rigid(pose, str(path)) @ OPENGL_FLIP

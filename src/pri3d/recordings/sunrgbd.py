"""SUN RGB-D (Song et al. 2015): single colour and depth images of four kinds of sensor, which have no poses."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from pri3d.errors import FrameError
from pri3d.recordings import Reader
from pri3d.recordings._shared.cameras import from_matrix, same_camera
from pri3d.recordings._shared.files import Origin, build_frame, in_metres, read_color, read_image, read_matrix
from pri3d.recordings._shared.scenes import FrameList, LazyScene, sort_scenes
from pri3d.recordings._shared.text import clean_id
from pri3d.types import Frame

_SENSORS = ("kv1", "kv2", "realsense", "xtion")
_IMAGES = (".jpg", ".jpeg", ".png")
_DEPTH = ("depth", "depth_bfx")  # as measured, else with its holes filled
_LEVELS = 5  # from SUNRGBD down to a frame: SENSOR/SUBSET/PLACE/RUN/FRAME
_TRIED = 200  # folders that detection looks into


class SunRgbdReader(Reader):
    """SENSOR/SUBSET/.../FRAME/image/*.jpg, depth/*.png (else depth_bfx/*.png) and intrinsics.txt.

    SENSOR is kv1, kv2, realsense or xtion; the recording is the folder of the sensors, one of them, or any folder
    below. Every FRAME folder holds one frame, and all frames of a SUBSET are one scene.

    Depth is registered to colour, 16-bit, in millimetres whose bits are rotated to the left by three. intrinsics.txt
    (3 x 3, another for each frame) counts pixel centres at integers, so cx and cy get 0.5 more on our grid; a
    cameras.yaml of the recording, or one that is given, stands for all of them. The files in extrinsics only tell
    where down is: there are no poses. Labels are not read. The official split is not part of these folders; kv1 holds
    the images of NYUv2, its test images too.
    """

    looks_for: ClassVar[str] = "folders with image, depth or depth_bfx, and intrinsics.txt, one a frame (SUN RGB-D)"
    takes_cameras: ClassVar[bool] = True

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder is a frame or one of the first few hundred folders below it is."""
        return any(frame for _, frame in islice(_walk(path), _TRIED))

    def scenes(self) -> Sequence[LazyScene]:
        """Return one scene for each subset, sorted by id. Raises DataError where there is no frame."""
        subsets: dict[str, dict[str, Path]] = {}
        for folder in (folder for folder, frame in _walk(self.path) if frame):
            subset, name = _place(self.path, folder)
            subsets.setdefault(subset, {})[name] = folder
        scenes = [
            LazyScene(name, lambda frames=frames: self._open(frames), posed=False)  # type: ignore[misc]
            for name, frames in subsets.items()
        ]
        return sort_scenes(self.path, scenes, self.looks_for)

    def _open(self, frames: dict[str, Path]) -> FrameList:
        return FrameList(list(frames), lambda name: self._load(name, frames[name]))

    def _load(self, name: str, folder: Path) -> Frame:
        statement = folder / "intrinsics.txt"
        cameras = self.cameras or same_camera(from_matrix(read_matrix(statement, (3, 3)), str(statement)))
        color, depth = _only(folder, ("image",)), _only(folder, _DEPTH)
        rotated = read_image(depth)
        if rotated.dtype != np.uint16:
            raise FrameError(f"{depth}: depth must be a 16-bit image; this one has 8 bits.")
        raw = ((rotated >> 3) | (rotated << 13)).astype(np.uint16)
        origin = Origin(str(color), str(depth), str(folder))
        return build_frame(name, read_color(color), in_metres(raw, cameras.depth_scale), np.eye(4), cameras, origin)


def _walk(path: Path) -> Iterator[tuple[Path, bool]]:
    """The folder and those below it, down to frames, and whether each is one."""
    for place, folders, files in os.walk(path, followlinks=True):
        folder = Path(place)
        # A frame has one image; SUN3D's folders of videos have the same parts with many.
        parts = "intrinsics.txt" in files and "image" in folders and any(name in folders for name in _DEPTH)
        frame = parts and len(list(islice(_images(folder / "image"), 2))) == 1
        yield folder, frame
        ends = frame or len(folder.relative_to(path).parts) == _LEVELS
        folders[:] = [] if ends else sorted(name for name in folders if not name.startswith("."))


def _images(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.suffix.lower() in _IMAGES and not p.name.startswith("."))


def _only(folder: Path, parts: Sequence[str]) -> Path:
    """The image in the first of the parts that has one."""
    found = [image for part in parts if (folder / part).is_dir() for image in sorted(_images(folder / part))]
    if not found:
        raise FrameError(f"{folder / parts[0]}: holds no image.")
    return found[0]


def _place(recording: Path, frame: Path) -> tuple[str, str]:
    """Id of the subset and name of the frame in it, told by the sensor's name in the path where there is one."""
    parts = frame.resolve().parts
    sensors = [k for k, part in enumerate(parts[:-1]) if part in _SENSORS]
    start = sensors[-1] if sensors else len(recording.resolve().parts) - 1
    end = min(start + 2, len(parts) - 1) if sensors else start + 1
    subset = "-".join(parts[start:end]) or frame.name
    return clean_id(subset), clean_id("-".join(parts[end:]) or frame.name)

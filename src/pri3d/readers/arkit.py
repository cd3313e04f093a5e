"""What recordings of phones with ARKit share: scenes in folders, two cameras of one view, levels of confidence.

ARKit gives poses of the camera in a world whose y points up, in metres, with OpenGL's camera axes. Its intrinsics
count pixels from the corner of the image, which is our grid. Depth is that of the colour camera at a lower resolution,
with a confidence of 0 (low), 1 or 2 (high) a pixel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid
from pri3d.readers.cameras import Cameras, Intrinsics, cameras_for
from pri3d.readers.files import clean_id, read_image, sort_scenes
from pri3d.readers.scenes import Frames, LazyScene, Origin
from pri3d.readers.tables import numbers, read_json

MILLIMETRES = 0.001  #: metres per unit of depth
_LARGEST = 1e6  # pixels, or metres from the origin; beyond it numbers are damaged


class PhoneReader(ABC):
    """A recording of scenes that lie in it, or that is one scene."""

    looks_for: ClassVar[str]
    class_names: Sequence[str] | None = None

    def __init__(self, path: Path, cameras: Path | None = None) -> None:
        """Raises ConfigError where cameras.yaml cannot be understood, DataError where the given one is missing."""
        self._path = path
        stated = cameras_for(cameras, path if path.is_dir() else path.parent)
        self._given = stated if cameras is not None else None

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the recording is a scene or holds some."""
        return next(cls.find(path), None) is not None

    @classmethod
    def find(cls, path: Path) -> Iterator[Path]:
        """The recording itself where it is a scene, else the scenes directly in it."""
        if cls.is_scene(path):
            yield path
        else:
            yield from filter(cls.is_scene, entries(path))

    @staticmethod
    @abstractmethod
    def is_scene(path: Path) -> bool:
        """Whether a file or folder has the layout of a scene."""

    @abstractmethod
    def open(self, source: Path, given: Cameras | None) -> Frames:
        """Open a scene; ``given`` are cameras that win over what it says. Raises DataError where it is damaged."""

    def scenes(self) -> Sequence[LazyScene]:
        """Return the scenes, sorted by id; none is opened yet. Raises DataError where there is none."""
        return sort_scenes(self._path, [self.scene(source) for source in self.find(self._path)], self.looks_for)

    def scene(self, source: Path) -> LazyScene:
        """The scene of a source, opened when it is first used."""
        name = source.resolve().name if source.is_dir() else source.stem
        return LazyScene(clean_id(name), lambda: self.open(source, self.stated(source)))

    def stated(self, source: Path) -> Cameras | None:
        """Cameras of the command line, else of a cameras.yaml of the scene or of the recording, else None."""
        return self._given or cameras_for(None, source, self._path)


def entries(folder: Path) -> list[Path]:
    """Files and folders in ``folder``, sorted, but the hidden ones."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def one_view(color: Intrinsics, image: NDArray[np.uint8], depth: NDArray[np.float32], origin: Origin) -> Cameras:
    """Cameras of an image (H, W, 3) and depth (h, w) of the same view, of which the image's is known.

    Raises FrameError, with the names of ``origin``, where the image cannot be its, or depth has another shape.
    """
    (height, width), (rows, columns) = image.shape[:2], depth.shape
    camera = color.of_image(width, height, origin.color)
    if not 0.98 < (columns * height) / (rows * width) < 1.02:
        raise FrameError(f"{origin.depth}: is {columns}x{rows}, no smaller picture of an image of {width}x{height}.")
    small = camera.resized(columns, rows)
    return Cameras(color, Intrinsics(small.fx, small.fy, small.cx, small.cy), np.eye(4))


def intrinsics(values: Any, what: str) -> Intrinsics:
    """Camera of fx, fy, cx, cy in pixels from the image's corner, and of its width and height where they follow.

    Raises FrameError, which calls the values ``what``, where they are not as many positive numbers.
    """
    found = framed(lambda: numbers(values, (len(values),), what))
    if not all(0 < number < _LARGEST for number in found):  # nan compares false
        raise FrameError(f"{what}: its camera is {', '.join(f'{number:g}' for number in found)} pixels; it is damaged.")
    fx, fy, cx, cy, *size = found.tolist()
    width, height = (int(number) for number in size) if size else (None, None)
    return Intrinsics(fx, fy, cx, cy, width, height)


def checked(pose: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    """Return a pose (4, 4) with its rotation made exact. Raises FrameError where it is not rigid or absurdly far."""
    if np.isfinite(pose).all() and np.abs(pose).max() > _LARGEST:
        raise FrameError(f"{what}: the pose holds {np.abs(pose).max():g}; it is damaged.")
    return check_rigid(pose, what)


def frame_json(path: Path) -> dict[str, Any]:
    """Read the JSON object of one frame. Raises FrameError for a missing or damaged file."""
    result: dict[str, Any] = framed(lambda: read_json(path))
    return result


def framed(read: Callable[[], Any]) -> Any:
    """What ``read`` returns; its DataError concerns one frame, so that it becomes a FrameError."""
    try:
        return read()
    except DataError as error:
        raise FrameError(str(error)) from error


def percent(levels: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
    """Confidence levels 0, 1, 2 (h, w) -> 0, 50, 100 percent. Raises FrameError for other levels."""
    if levels.max(initial=0) > 2:
        raise FrameError(f"{what}: holds the confidence {levels.max()}, expected 0, 1 or 2.")
    return (levels * 50).astype(np.uint8)


def read_levels(path: Path) -> NDArray[np.uint8] | None:
    """Read an image of confidence levels 0, 1, 2 as percent (h, w); None where there is no such file.

    Raises FrameError where it is damaged or holds something else.
    """
    return percent(read_bytes(path), str(path)) if path.is_file() else None


def read_bytes(path: Path) -> NDArray[np.uint8]:
    """Read an image of one byte a pixel (h, w). Raises FrameError for a missing or damaged file and for 16 bits."""
    image = read_image(path, ids=True)
    if image.dtype != np.uint8:
        raise FrameError(f"{path}: has 16 bits a pixel, expected 8.")
    return image.astype(np.uint8, copy=False)

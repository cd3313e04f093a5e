"""What ``cameras.yaml`` states about a recording's two cameras; docs/own-data.md shows one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from pri3d.errors import ConfigError, DataError, FrameError, IntrinsicsError
from pri3d.geometry.pose import check_rigid, invert_array
from pri3d.geometry.warping import Lens
from pri3d.notation import parse_yaml
from pri3d.recordings._shared.text import framed, numbers
from pri3d.types import Camera

_TOP = ("color", "depth", "color_from_depth", "pose_of", "depth_scale")
_INTRINSICS = ("fx", "fy", "cx", "cy")
_SIZE = ("width", "height")
_LENSES = {"distortion": (4, 5, 8), "fisheye": (4,)}  # key -> how many coefficients it may have
_LARGEST = 1e6  # pixels or metres; larger numbers are slips, nan compares false


class Intrinsics(NamedTuple):
    """A pinhole camera whose image size may be left to the images."""

    fx: float  #: pixels
    fy: float  #: pixels
    cx: float  #: pixels, of the pixel-centre-at-+0.5 grid
    cy: float  #: pixels
    width: int | None = None  #: pixels
    height: int | None = None  #: pixels
    lens: Lens | None = None  #: distortion of the images, to be undone

    def of_image(self, width: int, height: int, what: str) -> Camera:
        """Return the camera of an image of this size, or raise FrameError where the image cannot be its."""
        stated = (self.width or width, self.height or height)
        if stated != (width, height):
            raise IntrinsicsError(
                f"{what}: is {width}x{height}, but the camera is stated as {stated[0]}x{stated[1]}.",
                self[:4],
                (width, height),
            )
        if not (0.25 < self.cx / width < 0.75 and 0.25 < self.cy / height < 0.75):
            raise IntrinsicsError(
                f"{what}: is {width}x{height}, but the camera's centre is ({self.cx:g}, {self.cy:g}); the intrinsics "
                "belong to another size.",
                self[:4],
                (width, height),
            )
        return Camera(width, height, self.fx, self.fy, self.cx, self.cy)


class Cameras(NamedTuple):
    """Both cameras of a recording and what its pose files mean."""

    color: Intrinsics
    depth: Intrinsics
    color_from_depth: NDArray[np.float64]  #: (4, 4) depth-camera points -> colour camera
    pose_of_depth: bool = False  #: the pose files are the depth camera's, not the colour camera's
    depth_scale: float = 0.001  #: metres per unit of the depth images

    def world_from_color(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the colour camera's pose (4, 4) of the pose (4, 4) in a file."""
        return pose @ invert_array(self.color_from_depth) if self.pose_of_depth else pose


def from_matrix(k: NDArray[np.float64], what: str) -> Intrinsics:
    """Return the camera of an intrinsic matrix (3 x 3 or larger) that counts pixel centres at integers.

    Its cx and cy get 0.5 more on our grid. Raises FrameError where it is no such matrix.
    """
    fx, fy, cx, cy = (float(k[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if not all(0 < number < _LARGEST for number in (fx, fy, cx, cy)):
        raise FrameError(f"{what}: is not an intrinsic matrix (fx 0 cx / 0 fy cy / 0 0 1).")
    return Intrinsics(fx, fy, cx + 0.5, cy + 0.5)


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


def same_camera(intrinsics: Intrinsics) -> Cameras:
    """Return the statement of a recording whose depth is registered to its colour."""
    return Cameras(intrinsics, intrinsics, np.eye(4))


def registered(cameras: Cameras, color: tuple[int, ...], depth: tuple[int, ...], what: str) -> Cameras:
    """Cameras of a colour image (H, W) and of a depth image (h, w) of the same camera, which may be smaller or larger.

    Where ``cameras`` states a depth camera of its own they are returned as they are. Raises FrameError that calls the
    depth image ``what`` where its shape is another one.
    """
    if depth[:2] == color[:2] or cameras.depth != cameras.color:
        return cameras
    (height, width), (h, w) = color[:2], depth[:2]
    # Whoever resized it rounded either side to whole pixels.
    if min(abs(h - height * w / width), abs(w - width * h / height)) > 1:
        raise FrameError(f"{what}: is {w}x{h}, which does not have the aspect ratio of its image, {width}x{height}.")
    camera, x, y = cameras.color, w / width, h / height
    resized = Intrinsics(camera.fx * x, camera.fy * y, camera.cx * x, camera.cy * y, w, h, camera.lens)
    return cameras._replace(depth=resized)


def read_cameras(path: Path) -> Cameras:
    """Parse a cameras.yaml. Raises ConfigError that names the file, the key and the known keys."""
    try:
        stated = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    top = _mapping(stated, str(path), _TOP)
    if "color" not in top:
        raise ConfigError(f"{path}: states no color camera. Give color: {{fx: ., fy: ., cx: ., cy: .}} in pixels.")
    color = _intrinsics(top["color"], f"{path}: color")
    depth = _intrinsics(top["depth"], f"{path}: depth") if "depth" in top else color
    pose_of = top.get("pose_of", "color")
    if pose_of not in ("color", "depth"):
        raise ConfigError(f"{path}: pose_of is {pose_of!r}. Choices: color, depth.")
    scale = _number(top.get("depth_scale", 0.001), f"{path}: depth_scale", positive=True)
    return Cameras(color, depth, _transform(top.get("color_from_depth"), path), pose_of == "depth", scale)


def cameras_for(cameras: Path | None, *folders: Path) -> Cameras | None:
    """Return the cameras of the given file, else of the first folder that has a cameras.yaml, else None.

    Raises ConfigError for a file that cannot be understood, DataError for a given file that is missing.
    """
    if cameras is not None:
        if not cameras.is_file():
            raise DataError(f"{cameras}: no such file. It should state the cameras, see docs/own-data.md.")
        return read_cameras(cameras)
    for folder in folders:
        if (folder / "cameras.yaml").is_file():
            return read_cameras(folder / "cameras.yaml")
    return None


def _mapping(value: Any, what: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what}: expected keys ({', '.join(known)}), found {value!r}.")
    unknown = [str(key) for key in value if key not in known]
    if unknown:
        raise ConfigError(f"{what}: unknown key {', '.join(unknown)}. Known keys: {', '.join(known)}.")
    return value


def _number(value: Any, what: str, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        raise ConfigError(f"{what} is {value!r}, expected a number.")
    if positive and value <= 0:
        raise ConfigError(f"{what} is {value}, expected more than 0.")
    return float(value)


def _intrinsics(value: Any, what: str) -> Intrinsics:
    keys = _mapping(value, what, (*_INTRINSICS, *_SIZE, *_LENSES))
    missing = [key for key in _INTRINSICS if key not in keys]
    if missing:
        raise ConfigError(f"{what}: {', '.join(missing)} missing; all of fx, fy, cx, cy are needed, in pixels.")
    fx, fy, cx, cy = (_number(keys[key], f"{what}.{key}", positive=True) for key in _INTRINSICS)
    for key in _SIZE:
        if key in keys and _number(keys[key], f"{what}.{key}", positive=True) % 1:
            raise ConfigError(f"{what}.{key} is {keys[key]}, expected whole pixels.")
    width, height = (int(keys[key]) if key in keys else None for key in _SIZE)
    return Intrinsics(fx, fy, cx, cy, width, height, _lens(keys, what))


def _lens(keys: dict[str, Any], what: str) -> Lens | None:
    """Distortion ``distortion: [k1, k2, p1, p2, k3, ...]`` or ``fisheye: [k1, k2, k3, k4]``, in OpenCV's order."""
    said = [key for key in _LENSES if key in keys]
    if len(said) > 1:
        raise ConfigError(f"{what}: give either distortion or fisheye.")
    for key in said:
        values = keys[key]
        if not isinstance(values, list) or len(values) not in _LENSES[key]:
            counts = " or ".join(map(str, _LENSES[key]))
            raise ConfigError(f"{what}.{key} is {values!r}, expected a list of {counts} numbers, in OpenCV's order.")
        k = tuple(_number(value, f"{what}.{key}") for value in values)
        return Lens("fisheye" if key == "fisheye" else "radial", k)
    return None


def _transform(value: Any, path: Path) -> NDArray[np.float64]:
    """Rigid (4, 4) of ``translation: [x, y, z]`` or ``matrix: 4 x 4``; the identity for None."""
    if value is None:
        return np.eye(4)
    what = f"{path}: color_from_depth"
    keys = _mapping(value, what, ("translation", "matrix"))
    if len(keys) != 1:
        raise ConfigError(f"{what}: give either translation or matrix.")
    name, shape = ("translation", (3,)) if "translation" in keys else ("matrix", (4, 4))
    try:
        stated = np.array(keys[name], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{what}.{name}: expected numbers, found {keys[name]!r}.") from error
    if stated.shape != shape:
        raise ConfigError(f"{what}.{name}: has shape {stated.shape}, expected {shape}.")
    if not (np.abs(stated) < _LARGEST).all():
        raise ConfigError(f"{what}.{name}: {keys[name]!r} is not finite or far too large.")
    result = np.eye(4)
    if name == "translation":
        result[:3, 3] = stated
    else:
        result = stated
    try:
        return check_rigid(result, what)
    except FrameError as error:
        raise ConfigError(str(error)) from error

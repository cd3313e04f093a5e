"""nerfstudio's data format (Tancik et al. 2023), which instant-ngp's resembles: transforms.json, with depth images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError, first_line
from pri3d.geometry.pose import OPENGL_FLIP, check_rigid
from pri3d.geometry.warping import Lens
from pri3d.recordings._shared.cameras import Cameras, intrinsics, registered, same_camera
from pri3d.recordings._shared.files import Origin, build_frame, in_metres, read_color, read_depth
from pri3d.recordings._shared.scenes import PosedList, SceneReader
from pri3d.recordings._shared.text import SUFFIXES, frame_names, framed, listed_file, numbers, read_json
from pri3d.types import Frame

_FILE = "transforms.json"
_PINHOLE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_FISHEYE = ("OPENCV_FISHEYE",)
_DEPTH = ("depth_file_path", "depth_path")  # nerfstudio's and instant-ngp's key
_UNITS = ("depth_unit_scale_factor", "integer_depth_scale")  # likewise; metres per unit of the depth images
_MILLIMETRES = 0.001


class NerfstudioReader(SceneReader):
    """FOLDER/transforms.json with depth images, or folders that hold one; each is a scene.

    The file states fl_x, fl_y, cx, cy, w, h once or for each frame, and of ``frames`` the file_path (its ending .png,
    .jpg or .jpeg may be missing), depth_file_path (depth_path for instant-ngp) and transform_matrix: camera to world,
    OpenGL's camera axes. Paths are below FOLDER. Depth is z as 16-bit images, of the same view as the image and maybe
    smaller, in millimetres unless depth_unit_scale_factor (integer_depth_scale for instant-ngp) says metres per unit.
    Depth may be .npy, too: floating-point numbers are metres, or that factor times them where it is stated, as
    nerfstudio reads them. Masks are not read. Frames are in the order of their paths.

    nerfstudio sends the ray of the first pixel through 0.5, 0.5, so cx and cy are on our grid as they are. Distortion
    k1, k2, p1, p2, k3 of the pinhole models and k1 to k4 of OPENCV_FISHEYE (or ``is_fisheye``) is undone, of depth
    too; other models are refused. ``applied_transform`` turned the world of all poses alike, which changes nothing
    here; ``applied_scale`` multiplied their places, and is taken back. Poses and depth are taken to be in metres, as
    those of phones are; depth made from structure from motion is not, and nothing in the file tells.
    """

    looks_for: ClassVar[str] = f"{_FILE} with depth_file_path, or folders that hold one (nerfstudio, instant-ngp)"

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether a folder holds transforms.json."""
        return (path / _FILE).is_file()

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Open a scene. Raises DataError where the file is damaged, or names no frame or no depth."""
        path = source / _FILE
        stated = read_json(path)
        frames = _frames(stated, path)
        names = frame_names(frames, path)
        scale = _positive(stated, "applied_scale", 1.0, path)
        unit = next((key for key in _UNITS if key in stated), _UNITS[0])
        units = given.depth_scale if given else _positive(stated, unit, _MILLIMETRES, path)
        metres = _positive(stated, unit, 1.0, path)
        transforms = {
            name: _Transform(source, {**stated, **frames[listed]}, scale, units, metres)
            for name, listed in names.items()
        }
        return PosedList(
            list(names),
            lambda name: transforms[name].load(name, given),
            lambda name: transforms[name].pose(),
            given,
            str(path),
        )


class _Transform:
    """One frame as the file states it, what it says about all of them included."""

    def __init__(self, folder: Path, stated: Mapping[str, Any], scale: float, units: float, metres: float) -> None:
        """``units`` and ``metres`` are what whole and floating-point numbers of depth are multiplied with."""
        self._folder, self._stated, self._scale, self._units, self._metres = folder, stated, scale, units, metres
        self._what = f"{folder / _FILE}: {stated['file_path']}"

    def pose(self) -> NDArray[np.float64]:
        """Camera to world (4, 4) in metres, OpenCV axes. Raises FrameError where it is none."""
        matrix = self._stated.get("transform_matrix")
        pose: NDArray[np.float64] = framed(lambda: numbers(matrix, (4, 4), f"{self._what}: transform_matrix"))
        pose = check_rigid(pose, self._what) @ OPENGL_FLIP
        pose[:3, 3] /= self._scale
        return pose

    def load(self, name: str, given: Cameras | None) -> Frame:
        """Raises FrameError naming the file that is missing or damaged, or what is wrong in the list."""
        pose = self.pose()
        color_file, depth_file = self._color(), self._depth()
        color = read_color(color_file)
        is_array = depth_file.suffix.lower() == ".npy"
        depth = self._array(depth_file) if is_array else read_depth(depth_file, self._units)
        cameras = registered(given or self._cameras(), color.shape, depth.shape, str(depth_file))
        return build_frame(name, color, depth, pose, cameras, Origin(str(color_file), str(depth_file), self._what))

    def _color(self) -> Path:
        path = listed_file(self._folder, self._stated["file_path"], self._folder / _FILE)
        candidates = [path, *(path.with_name(path.name + ending) for ending in SUFFIXES)]
        return next((candidate for candidate in candidates if candidate.is_file()), path)

    def _depth(self) -> Path:
        listed = next((self._stated[key] for key in _DEPTH if isinstance(self._stated.get(key), str)), None)
        if listed is None:
            raise FrameError(f"{self._what}: has no depth_file_path.")
        path: Path = framed(lambda: listed_file(self._folder, listed, self._folder / _FILE))
        return path

    def _array(self, path: Path) -> NDArray[np.float32]:
        """Depth (H, W) in metres of a numpy file; what is not finite or not positive becomes 0. Raises FrameError."""
        try:
            raw = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header may claim any size
            if isinstance(raw, np.ndarray) and raw.ndim == 3 and raw.shape[2] == 1:
                raw = raw[:, :, 0]
            if not isinstance(raw, np.ndarray) or raw.ndim != 2 or (raw.dtype != np.uint16 and raw.dtype.kind != "f"):
                kind = f"{raw.dtype} of shape {raw.shape}" if isinstance(raw, np.ndarray) else "no array"
                raise ValueError(f"it holds {kind}, expected (height, width) of metres or of 16 bits")
            if raw.dtype == np.uint16:
                return in_metres(raw, self._units)
            depth = np.array(raw, np.float64) * self._metres
        except Exception as error:  # whatever bytes may make numpy raise
            raise FrameError(f"{path}: cannot be read as depth ({first_line(error)}).") from error
        return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)

    def _cameras(self) -> Cameras:
        keys = ("fl_x", "fl_y", "cx", "cy", "w", "h")
        missing = [key for key in keys if key not in self._stated]
        if missing:
            raise FrameError(f"{self._what}: {', '.join(missing)} missing. State the camera in a cameras.yaml.")
        camera = intrinsics([self._stated[key] for key in keys], self._what)
        return same_camera(camera._replace(lens=self._lens()))

    def _lens(self) -> Lens | None:
        model = self._stated.get("camera_model", "OPENCV")
        if model not in (*_PINHOLE, *_FISHEYE):
            raise FrameError(f"{self._what}: camera_model is {model!r}; read are {', '.join((*_PINHOLE, *_FISHEYE))}.")
        values = [self._stated.get(key, 0) for key in ("k1", "k2", "p1", "p2", "k3", "k4")]
        k1, k2, p1, p2, k3, k4 = framed(lambda: numbers(values, (6,), f"{self._what}: k1 to k4, p1, p2")).tolist()
        if not all(abs(k) < 1e6 for k in (k1, k2, p1, p2, k3, k4)):
            raise FrameError(f"{self._what}: its distortion is not finite or far too large.")
        if model in _FISHEYE or self._stated.get("is_fisheye") is True:
            return Lens("fisheye", (k1, k2, k3, k4))
        if k4:
            raise FrameError(f"{self._what}: k4 is {k4:g}; camera_model {model} has k1, k2, p1, p2 and k3.")
        return Lens("radial", (k1, k2, p1, p2, k3)) if any((k1, k2, p1, p2, k3)) else None


def _frames(stated: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The frames by their file_path. Raises DataError where one has no path in the folder, or none has depth."""
    listed = stated.get("frames")
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{path}: lists no frames.")
    for k, frame in enumerate(listed):
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise DataError(f"{path}: frame {k} of its list has no file_path; the file is damaged.")
        listed_file(path.parent, frame["file_path"], path)
    if not any(key in frame for frame in listed for key in _DEPTH):
        raise DataError(
            f"{path}: has no depth: none of its {len(listed)} frames has a depth_file_path. Add 16-bit depth images in "
            "millimetres, as nerfstudio's import of Polycam or Record3D captures writes them."
        )
    frames = {frame["file_path"]: frame for frame in listed}
    if len(frames) < len(listed):
        raise DataError(f"{path}: lists a file_path twice.")
    return frames


def _positive(stated: Mapping[str, Any], key: str, default: float, path: Path) -> float:
    value = stated.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-9 < value < 1e9:
        raise DataError(f"{path}: {key} is {value!r}, expected a number more than 0.")
    return float(value)

"""Folders of Open3D's reconstruction system, of its RealSense recorders and of the Redwood data sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError
from pri3d.geometry.pose import check_rigid, invert_array
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, from_matrix, same_camera
from pri3d.recordings._shared.files import COLOR, DEPTH, load_files
from pri3d.recordings._shared.scenes import PosedList, SceneReader
from pri3d.recordings._shared.text import numbers, read_json, read_text

_COLOR = ("color", "rgb", "image")
_TRAJECTORIES = (
    "trajectory.log", "scene/trajectory.log", "trajectory.json", "camera_trajectory.json", "scene/trajectory.json",
)  # fmt: skip
_CAMERAS = ("camera_intrinsic.json", "intrinsic.json", "camera_primesense.json")
_ASSUMED = (
    f"no {_CAMERAS[0]} or cameras.yaml states its camera: that of the Redwood data sets, f = 525, centre (320, 240), "
    "is taken."
)
_WORDS = re.compile(r"(\d+)")  # what comes between is text
_BLOCK = 19  # words of a pose in a .log: three numbers and a matrix
_HEAD = re.compile(rb"\s*(\d+)[ \t]+\1[ \t]+\d+[ \t]*\r?\n")  # of a .log of poses; others list pairs of fragments


class Open3dReader(SceneReader):
    """SCENE/color, rgb or image (JPEG or PNG), depth/*.png in millimetres, and a trajectory.

    The recording is a scene or a folder of some. Trajectories: trajectory.log, scene/trajectory.log, the only other
    .log file of poses, trajectory.json or camera_trajectory.json. A .log (Redwood) has blocks of three whole
    numbers, the first that of the image counted from 0, and a matrix (4 x 4), camera to world; the .json
    (PinholeCameraTrajectory) has matrices world to camera column by column. Metres, OpenCV axes. Images and depth are
    paired in the order of their names, numbers by value, as Open3D does; frames are called by their place in it.

    Depth is registered to colour. The camera is that of a cameras.yaml, else of camera_intrinsic.json,
    intrinsic.json, whose depth_scale counts units a metre, or camera_primesense.json, else of the trajectory's .json,
    else Redwood's (f = 525, centre (319.5, 239.5) of 640 x 480). These count pixel centres at integers, so cx and cy
    get 0.5 more on our grid; those of a cameras.yaml do not.
    """

    parts = (_COLOR, ("depth",), (*_TRAJECTORIES, "*.log"))
    signs = _CAMERAS
    looks_for: ClassVar[str] = "folders color (rgb, image) and depth with trajectory.log or trajectory.json (Open3D)"
    frame_step = 25  # 30 frames a second

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether the folder is a scene."""
        return bool(_color_folder(path)) and (path / "depth").is_dir() and bool(_trajectories(path))

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Raises DataError where trajectory or camera are missing or damaged, or do not fit the images."""
        files = _images(source)
        found = _trajectories(source)
        if len(found) != 1:
            there = ", ".join(p.name for p in found) or "none"
            raise DataError(
                f"{source}: needs one file of poses, found {there}. Name it trajectory.log or trajectory.json."
            )
        trajectory, assumed = found[0], ""
        if trajectory.suffix == ".json":
            stated = read_json(trajectory).get("parameters")
            if not isinstance(stated, list) or not stated or not all(isinstance(entry, dict) for entry in stated):
                raise DataError(f"{trajectory}: has no list of parameters; expected Open3D's PinholeCameraTrajectory.")
            what = f"{trajectory}: an extrinsic"
            matrices = (numbers(entry.get("extrinsic"), (16,), what).reshape(4, 4).T for entry in stated)
            poses = [invert_array(check_rigid(matrix, what)) for matrix in matrices]
            places = _places(np.arange(len(poses), dtype=np.float64), len(files), trajectory)
            single = given or _camera_file(source)
            cameras = [single or _camera(entry.get("intrinsic"), str(trajectory)) for entry in stated]
        else:
            words = read_text(trajectory).split()
            if not words or len(words) % _BLOCK:
                raise DataError(f"{trajectory}: holds {len(words)} words, not {_BLOCK} a pose; is the file truncated?")
            blocks = numbers(words, (len(words) // _BLOCK, _BLOCK), str(trajectory))
            if not np.array_equal(blocks[:, 0], blocks[:, 1]):
                raise DataError(f"{trajectory}: lists pairs of fragments, not the poses of images.")
            poses = list(blocks[:, 3:].reshape(-1, 4, 4))
            places = _places(blocks[:, 0], len(files), trajectory)
            redwood = same_camera(Intrinsics(525.0, 525.0, 319.5 + 0.5, 239.5 + 0.5, 640, 480))
            single = given or _camera_file(source)
            cameras = [single or redwood] * len(poses)
            if single is None:
                assumed = _ASSUMED
        entries = {f"{place:06d}": k for k, place in enumerate(places)}
        return PosedList(
            list(entries),
            lambda name: load_files(name, *files[int(name)], poses[entries[name]], cameras[entries[name]], trajectory),
            lambda name: poses[entries[name]],
            given,
            str(trajectory),
            assumed=assumed,
        )


def _color_folder(folder: Path) -> Path | None:
    return next((folder / part for part in _COLOR if (folder / part).is_dir()), None)


def _trajectories(folder: Path) -> list[Path]:
    """The file of poses that is named as usual, else every .log that looks like one."""
    usual = [folder / name for name in _TRAJECTORIES if (folder / name).is_file()]
    if usual:
        return usual[:1]
    found = []
    for path in sorted(path for path in folder.glob("*.log") if path.is_file()):
        with path.open("rb") as file:
            if _HEAD.match(file.read(100)):
                found.append(path)
    return found


def _images(folder: Path) -> list[tuple[Path, Path]]:
    """Colour and depth files in order. Raises DataError where there are more of one than of the other."""
    color = _color_folder(folder) or folder / _COLOR[0]
    colors, depths = _sorted_images(color), _sorted_images(folder / "depth")
    if not colors or len(colors) != len(depths):
        raise DataError(
            f"{folder}: has {len(colors)} images in {color.name} and {len(depths)} in depth. They are paired in the "
            "order of their names, so there must be as many."
        )
    return list(zip(colors, depths, strict=True))


def _sorted_images(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.suffix.lower() in (*COLOR, *DEPTH) and not p.name.startswith(".")]
    return sorted(files, key=lambda p: [word.zfill(40) if word.isdecimal() else word for word in _WORDS.split(p.name)])


def _places(numbered: NDArray[np.float64], count: int, path: Path) -> list[int]:
    """Which of ``count`` images each pose belongs to; ``numbered`` (N,) are the numbers that the file gives."""
    poses = len(numbered)
    if poses == count:
        return list(range(count))
    says = poses < count and bool((np.diff(numbered, prepend=-1) >= 1).all()) and numbered[-1] < count
    if not says or np.array_equal(numbered, np.arange(poses)) or (numbered % 1).any():
        raise DataError(
            f"{path}: has {poses} poses for {count} images, and the frame numbers do not identify these images. Keep "
            f"only images with a pose."
        )
    return [int(number) for number in numbered]


def _camera_file(folder: Path) -> Cameras | None:
    """Camera of the first file there is. Raises DataError where it is damaged."""
    path = next((folder / name for name in _CAMERAS if (folder / name).is_file()), None)
    return None if path is None else _camera(read_json(path), str(path))


def _camera(stated: Any, what: str) -> Cameras:
    """Camera of Open3D's JSON, both registered: the matrix stands column by column. Raises DataError for others."""
    if not isinstance(stated, dict):
        raise DataError(f"{what}: states no camera (width, height, intrinsic_matrix).")
    width, height, units = (
        float(numbers(stated.get(key, usual), (1,), f"{what}: {key}")[0])
        for key, usual in (("width", None), ("height", None), ("depth_scale", 1000.0))
    )
    if not (0 < width < 1e6 and 0 < height < 1e6 and 1 <= units < 1e6) or width % 1 or height % 1:
        raise DataError(f"{what}: width {width:g}, height {height:g} or depth_scale {units:g} cannot be.")
    matrix = numbers(stated.get("intrinsic_matrix"), (9,), f"{what}: intrinsic_matrix").reshape(3, 3).T
    camera = from_matrix(matrix, what)._replace(width=int(width), height=int(height))
    return same_camera(camera)._replace(depth_scale=1 / units)

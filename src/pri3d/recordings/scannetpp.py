"""ScanNet++ (Yeshwanth et al. 2023): the iPhone's colour and depth, as the data set's toolkit extracts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.recordings._shared.cameras import Cameras, from_matrix, registered, same_camera
from pri3d.recordings._shared.files import Origin, build_frame, read_color, read_depth
from pri3d.recordings._shared.scenes import LazyScene, PosedList, SceneReader
from pri3d.recordings._shared.text import absolute, clean_id, numbers, read_json, read_words
from pri3d.types import Frame

_POSES = "pose_intrinsic_imu.json"
_LISTS = {"nvs_sem_train": "train", "nvs_sem_val": "val", "nvs_test": "test", "sem_test": "test"}


class ScanNetppReader(SceneReader):
    """data/SCENE/iphone/rgb/frame_NNNNNN.jpg, depth/frame_NNNNNN.png and pose_intrinsic_imu.json.

    The recording is the folder that holds ``data``, ``data`` itself, or a scene. rgb and depth are what the toolkit's
    ``iphone.prepare_iphone_data`` extracts of the downloaded video and depth.bin. The JSON has for each frame
    ``intrinsic`` (3 x 3, of the colour image) and ``aligned_pose`` (4 x 4, metres, camera to the world of the mesh,
    OpenCV axes: the toolkit's own back-projection multiplies it with the inverse intrinsic and a positive depth).
    The matrix counts pixel centres at integers, so cx and cy get 0.5 more on our grid; a cameras.yaml stands for all
    frames and its numbers do not. Depth is of the same view but smaller (256 x 192 for 1920 x 1440), 16 bits,
    millimetres, 0 where there is none. Frames without a colour image are left out, so that some may be extracted only.

    scans/mesh_aligned_0.05.ply is the surface. ``splits/nvs_sem_train.txt``, nvs_sem_val.txt, nvs_test.txt and
    sem_test.txt beside ``data`` are the official lists; only the scenes of ``split`` are read.
    """

    parts = (("iphone/rgb",), ("iphone/depth",), (f"iphone/{_POSES}",))
    looks_for: ClassVar[str] = "SCENE/iphone/pose_intrinsic_imu.json, in data or not (ScanNet++)"
    splits: ClassVar[bool] = True
    frame_step = 50  # 60 frames a second

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether the folder is a scene with the iPhone's poses."""
        return (path / "iphone" / _POSES).is_file()

    @classmethod
    def find(cls, path: Path) -> Iterator[Path]:
        """The recording itself where it is a scene, else the scenes in it, else those in its ``data``."""
        found = list(super().find(path))
        yield from found or super().find(path / "data")

    def scene(self, source: Path) -> LazyScene:
        """The scene of a source, with its mesh and official split. Raises DataError where a list is damaged."""
        name, official = absolute(source).name, self._official.get(source.resolve().name)
        mesh = source / "scans" / "mesh_aligned_0.05.ply"
        return LazyScene(
            clean_id(name),
            lambda: self.open(source, self.stated(source)),
            mesh,
            split=official,
        )

    @cached_property
    def _official(self) -> dict[str, str]:
        """Scene -> official list."""
        first = next(self.find(self.path), None)
        return {} if first is None else _official(first.resolve().parent)

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Raises DataError where the poses are missing or damaged, or images and depth are not extracted."""
        iphone = source / "iphone"
        stated = read_json(iphone / _POSES)
        colors = {path.stem: path for path in _extracted(iphone, "rgb", ".jpg")}
        _extracted(iphone, "depth", ".png")
        names = [name for name in stated if name in colors]
        if not names:
            raise DataError(f"{iphone}: none of {len(colors)} images has one of the {len(stated)} poses of {_POSES}.")
        return PosedList(
            names,
            lambda name: _load(name, iphone, stated, given),
            lambda name: _matrix(stated, name, "aligned_pose", 4, iphone / _POSES),
            given,
            str(iphone / _POSES),
            lambda name: _time(stated[name]),
        )


def _time(entry: Any) -> float | None:
    """Seconds at which a frame was taken, None where its entry does not say."""
    stated = entry.get("timestamp") if isinstance(entry, dict) else None
    return float(stated) if isinstance(stated, (int, float)) else None


def _official(data: Path) -> dict[str, str]:
    """Scene -> official list, of the lists beside the folder of the scenes, or in it."""
    result = {}
    for folder in (data, data.parent):
        for name, split in _LISTS.items():
            path = folder / "splits" / f"{name}.txt"
            for words in read_words(path) if path.is_file() else ():
                result[words[0]] = split
    return result


def _extracted(iphone: Path, part: str, suffix: str) -> list[Path]:
    """Images of one part. Raises DataError where there is none."""
    found = [p for p in (iphone / part).glob(f"*{suffix}") if not p.name.startswith(".")]
    if not found:
        packed = "rgb.mp4 or rgb.mkv" if part == "rgb" else "depth.bin"
        raise DataError(
            f"{iphone / part}: has no {suffix} images. Extract {packed} first, with iphone.prepare_iphone_data of the "
            f"ScanNet++ toolkit (extract_{part}: true)."
        )
    return found


def _matrix(stated: Mapping[str, Any], name: str, key: str, size: int, path: Path) -> NDArray[np.float64]:
    """Square matrix of one frame. Raises FrameError where it is missing or damaged."""
    entry = stated[name]
    try:
        return numbers(entry[key] if isinstance(entry, dict) else None, (size, size), f"{path}: {name}: {key}")
    except (DataError, KeyError) as error:
        raise FrameError(f"{path}: frame {name} has no usable {key} ({error}).") from error


def _load(name: str, iphone: Path, stated: Mapping[str, Any], given: Cameras | None) -> Frame:
    """Read one frame. Raises FrameError naming the file that is missing, damaged or of another size."""
    poses = iphone / _POSES
    color_path, depth_path = iphone / "rgb" / f"{name}.jpg", iphone / "depth" / f"{name}.png"
    color = read_color(color_path)
    depth = read_depth(depth_path, given.depth_scale if given else 0.001)
    if given is None:
        camera = from_matrix(_matrix(stated, name, "intrinsic", 3, poses), f"{poses}: frame {name}")
        cameras = registered(same_camera(camera), color.shape, depth.shape, str(depth_path))
    else:
        cameras = given
    pose = _matrix(stated, name, "aligned_pose", 4, poses)
    return build_frame(
        name, color, depth, pose, cameras, Origin(str(color_path), str(depth_path), f"{poses}: frame {name}")
    )

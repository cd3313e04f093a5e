"""Record3D: RGB-D videos of phones, a .r3d file each."""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import OPENGL_FLIP, check_rigid, pose_of_quaternion
from pri3d.notation import parse_json
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, intrinsics, registered, same_camera
from pri3d.recordings._shared.files import LARGEST, MILLIMETRES, Origin, build_frame, decode_image, eight_bits, percent
from pri3d.recordings._shared.lzfse import decompress
from pri3d.recordings._shared.scenes import PosedList, SceneReader
from pri3d.recordings._shared.sens import is_rgb
from pri3d.recordings._shared.text import numbers
from pri3d.types import Frame

_MOST_METADATA = 1 << 26  # bytes
_SLACK = 1 << 16  # bytes that small images may need beyond their pixels
_FARTHEST = 65.5  # metres; the store holds millimetres of 16 bits
_MOST_RATE = 1000  # frames a second
_SUFFIX = ".r3d"


class Record3DReader(SceneReader):
    """NAME.r3d, a zip file, or the folder that it unpacks to; a folder of them is a recording of several scenes.

        metadata        JSON: w, h of the images, dw, dh of depth, K (3 x 3, columns first), poses: per frame
                        qx qy qz qw tx ty tz; perFrameIntrinsicCoeffs: per frame fx fy cx cy, where they vary
                        frameTimestamps: per frame seconds, or fps, frames a second; for the choice of frames
        rgbd/N.jpg      frame N; its bytes are kept as they are
        rgbd/N.depth    float32 metres, dh x dw, compressed with LZFSE; NaN is invalid
        rgbd/N.conf     bytes 0, 1, 2: becomes percent; of LiDAR alone

    Poses are camera to world in metres, with OpenGL's camera axes; y of the world points up. Intrinsics are of the
    images and count pixels from their corner; depth is of the same view, usually smaller, of the images' size where
    dw and dh are not stated. The depth_scale of a cameras.yaml is metres per millimetre of the file. Known from the
    app's files as published readers of them describe them; tested on written files.
    """

    parts = (("metadata",), ("rgbd",))
    looks_for: ClassVar[str] = "a .r3d file, a folder of them, or metadata and rgbd of an unpacked one (Record3D)"
    suffixes: ClassVar[tuple[str, ...]] = (_SUFFIX,)
    frame_step = 25  # of 30 or 60 a second

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether it is a .r3d file, or a folder that one unpacks to."""
        if path.is_dir():
            return (path / "metadata").is_file() and (path / "rgbd").is_dir()
        return path.suffix.lower() == _SUFFIX

    def stated(self, source: Path) -> Cameras | None:
        """As `SceneReader`; beside a single file a cameras.yaml counts too."""
        return super().stated(source if source.is_dir() else source.parent)

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Open a recording. Raises DataError where its metadata is missing or damaged."""
        video = _video(_read_entry(source, "metadata", _MOST_METADATA), f"{source}: metadata")
        scene = _Record3DScene(source, video, given)
        digits = max(6, len(str(len(video.poses) - 1)))
        names = [str(k).zfill(digits) for k in range(len(video.poses))]
        return PosedList(names, scene.frame, scene.pose, given, time=scene.time)


class _Video(NamedTuple):
    """What the metadata says."""

    color_size: tuple[int, int]  # width, height
    depth_size: tuple[int, int]
    poses: NDArray[np.float64]  # (N, 7) qx qy qz qw tx ty tz
    cameras: NDArray[np.float64]  # (N, 4) or (1, 4) fx fy cx cy
    times: list[float] | None  # (N,) seconds

    def camera(self, index: int, what: str) -> Intrinsics:
        """Camera of a frame's image. Raises FrameError where it is none."""
        values = self.cameras[index if len(self.cameras) > 1 else 0]
        return intrinsics([*values, *self.color_size], what)


class _Record3DScene(NamedTuple):
    """What a frame is made of."""

    source: Path
    video: _Video
    given: Cameras | None

    def time(self, name: str) -> float | None:
        """Seconds at which a frame was taken, None where the metadata does not say."""
        return None if self.video.times is None else self.video.times[int(name)]

    def pose(self, name: str) -> NDArray[np.float64]:
        """Camera to world (4, 4), OpenCV axes. Raises FrameError where tracking was lost."""
        values, what = self.video.poses[int(name)], f"{self.source}: pose of frame {name}"
        return check_rigid(pose_of_quaternion(values[4:], values[:4], what), what) @ OPENGL_FLIP

    def frame(self, name: str) -> Frame:
        """Load a frame. Raises FrameError naming the entry that is missing or damaged."""
        index = int(name)
        pose = self.pose(name)
        width, height = self.video.color_size
        entry = f"{self.source}: rgbd/{index}"
        origin = Origin(f"{entry}.jpg", f"{entry}.depth", f"{self.source}: pose of frame {name}")
        jpeg = _read_entry(self.source, f"rgbd/{index}.jpg", 4 * width * height + _SLACK)
        image = decode_image(io.BytesIO(jpeg), origin.color, size=(width, height), formats=("JPEG",))
        color = eight_bits(image, origin.color)
        depth = self._depth(index) * np.float32(1 if self.given is None else self.given.depth_scale / MILLIMETRES)
        cameras = self.given
        if cameras is None:
            camera = self.video.camera(index, f"{self.source}: camera of frame {name}")
            cameras = registered(same_camera(camera), color.shape, depth.shape, origin.depth)
        try:
            levels = np.frombuffer(self._unpacked(f"rgbd/{index}.conf", 1), np.uint8)
        except _MissingError:
            confidence = None
        else:
            confidence = percent(levels.reshape(self.video.depth_size[::-1]), f"{entry}.conf")
        return build_frame(
            name,
            color,
            depth,
            pose,
            cameras,
            origin,
            confidence=confidence,
            color_jpeg=jpeg if is_rgb(jpeg) else None,
        )

    def _depth(self, index: int) -> NDArray[np.float32]:
        metres = np.frombuffer(self._unpacked(f"rgbd/{index}.depth", 4), "<f4").reshape(self.video.depth_size[::-1])
        return np.where((metres > 0) & (metres < _FARTHEST), metres, np.float32(0)).astype(np.float32)

    def _unpacked(self, entry: str, each: int) -> bytes:
        """Bytes of an entry of ``each`` bytes a pixel."""
        size = each * self.video.depth_size[0] * self.video.depth_size[1]
        return decompress(_read_entry(self.source, entry, 2 * size + _SLACK), size, f"{self.source}: {entry}")


class _MissingError(FrameError):
    """An entry that does not exist."""


def _video(data: bytes, what: str) -> _Video:
    """Parse the metadata. Raises DataError where it is damaged or misses something."""
    try:
        stated = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what}: is damaged ({error}).") from error
    if not isinstance(stated, dict):
        raise DataError(f"{what}: is not a JSON object.")
    color = _size(stated, ("w", "h"), what)
    depth = _size(stated, ("dw", "dh"), what) if "dw" in stated else color
    poses = stated.get("poses")
    if not isinstance(poses, list) or not poses:
        raise DataError(f"{what}: holds no poses. Record with a version of the app that stores them.")
    each = stated.get("perFrameIntrinsicCoeffs")
    if each:
        cameras = numbers(each, (len(poses), 4), f"{what}: perFrameIntrinsicCoeffs")
    else:
        cameras = numbers(stated.get("K"), (9,), f"{what}: K")[None, [0, 4, 6, 7]]
    stamps, rate = stated.get("frameTimestamps"), stated.get("fps")
    times = None
    if isinstance(stamps, list) and len(stamps) == len(poses):
        times = numbers(stamps, (len(poses),), f"{what}: frameTimestamps").tolist()
    elif isinstance(rate, (int, float)) and 0 < rate < _MOST_RATE:
        times = [k / rate for k in range(len(poses))]
    return _Video(color, depth, numbers(poses, (len(poses), 7), f"{what}: poses"), cameras, times)


def _size(stated: dict[str, Any], keys: tuple[str, str], what: str) -> tuple[int, int]:
    width, height = (stated.get(key) for key in keys)
    if not (type(width) is int and type(height) is int and width > 0 and height > 0 and width * height <= LARGEST):
        raise DataError(f"{what}: {keys[0]} and {keys[1]} are {width!r} and {height!r}, expected sizes in pixels.")
    return width, height


def _read_entry(path: Path, entry: str, most: int) -> bytes:
    """Read an entry of at most ``most`` bytes, of a zip file or of the folder it unpacks to."""
    if path.is_dir():
        inside = path / entry
        if not inside.is_file():
            raise _MissingError(f"{inside}: no such file.")
        with inside.open("rb") as file:
            return _bounded(file.read(most + 1), most, str(inside))
    try:
        stat = path.stat()
        with _archive(path, (stat.st_mtime_ns, stat.st_size)).open(entry) as file:
            return _bounded(file.read(most + 1), most, f"{path}: {entry}")
    except KeyError as error:
        raise _MissingError(f"{path}: holds no {entry}.") from error
    except FrameError:
        raise
    except Exception as error:  # zipfile raises what it likes on damaged bytes
        raise FrameError(f"{path}: {entry} cannot be read ({error}). Was the file copied completely?") from error


@lru_cache(maxsize=4)
def _archive(path: Path, _changed: tuple[int, int]) -> zipfile.ZipFile:
    """An archive, kept open: its directory has three entries a frame; opened anew where the file has changed."""
    return zipfile.ZipFile(path)


def _bounded(data: bytes, most: int, what: str) -> bytes:
    if len(data) > most:
        raise FrameError(f"{what}: has more than {most} bytes, too many for its image; it is damaged.")
    return data

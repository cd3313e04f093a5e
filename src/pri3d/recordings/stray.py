"""Stray Scanner: RGB-D videos of phones with LiDAR."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid, pose_of_quaternion
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, intrinsics, registered, same_camera
from pri3d.recordings._shared.files import LARGEST, MILLIMETRES, Origin, build_frame, read_depth, read_levels
from pri3d.recordings._shared.scenes import PosedList, SceneReader
from pri3d.recordings._shared.text import framed, numbers, read_text
from pri3d.types import Frame

_POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
_CAMERA = ("fx", "fy", "cx", "cy")
_MOST_OPEN = 4  # videos a process keeps open: a data set has more scenes than it may hold open files
_OPEN: list[VideoFrames] = []  # the one used last is the last
_LOCK = RLock()  # of the above and of every decoder: one decodes at a time


class StrayReader(SceneReader):
    """SCENE with rgb.mp4, odometry.csv, camera_matrix.csv, depth, confidence, as the app's folders are.

        odometry.csv               a head line that names the columns: timestamp, frame, x, y, z, qx, qy, qz, qw,
                                   in newer versions fx, fy, cx, cy of the frame too
        camera_matrix.csv          3 x 3, of the video's images; where the odometry does not say it
        rgb.mp4                    frame N of the odometry is frame N of the video (needs PyAV: the extra ``video``)
        depth/000000.png or .npy   16 bits, millimetres, of the same view as the video, smaller
        confidence/000000.png      0, 1, 2: becomes percent; may be missing

    Poses are camera to world in metres. The app turns ARKit's camera by half a turn about x when it writes them, so
    that the camera axes are OpenCV's; y of the world points up. Intrinsics count pixels from the image's corner.
    Known from the app's data specification and its published source; tested on written files.
    """

    parts = (("rgb.mp4",), ("odometry.csv",), ("depth",))
    signs = ("camera_matrix.csv", "imu.csv")
    looks_for: ClassVar[str] = "odometry.csv and rgb.mp4, or folders that hold them (Stray Scanner)"
    frame_step = 25  # of 30 or 60 a second

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether a folder is a recording of the app."""
        return (path / "odometry.csv").is_file() and any(
            (path / name).is_file() for name in ("rgb.mp4", "camera_matrix.csv")
        )

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Open a recording. Raises DataError where odometry, calibration or video are missing or damaged."""
        odometry = _Odometry(source / "odometry.csv")
        matrix = None
        if given is None and not odometry.has(_CAMERA):
            matrix = _matrix(source / "camera_matrix.csv")
        scene = _StrayScene(source, VideoFrames(source / "rgb.mp4"), odometry, matrix, given)
        return PosedList(list(odometry.rows), scene.frame, odometry.pose, given, time=odometry.time)


class _Odometry:
    """The table of poses: rows by frame name; a last line that was not written whole is left out."""

    def __init__(self, path: Path) -> None:
        """Raises DataError where it is missing or has no columns of poses, no row, or two of one frame."""
        self.path = path
        lines = [line.split(",") for line in read_text(path).splitlines() if line.strip()]
        self._columns = [word.strip() for word in lines[0]] if lines else []
        if not self.has(("frame", *_POSE)):
            raise DataError(f"{path}: its first line should name the columns frame, {', '.join(_POSE)}.")
        rows = lines[1:]
        if rows and len(rows[-1]) < len(self._columns):
            rows.pop()  # the recording was cut off
        self.rows: dict[str, list[str]] = {}
        frame = self._columns.index("frame")
        for row in rows:
            name = row[frame].strip() if len(row) == len(self._columns) else ""
            if not (name.isdecimal() and name.isascii() and len(name) <= 9):
                raise DataError(f"{path}: the line {','.join(row)[:80]!r} has no frame number or another length.")
            self.rows[name.zfill(6)] = row
        if not rows or len(self.rows) != len(rows):
            raise DataError(f"{path}: holds {len(rows)} lines of {len(self.rows)} frames; it is damaged.")
        width = max(len(name) for name in self.rows)
        self.rows = {name.zfill(width): row for name, row in self.rows.items()}

    def has(self, columns: tuple[str, ...]) -> bool:
        """Whether it has all of these columns."""
        return all(name in self._columns for name in columns)

    def values(self, name: str, columns: tuple[str, ...]) -> NDArray[np.float64]:
        """Numbers of some columns of a frame. Raises FrameError where they are none."""
        row = [self.rows[name][self._columns.index(column)] for column in columns]
        found: NDArray[np.float64] = framed(lambda: numbers(row, (len(columns),), f"{self.path}: frame {name}"))
        return found

    def time(self, name: str) -> float | None:
        """Seconds at which a frame was taken, None where no column says it. Raises FrameError for other words."""
        return float(self.values(name, ("timestamp",))[0]) if self.has(("timestamp",)) else None

    def pose(self, name: str) -> NDArray[np.float64]:
        """Camera to world (4, 4), OpenCV axes. Raises FrameError where tracking was lost."""
        values, what = self.values(name, _POSE), f"{self.path}: frame {name}"
        return check_rigid(pose_of_quaternion(values[:3], values[3:], what), what)


class _StrayScene(NamedTuple):
    """What a frame is made of."""

    folder: Path
    video: VideoFrames
    odometry: _Odometry
    matrix: Intrinsics | None
    given: Cameras | None

    def frame(self, name: str) -> Frame:
        """Load a frame. Raises FrameError naming the file that is missing or damaged."""
        pose = self.odometry.pose(name)
        color = self.video.read(int(name))
        stem = str(int(name)).zfill(6)
        depth_path = next(
            (path for end in ("npy", "png") if (path := self.folder / "depth" / f"{stem}.{end}").is_file()),
            self.folder / "depth" / f"{stem}.png",
        )
        scale = MILLIMETRES if self.given is None else self.given.depth_scale
        depth = read_depth(depth_path, scale)
        what = f"{self.odometry.path}: frame {name}"
        origin = Origin(f"{self.video.path}: frame {name}", str(depth_path), what)
        cameras = self.given
        if cameras is None:
            stated = self.matrix or intrinsics(self.odometry.values(name, _CAMERA), what)
            cameras = registered(same_camera(stated), color.shape, depth.shape, origin.depth)
        return build_frame(
            name,
            color,
            depth,
            pose,
            cameras,
            origin,
            confidence=read_levels(self.folder / "confidence" / f"{stem}.png"),
        )


def _matrix(path: Path) -> Intrinsics:
    """Camera of a 3 x 3 matrix with commas. Raises DataError where it is missing or damaged."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file, and odometry.csv has no columns fx, fy, cx, cy. State the camera in a cameras.yaml."
        )
    rows = [line.split(",") for line in read_text(path).splitlines() if line.strip()]
    values = numbers([word for row in rows for word in row], (9,), str(path))
    return intrinsics(values[[0, 4, 2, 5]], str(path))


class VideoFrames:
    """The frames of a video's first picture stream, in the order in which they are shown.

    The packets are walked once to learn when each frame is shown and which are key frames: 9 bytes of memory a frame,
    nothing is decoded. Reading forward decodes on; reading back, or beyond the next key frame, begins at the key
    frame before. No rotation that the file asks a player for is applied.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError where PyAV is missing, or the file is missing, damaged or has no pictures."""
        self.path = path
        self._av = _library(path)
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._next = 0  # number of the frame that the decoder will give next, if it is sound
        self._times, self._keys = self._walk()

    def __len__(self) -> int:
        """Return how many frames it has."""
        return len(self._times)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return frame ``index`` as RGB (H, W, 3).

        Raises FrameError naming file and frame where it does not exist, is damaged or is missing in the stream.
        """
        if not 0 <= index < len(self):
            raise FrameError(f"{self.path}: has {len(self)} frames; there is no frame {index}.")
        with _LOCK:
            try:
                start = self._keys[max(bisect_right(self._keys, index) - 1, 0)]
                container = self._opened()
                if not (start <= self._next <= index):
                    stream = container.streams.video[0]
                    container.seek(self._times[start], stream=stream, backward=True)
                    self._frames = container.decode(stream)
                wanted = self._times[index]
                frame = next((f for f in self._frames if f.pts is not None and f.pts >= wanted), None)
                if frame is None or frame.pts > wanted:
                    raise FrameError(f"{self.path}: frame {index} cannot be decoded; the stream is damaged there.")
                self._next = index + 1
                if frame.is_corrupt:
                    raise FrameError(f"{self.path}: frame {index} is damaged.")
                image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
                return image
            except FrameError:
                self.close()  # a decoder that failed is not trusted with the next frame
                raise
            except self._errors() as error:
                self.close()
                raise FrameError(f"{self.path}: frame {index} cannot be decoded ({error}).") from error

    def close(self) -> None:
        """Give back the decoder and the file; reading opens them again."""
        with _LOCK:
            self._frames = iter(())
            if self._container is not None:
                self._container.close()
                self._container = None
            if self in _OPEN:
                _OPEN.remove(self)

    def _errors(self) -> tuple[type[Exception], ...]:
        return (self._av.error.FFmpegError, OSError, ValueError, EOFError, IndexError, MemoryError)

    def _opened(self) -> Any:
        """The container with a decoder, the oldest of the others closed."""
        if self._container is None:
            self._container = self._container_of()
            stream = self._container.streams.video[0]
            _check_size(stream.codec_context, self.path)
            stream.codec_context.options = {"max_pixels": str(LARGEST)}
            self._frames, self._next = iter(()), len(self) + 1  # so that it seeks
        if self in _OPEN:
            _OPEN.remove(self)
        _OPEN.append(self)
        while len(_OPEN) > _MOST_OPEN:
            _OPEN[0].close()
        return self._container

    def _container_of(self) -> Any:
        if not self.path.is_file():
            raise FrameError(f"{self.path}: no such file.")
        return self._av.open(f"file:{self.path}", mode="r", metadata_errors="ignore")

    def _walk(self) -> tuple[array[int], array[int]]:
        """When each frame is shown, in the stream's ticks, sorted; and the numbers of the key frames."""
        try:
            with self._container_of() as container:
                if not container.streams.video:
                    raise DataError(f"{self.path}: contains no images. Is it a video?")
                stream = container.streams.video[0]
                packets = [
                    (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None
                ]
        except self._errors() as error:
            raise DataError(f"{self.path}: is not a readable video ({error}). Was it copied completely?") from error
        packets.sort()
        times = array("q", (time for time, _ in packets))
        keys = array("q", (k for k, (_, key) in enumerate(packets) if key))
        if not keys or keys[0] != 0 or len(set(times)) != len(times):
            raise DataError(f"{self.path}: its frames have no order or do not start with a key frame; it is damaged.")
        return times, keys


def _library(path: Path) -> Any:
    try:
        import av  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise DataError(f'{path}: reading videos needs PyAV. Install it: pip install "pri3d[video]"') from error
    return av


def _check_size(codec: Any, path: Path) -> None:
    if codec is None:
        raise FrameError(f"{path}: PyAV cannot decode its codec, or it is damaged.")
    if not 0 < codec.width * codec.height <= LARGEST:
        raise FrameError(f"{path}: claims to be {codec.width}x{codec.height}; the file is damaged.")

"""ScanNet's ``.sens`` container, version 4: all frames of a scan in one file, read one at a time.

    uint32 version, uint64 length and characters of the sensor's name
    float32 4 x 4, rows first: intrinsics and extrinsics of the colour camera, then of the depth camera
    int32 compression of colour and of depth, uint32 width and height of colour and of depth
    float32 depth units per metre, uint64 number of frames
    per frame: float32 4 x 4 camera to world, uint64 time of colour and of depth, uint64 bytes of colour and of depth,
    then those bytes; what follows the frames (inertial measurements) is not read

Little-endian without padding. The headers are 96 bytes a frame, so that a scan of gigabytes is walked by reading
kilobytes; nothing is kept of a frame but where it begins.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid
from pri3d.recordings._shared.cameras import Cameras
from pri3d.recordings._shared.files import LARGEST, Origin, build_frame, decode_image, eight_bits, in_metres
from pri3d.types import Frame

_COLOR = {1: "PNG", 2: "JPEG"}  # the numbers the container gives them; 0 is raw pixels
_RAW, _ZLIB = 0, 1  # depth: 16-bit pixels, and those deflated
_NAME = struct.Struct("<IQ")
_HEADER = struct.Struct("<64f2i4IfQ")
_FRAME = struct.Struct("<80x2Q")  # of which the pose is read where it is wanted
_POSE = struct.Struct("<16f")
_MOST_FRAMES = 10**6  # nine hours at 30 a second
_LONGEST_NAME = 4096  # bytes
_SLACK = 1 << 16  # bytes that small images may need beyond their pixels


class SensHeader(NamedTuple):
    """What the file says once."""

    sensor: str  #: the device's name
    color_matrix: NDArray[np.float64]  #: (4, 4) intrinsics in pixels, centres at integers
    color_extrinsic: NDArray[np.float64]  #: (4, 4) colour-camera points -> the camera of the poses
    depth_matrix: NDArray[np.float64]  #: (4, 4) intrinsics in pixels, centres at integers
    depth_extrinsic: NDArray[np.float64]  #: (4, 4) depth-camera points -> the camera of the poses
    color_format: str  #: "JPEG" or "PNG"
    depth_deflated: bool  #: zlib, else raw
    color_size: tuple[int, int]  #: width, height in pixels
    depth_size: tuple[int, int]  #: width, height in pixels
    depth_scale: float  #: metres per unit
    frames: int  #: how many


class SensFrame(NamedTuple):
    """One frame as it lies in the file."""

    pose: NDArray[np.float64]  #: (4, 4) camera to world in metres, -inf where tracking was lost
    color: bytes  #: a JPEG or PNG file
    depth: NDArray[np.uint16]  #: (h, w) units, 0 = invalid


class SensFile:
    """Read side. The file is opened for each read, so that any number of scans may be in use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")  # where the frames begin, as far as they have been walked

    @cached_property
    def header(self) -> SensHeader:
        """What the file says once.

        Raises DataError naming file and value where it is missing, damaged, of another version or compression.
        """
        with self._open() as file:
            version, length = _NAME.unpack(_read(file, 0, _NAME.size, f"{self.path}: its header"))
            if version != 4:
                raise DataError(f"{self.path}: is of version {version}; version 4 is read. Is it a .sens file?")
            if length > _LONGEST_NAME:
                raise DataError(f"{self.path}: says the sensor's name has {length} bytes; the file is damaged.")
            data = _read(file, _NAME.size, length + _HEADER.size, f"{self.path}: its header")
            first = _NAME.size + len(data)
            values: tuple[float, ...] = _HEADER.unpack(data[length:])
            room = (os.fstat(file.fileno()).st_size - first) // _FRAME.size
        matrices = np.array(values[:64], np.float64).reshape(4, 4, 4)
        color_kind, depth_kind, *numbers = (int(value) for value in values[64:70])
        color_size, depth_size = (numbers[0], numbers[1]), (numbers[2], numbers[3])
        units, frames = values[70], int(values[71])
        if color_kind not in _COLOR:
            raise DataError(f"{self.path}: its colour is of compression {color_kind}; read are 1 (PNG) and 2 (JPEG).")
        if depth_kind not in (_RAW, _ZLIB):
            raise DataError(f"{self.path}: its depth is of compression {depth_kind}; read are 0 (raw) and 1 (zlib).")
        for what, (width, height) in (("colour", color_size), ("depth", depth_size)):
            if not 0 < width * height <= LARGEST:
                raise DataError(f"{self.path}: says its {what} is {width}x{height} pixels; the file is damaged.")
        if not 100 <= units <= 1e5:  # ScanNet has 1000; nan compares false
            raise DataError(
                f"{self.path}: says a metre has {units:g} units of depth, expected 100 to 100000 (depth shift)."
            )
        if not 0 < frames <= min(room, _MOST_FRAMES):
            raise DataError(f"{self.path}: says it holds {frames} frames and has room for 1 to {room}; damaged.")
        self._starts = array("Q", [first])
        return SensHeader(
            sensor=data[:length].decode("utf-8", "replace"),
            color_matrix=matrices[0],
            color_extrinsic=matrices[1],
            depth_matrix=matrices[2],
            depth_extrinsic=matrices[3],
            color_format=_COLOR[color_kind],
            depth_deflated=depth_kind == _ZLIB,
            color_size=color_size,
            depth_size=depth_size,
            depth_scale=1.0 / units,
            frames=frames,
        )

    def read(self, index: int) -> SensFrame:
        """Read frame ``index`` and no other; the headers before it are walked once.

        Raises FrameError naming file, frame and value where it is truncated or damaged, DataError as :attr:`header`.
        """
        header = self.header
        what = f"{self.path}: frame {index}"
        with self._open() as file:
            start = self._start(file, index)
            head = _read(file, start, _FRAME.size, what)
            color_bytes, depth_bytes = _FRAME.unpack(head)
            self._check(index, color_bytes, depth_bytes)
            data = _read(file, start + _FRAME.size, color_bytes + depth_bytes, what)
        width, height = header.depth_size
        size, whole = 2 * width * height, True
        depth = data[color_bytes:]
        if header.depth_deflated:
            stream = zlib.decompressobj()
            try:
                depth = stream.decompress(depth, size + 1)  # never more than its pixels and one byte
            except zlib.error as error:
                raise FrameError(f"{what}: its depth is damaged ({error}).") from error
            whole = stream.eof
        if len(depth) != size or not whole:
            raise FrameError(f"{what}: its depth does not give {width}x{height} pixels of two bytes; it is damaged.")
        return SensFrame(_pose(head), data[:color_bytes], np.frombuffer(depth, "<u2").reshape(height, width))

    def pose(self, index: int) -> NDArray[np.float64]:
        """Read the pose (4, 4) of frame ``index`` alone, -inf where tracking was lost. Raises as :meth:`read`."""
        what = f"{self.path}: frame {index}"
        _ = self.header  # states where the first frame begins
        with self._open() as file:
            return _pose(_read(file, self._start(file, index), _FRAME.size, what))

    def _start(self, file: IO[bytes], index: int) -> int:
        """Offset of a frame: the header of each one before it tells where the next begins."""
        while len(self._starts) <= index:
            last = len(self._starts) - 1
            head = _read(file, self._starts[last], _FRAME.size, f"{self.path}: frame {last}")
            color_bytes, depth_bytes = _FRAME.unpack(head)
            self._check(last, color_bytes, depth_bytes)
            self._starts.append(self._starts[last] + _FRAME.size + color_bytes + depth_bytes)
        return self._starts[index]

    def _check(self, index: int, color_bytes: int, depth_bytes: int) -> None:
        """Refuse sizes that no image of the stated ones has, before anything of theirs is allocated."""
        header = self.header
        for what, size, (width, height) in (
            ("colour", color_bytes, header.color_size),
            ("depth", depth_bytes, header.depth_size),
        ):
            if size > 4 * width * height + _SLACK:
                raise FrameError(
                    f"{self.path}: frame {index} says its {what} has {size} bytes, too many for {width}x{height}; it "
                    "is damaged, and no later frame can be found."
                )

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            with self.path.open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):  # else the system reads ahead what is skipped
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                yield file
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error}).") from error


class SensScene:
    """The frames of a .sens file as a scene's: names and pixels."""

    def __init__(self, file: SensFile, cameras: Cameras) -> None:
        self._file = file
        self._cameras = cameras
        count = file.header.frames
        digits = max(6, len(str(count - 1)))
        self.times: Sequence[float] | None = None
        self.assumed = ""
        self.names: Sequence[str] = [str(k).zfill(digits) for k in range(count)]

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``; of JPEG colour the bytes too.

        Raises FrameError naming file and frame where it is truncated or damaged, or its pose not rigid or not finite.
        """
        header, cameras, name = self._file.header, self._cameras, self.names[index]
        raw = self._file.read(index)
        what = f"{self._file.path}: frame {index}"
        color = decode_image(
            io.BytesIO(raw.color), f"{what}: colour", size=header.color_size, formats=(header.color_format,)
        )
        return build_frame(
            name,
            eight_bits(color, what),
            in_metres(raw.depth, cameras.depth_scale),
            raw.pose,
            cameras,
            Origin(f"{what}: colour", f"{what}: depth", what),
            color_jpeg=raw.color if header.color_format == "JPEG" and is_rgb(raw.color) else None,
        )

    def pose(self, index: int) -> NDArray[np.float64]:
        """Read ``world_from_camera`` (4, 4) alone. Raises FrameError where it is not rigid or tracking was lost."""
        pose = check_rigid(self._file.pose(index), f"{self._file.path}: frame {index}")
        return self._cameras.world_from_color(pose)


def is_rgb(jpeg: bytes) -> bool:
    """Whether an image that has been decoded without error has three colours: it may be stored as it is."""
    with Image.open(io.BytesIO(jpeg)) as image:
        return image.mode == "RGB"


def _pose(head: bytes) -> NDArray[np.float64]:
    return np.array(_POSE.unpack(head[: _POSE.size])).reshape(4, 4)  # numpy's cast warns of some NaNs


def _read(file: IO[bytes], offset: int, size: int, what: str) -> bytes:
    """Bytes of a file at ``offset``. Raises FrameError where it ends before; nothing is allocated beyond its end."""
    if offset + size > os.fstat(file.fileno()).st_size:
        raise FrameError(f"{what} is truncated: the file ends before byte {offset + size}. Was it copied completely?")
    parts = []
    while size > 0:
        if hasattr(os, "pread"):
            part = os.pread(file.fileno(), size, offset)
        else:
            file.seek(offset)
            part = file.read(size)
        if not part:
            raise FrameError(f"{what} is truncated: the file became shorter.")
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

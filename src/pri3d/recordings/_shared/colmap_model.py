"""COLMAP's sparse model (Schoenberger and Frahm 2016): its cameras and poses, from binary or text files.

``cameras.bin``: uint64 number of cameras; each uint32 id, int32 model, uint64 width and height, float64 parameters.
``images.bin``: uint64 number of images; each uint32 id, float64 rotation w x y z and translation x y z, uint32 camera,
the name and a zero byte, uint64 number of points, and 24 bytes for each of these, which are skipped. Little-endian.

``cameras.txt``: ``id MODEL width height parameters``, a camera a line. ``images.txt``: two lines an image, ``id qw qx
qy qz tx ty tz camera name``, then its points, which are skipped. '#' starts a comment line.

Poses are world to camera with OpenCV axes. Pixel centres lie at +0.5, as ours do: nothing is shifted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import invert_array, pose_of_quaternion
from pri3d.geometry.warping import Lens
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, registered, same_camera
from pri3d.recordings._shared.files import LARGEST, Origin, build_frame, read_color
from pri3d.recordings._shared.scenes import PosedList
from pri3d.recordings._shared.text import frame_names, listed_file
from pri3d.types import Frame

MEGADEPTH = "Undistorted_SfM"  #: folder of MegaDepth's undistorted scenes, which have a reader of their own
_FOLDERS = ("sparse/0", "sparse")  # where a workspace has its model
_LONGEST = 4096  # bytes of a name, and of a line that is wanted
_FARTHEST = 1e9  # units of the model; beyond it a pose is damaged
_LARGEST = 1e6  # pixels of a focal length, and any coefficient
# The models by their numbers: name, and how many parameters each has.
_MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
)
_ONE_FOCAL_LENGTH = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
_OTHERS = ("PINHOLE", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV")


class ModelCamera(NamedTuple):
    """A camera as the model states it."""

    model: str
    width: int  #: pixels
    height: int  #: pixels
    parameters: tuple[float, ...]


class ModelImage(NamedTuple):
    """An image as the model states it."""

    camera: int  #: id
    rotation: tuple[float, ...]  #: w, x, y, z, world to camera
    translation: tuple[float, ...]  #: (3,) in the model's unit, world to camera


class Model(NamedTuple):
    """Cameras by their ids, images by their names, and the files that state them."""

    cameras: dict[int, ModelCamera]
    images: dict[str, ModelImage]
    cameras_file: Path
    images_file: Path


def model_files(workspace: Path) -> tuple[Path, Path] | None:
    """Files of the cameras and images of the model in sparse/0, else in sparse; binary before text. None for none."""
    for folder in _FOLDERS:
        for ending in ("bin", "txt"):
            cameras, images = (workspace / folder / f"{part}.{ending}" for part in ("cameras", "images"))
            if cameras.is_file() and images.is_file():
                return cameras, images
    return None


def read_model(cameras_file: Path, images_file: Path) -> Model:
    """Read a sparse model. Raises DataError naming the file that is missing, damaged or empty."""
    try:
        if images_file.suffix == ".bin":
            cameras, images = _read_binary(cameras_file, images_file)
        else:
            cameras, images = _read_texts(cameras_file, images_file)
    except OSError as error:
        raise DataError(f"{images_file.parent}: cannot be read ({error}).") from error
    if not images:
        raise DataError(f"{images_file}: contains no image; no camera was registered.")
    by_name = dict(images)
    if len(by_name) < len(images):
        raise DataError(f"{images_file}: names an image twice; the file is damaged.")
    for name, image in images:
        if image.camera not in cameras:
            raise DataError(f"{images_file}: {name} has camera {image.camera}, which {cameras_file} does not state.")
    return Model(cameras, by_name, cameras_file, images_file)


def intrinsics(camera: ModelCamera, what: str) -> Intrinsics:
    """Return a camera of the model. Raises DataError, calling the file ``what``, for a lens that cannot be undone."""
    p = camera.parameters
    if camera.model not in (*_ONE_FOCAL_LENGTH, *_OTHERS):
        raise DataError(
            f"{what}: has a camera of model {camera.model}; read are {', '.join((*_ONE_FOCAL_LENGTH, *_OTHERS))}. Run "
            "colmap image_undistorter, and give the workspace that it writes."
        )
    fx, fy, cx, cy, *k = (p[0], *p) if camera.model in _ONE_FOCAL_LENGTH else p
    if not (0 < fx < _LARGEST and 0 < fy < _LARGEST and all(abs(x) < _LARGEST for x in (cx, cy, *k))):
        raise DataError(
            f"{what}: has a camera of {', '.join(f'{x:g}' for x in p)}, which is invalid; the file is damaged."
        )
    if not 0 < camera.width * camera.height <= LARGEST:
        raise DataError(f"{what}: has a camera of {camera.width}x{camera.height} pixels; the file is damaged.")
    lens = None
    if camera.model.endswith("FISHEYE"):
        lens = Lens("fisheye", (*k, 0.0, 0.0, 0.0)[:4])
    elif any(k):
        lens = Lens("radial", (*k, 0.0, 0.0, 0.0)[:4] if len(k) < 4 else tuple(k))
    return Intrinsics(fx, fy, cx, cy, camera.width, camera.height, lens)


class ModelFrames(PosedList):
    """The frames of a model, in the order of their names."""

    def __init__(
        self,
        model: Model,
        images: Path,
        depth: Callable[[str], tuple[NDArray[np.float32], str]],
        cameras: Cameras | None = None,
    ) -> None:
        """``depth``: image name -> depth (h, w) in the poses' unit and what errors call it; raises FrameError.

        ``images`` holds the images; ``cameras`` stands for what the model says about all of them. Raises DataError
        for a lens that cannot be undone and for names that lead out of ``images``.
        """
        self._colors = {name: listed_file(images, name, model.images_file) for name in model.images}
        self._files = frame_names(model.images, model.images_file)
        what = str(model.images_file)
        super().__init__(list(self._files), self._read, lambda name: self._placed(self._files[name]), cameras, what)
        used = {} if cameras else {image.camera for image in model.images.values()}
        self._own = {k: same_camera(intrinsics(model.cameras[k], str(model.cameras_file))) for k in used}
        self._model, self._depth, self._given = model, depth, cameras

    def _placed(self, name: str) -> NDArray[np.float64]:
        image, what = self._model.images[name], f"{self._model.images_file}: {name}"
        if not all(abs(x) < _FARTHEST for x in (*image.rotation, *image.translation)):  # also of nan
            raise FrameError(f"{what}: its pose is not finite or too far away to be one; the file is damaged.")
        w, x, y, z = image.rotation
        return invert_array(pose_of_quaternion(image.translation, (x, y, z, w), what))

    def _read(self, name: str) -> Frame:
        image = self._files[name]
        pose = self._placed(image)
        color = read_color(self._colors[image])
        depth, depth_file = self._depth(image)
        cameras = self._given or self._own[self._model.images[image].camera]
        cameras = registered(cameras, color.shape, depth.shape, depth_file)
        origin = Origin(str(self._colors[image]), depth_file, f"{self._model.images_file}: {image}")
        return build_frame(name, color, depth, pose, cameras, origin)


class _Bytes:
    """A binary file from its start to its end; nothing is allocated beyond that."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._left = os.fstat(file.fileno()).st_size

    def take(self, layout: str) -> tuple[float, ...]:
        """Numbers of a layout of :mod:`struct`."""
        size = struct.calcsize(layout)
        self._reserve(size)
        data = self._file.read(size)
        if len(data) != size:
            raise self._cut_off()
        return struct.unpack(layout, data)

    def skip(self, size: int) -> None:
        self._reserve(size)
        self._file.seek(size, os.SEEK_CUR)

    def name(self) -> str:
        """Characters up to the next zero byte."""
        start = self._file.tell()
        text, end, _ = self._file.read(min(_LONGEST, self._left)).partition(b"\0")
        if not end:
            raise DataError(f"{self._path}: has an unterminated name; the file is damaged.")
        self._reserve(len(text) + 1)
        self._file.seek(start + len(text) + 1)
        return _decoded(text, self._path)

    def _reserve(self, size: int) -> None:
        if size > self._left:
            raise self._cut_off()
        self._left -= size

    def _cut_off(self) -> DataError:
        return DataError(f"{self._path}: is truncated or damaged: it states more data than it has.")


_Parts = tuple[dict[int, ModelCamera], list[tuple[str, ModelImage]]]  # cameras by their ids, and named images


def _read_binary(cameras_file: Path, images_file: Path) -> _Parts:
    cameras: dict[int, ModelCamera] = {}
    images: list[tuple[str, ModelImage]] = []
    with cameras_file.open("rb") as file:
        data = _Bytes(file, cameras_file)
        for _ in range(int(data.take("<Q")[0])):
            camera, number, width, height = (int(x) for x in data.take("<IiQQ"))
            if not 0 <= number < len(_MODELS):
                raise DataError(
                    f"{cameras_file}: camera {camera} is of model number {number}; known are 0..{len(_MODELS) - 1}."
                )
            model, count = _MODELS[number]
            cameras[camera] = ModelCamera(model, width, height, data.take(f"<{count}d"))
    with images_file.open("rb") as file:
        data = _Bytes(file, images_file)
        for _ in range(int(data.take("<Q")[0])):
            _, *pose, own = data.take("<I7dI")
            name = data.name()
            data.skip(24 * int(data.take("<Q")[0]))
            images.append((name, ModelImage(int(own), tuple(pose[:4]), tuple(pose[4:]))))
    return cameras, images


def _read_texts(cameras_file: Path, images_file: Path) -> _Parts:
    cameras: dict[int, ModelCamera] = {}
    images: list[tuple[str, ModelImage]] = []
    counts = dict(_MODELS)
    with cameras_file.open("rb") as file:
        for line in filter(_says_something, _lines(file)):
            words = _decoded(line, cameras_file).split()
            count = counts.get(words[1]) if len(words) > 1 else None
            if count is not None and len(words) != 4 + count:
                raise DataError(
                    f"{cameras_file}: a line has {len(words)} words ({' '.join(words)[:80]}), expected {4 + count}."
                )
            camera, width, height = _whole([words[0], *words[2:4]], 3, cameras_file)
            cameras[camera] = ModelCamera(words[1], width, height, _numbers(words[4:], cameras_file))
    with images_file.open("rb") as file:
        lines = _lines(file)
        for line in filter(_says_something, lines):
            words = _decoded(line, images_file).split(maxsplit=9)
            if len(words) != 10:
                raise DataError(f"{images_file}: a line has {len(words)} words ({' '.join(words)[:80]}), expected 10.")
            pose, (own,) = _numbers(words[1:8], images_file), _whole(words[8:9], 1, images_file)
            next(lines, None)  # its points, of which there may be none
            images.append((words[9].strip(), ModelImage(own, pose[:4], pose[4:])))
    return cameras, images


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines without their ends; of longer ones than any that is wanted only the beginning."""
    while line := file.readline(_LONGEST):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST)
        yield line.rstrip()


def _says_something(line: bytes) -> bool:
    return bool(line) and not line.lstrip().startswith(b"#")


def _decoded(text: bytes, path: Path) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is damaged: {text[:40]!r} is no text.") from error


def _numbers(words: list[str], path: Path) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words)
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}).") from error


def _whole(words: list[str], count: int, path: Path) -> tuple[int, ...]:
    if len(words) != count or not all(word.isascii() and word.isdecimal() and len(word) < 20 for word in words):
        raise DataError(f"{path}: is damaged: {' '.join(words)[:80]!r} should be {count} whole numbers.")
    return tuple(int(word) for word in words)

"""Frames that lie as single files: image, depth and pose files -> Frame, with every way they can be damaged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid
from pri3d.recordings._shared.cameras import Cameras
from pri3d.recordings._shared.scenes import Origin, build_frame
from pri3d.types import Frame

LARGEST = 10**8  #: pixels of an image; a damaged header can claim any size
_FARTHEST = 1e6  # metres; beyond it a pose is damaged text


class HasId(Protocol):
    """What sorting needs of a scene."""

    id: str


Named = TypeVar("Named", bound=HasId)


class FrameFiles(NamedTuple):
    """Where the parts of one frame lie."""

    color: Path
    depth: Path
    pose: Path
    label: Path | None = None
    instance: Path | None = None


class FileScene:
    """A scene (the protocol of :mod:`pri3d.recordings`) of single files."""

    def __init__(
        self,
        scene_id: str,
        files: dict[str, FrameFiles],
        cameras: Cameras,
        mesh: Path | None = None,
        classes: int | None = None,
    ) -> None:
        """``files``: frame name -> files; ``classes``: number of label ids, None where it is not stated."""
        self.id = scene_id
        self.names: Sequence[str] = sorted(files)
        self._files = files
        self._cameras = cameras
        self._mesh = mesh
        self._classes = classes

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError naming the file that is missing or damaged."""
        name = self.names[index]
        return load_frame(name, self._files[name], self._cameras, self._classes)

    def pose(self, index: int) -> NDArray[np.float64]:
        """Read ``world_from_camera`` (4, 4) alone. Raises FrameError naming a pose file that is missing or damaged."""
        return self._cameras.world_from_color(read_pose(self._files[self.names[index]].pose))

    def mesh(self) -> Path | None:
        """Return the scene's triangle mesh in world metres, None where there is none."""
        return self._mesh if self._mesh is not None and self._mesh.is_file() else None


def load_frame(name: str, files: FrameFiles, cameras: Cameras, classes: int | None = None) -> Frame:
    """Read one frame. Raises FrameError naming the file where any part is missing, damaged or of another size."""
    pose = read_pose(files.pose)
    color = read_color(files.color)
    depth = read_depth(files.depth, cameras.depth_scale)
    height, width = color.shape[:2]
    cameras.color.of_image(width, height, str(files.color))  # before labels are blamed for another size
    return build_frame(
        name,
        color,
        depth,
        pose,
        cameras,
        Origin(str(files.color), str(files.depth), str(files.pose)),
        label=read_label(files.label, (height, width), classes) if files.label else None,
        instance=read_instance(files.instance, (height, width)) if files.instance else None,
    )


def read_image(path: Path, ids: bool = False) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode an image whole: 16-bit ones as uint16 (H, W), others as uint8 (H, W, 3) RGB, or (H, W) for ``ids``.

    Raises FrameError for a missing, damaged, truncated or absurdly large file.
    """
    if not path.is_file():
        raise FrameError(f"{path}: no such file.")
    return decode_image(path, str(path), ids)


def decode_image(
    source: Path | IO[bytes],
    what: str,
    ids: bool = False,
    size: tuple[int, int] | None = None,
    formats: tuple[str, ...] | None = None,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """:func:`read_image` of a file or of bytes, which errors call ``what``.

    ``size`` is the width and height that it must have and ``formats`` are pillow's names of those it may have; both
    are looked at before anything is decoded.
    """
    try:
        with Image.open(source, formats=formats) as image:
            if image.width * image.height > LARGEST:
                raise FrameError(f"{what}: claims to be {image.width}x{image.height}; the file is damaged.")
            if size is not None and image.size != size:
                raise FrameError(f"{what}: is {image.width}x{image.height}, stated is {size[0]}x{size[1]}.")
            if image.mode.startswith(("I", "F")):
                return _sixteen_bits(np.asarray(image), what)
            if ids and image.mode not in ("L", "P", "1"):
                raise FrameError(f"{what}: holds colours ({image.mode}), expected one number a pixel.")
            return np.array(image if ids and image.mode != "1" else image.convert("L" if ids else "RGB"))
    except FrameError:
        raise
    except Exception as error:  # decoders raise what they like on damaged bytes
        raise FrameError(f"{what}: damaged or truncated image ({error}).") from error


def _sixteen_bits(values: NDArray[np.generic], what: str) -> NDArray[np.uint16]:
    if values.dtype.kind not in "iu" or (values.size and (values.min() < 0 or values.max() > 65535)):
        raise FrameError(f"{what}: holds {values.dtype} values, expected 16-bit unsigned ones.")
    return values.astype(np.uint16)


def read_color(path: Path) -> NDArray[np.uint8]:
    """Read RGB (H, W, 3). Raises FrameError for a missing or damaged file and for one of 16 bits."""
    return eight_bits(read_image(path), str(path))


def eight_bits(color: NDArray[np.uint8] | NDArray[np.uint16], what: str) -> NDArray[np.uint8]:
    """Return the RGB (H, W, 3) that an image is. Raises FrameError for one of 16 bits."""
    if color.dtype != np.uint8:
        raise FrameError(f"{what}: a 16-bit image is no colour image; is it the depth?")
    return color.astype(np.uint8, copy=False)


def read_depth(path: Path, scale: float) -> NDArray[np.float32]:
    """Read 16-bit depth (H, W) in metres, ``scale`` metres per unit; 0 and 65535 are invalid and become 0.

    Raises FrameError for a missing or damaged file and for one of 8 bits.
    """
    raw = read_image(path)
    if raw.dtype != np.uint16:
        raise FrameError(f"{path}: depth must be a 16-bit image; this one has 8 bits, too few for metres.")
    return in_metres(raw, scale)


def in_metres(raw: NDArray[np.uint8] | NDArray[np.uint16], scale: float) -> NDArray[np.float32]:
    """Depth (H, W) of ``scale`` metres per unit -> metres; 0 and 65535 are invalid and become 0."""
    return np.array(np.where(raw == 65535, 0, raw) * scale, dtype=np.float32)


def read_label(path: Path, shape: tuple[int, int], classes: int | None) -> NDArray[np.uint8]:
    """Read class ids (H, W), 255 = ignored. Raises FrameError for another size or ids beyond ``classes``."""
    label = _ids(path, shape)
    largest = int(label[label != 255].max(initial=0))
    if largest > 255 or (classes is not None and largest >= classes):
        named = f"{classes} classes are named" if classes is not None else "labels end at 254"
        raise FrameError(f"{path}: holds class id {largest}, but {named}; 255 means ignored.")
    return label.astype(np.uint8)


def read_instance(path: Path, shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Read instance ids (H, W), 0 = none. Raises FrameError for a damaged file or one of another size."""
    return _ids(path, shape).astype(np.uint16)


def _ids(path: Path, shape: tuple[int, int]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    ids = read_image(path, ids=True)
    if ids.shape != shape:
        raise FrameError(f"{path}: is {ids.shape[1]}x{ids.shape[0]}, the colour image {shape[1]}x{shape[0]}.")
    return ids


def read_pose(path: Path) -> NDArray[np.float64]:
    """Read 16 numbers, a rigid camera-to-world matrix (4, 4), metres. Raises FrameError where they are not that."""
    return check_rigid(read_matrix(path, (4, 4)), str(path))


def read_matrix(path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Read a matrix as whitespace-separated text. Raises FrameError for a missing file and for other contents."""
    if not path.is_file():
        raise FrameError(f"{path}: no such file.")
    try:
        numbers = np.array([float(word) for word in path.read_text(encoding="utf-8").split()])
    except ValueError as error:
        raise FrameError(f"{path}: is not a matrix of numbers ({error}).") from error
    if numbers.size != shape[0] * shape[1]:
        raise FrameError(f"{path}: holds {numbers.size} numbers, expected {shape[0]} x {shape[1]}.")
    if (np.abs(numbers) > _FARTHEST).any() and not np.isinf(numbers).any():
        raise FrameError(f"{path}: holds {np.abs(numbers).max():g}; the text is damaged.")
    return numbers.reshape(shape)


def clean_id(text: str) -> str:
    """Return ``text`` as a scene id: other characters than letters, digits, '-', '_' and '.' become '_'."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".") or "scene"


def check_scenes(path: Path, scenes: Sequence[FileScene], looked_for: str) -> list[FileScene]:
    """Sort scenes by id. Raises DataError where there is none, one is empty or two have the same id."""
    for scene in scenes:
        if not scene.names:
            raise DataError(f"{path}: scene {scene.id} has no frame. Looked for {looked_for}.")
    return sort_scenes(path, scenes, looked_for)


def sort_scenes(path: Path, scenes: Sequence[Named], looked_for: str) -> list[Named]:
    """Sort scenes by id without opening any. Raises DataError where there is none or two have the same id."""
    if not scenes:
        raise DataError(f"{path}: holds no scene. Looked for {looked_for}.")
    ids = [scene.id for scene in scenes]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise DataError(f"{path}: two folders give the scene id {', '.join(twice)}; rename one.")
    return sorted(scenes, key=lambda scene: scene.id)

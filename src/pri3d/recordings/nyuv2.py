"""NYU Depth v2 (Silberman et al. 2012): single colour and depth images, which have no poses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from pri3d.errors import DataError, FrameError
from pri3d.recordings import Reader
from pri3d.recordings._shared.cameras import Cameras, from_matrix, same_camera
from pri3d.recordings._shared.files import Origin, build_frame, read_color, read_depth
from pri3d.recordings._shared.nyu_mat import COLOR, MAT, MatFile, mat_file, numbered, official_train
from pri3d.recordings._shared.scenes import FrameList, LazyScene
from pri3d.types import Frame

_DEPTH = ("train/depth", "val/depth", "test/depth", "depth")
_LABELS = ("label40", "labels13_train", "labels13_test", "labels13")
#: The Kinect's colour camera as the data set's toolbox states it for 640 x 480.
_MATRIX = ((518.857901, 0, 325.582449), (0, 519.469611, 253.736166), (0, 0, 1))


class NYUv2Reader(Reader):
    """nyu_depth_v2_labeled.mat (or a folder holding it), or a folder of images exported from it.

    Exported: .png or .jpg in train/color, val/color, test/color or image, and 16-bit depth in millimetres as .png in
    train/depth, val/depth, test/depth or depth. The number that ends a file name is the image's of the .mat, counted
    from 1, and pairs colour with depth. Of the .mat the measured depth is read (``rawDepths``), else the filled-in one.
    Labels are not: fine-tuning reads them from the same files.

    The images have no poses; the 795 of the official training set are one scene, the 654 of the test set another,
    which ``split`` calls val or test. Depth is registered to colour. The camera is the toolbox's for 640 x 480,
    calibrated with a tool that counts pixel centres at integers, so cx and cy get 0.5 more on our grid; images of
    another size need a cameras.yaml.
    """

    looks_for: ClassVar[str] = f"{MAT}, or depth with train/color, or with image and label40 or labels13 (NYUv2)"
    suffixes: ClassVar[tuple[str, ...]] = (".mat",)
    splits: ClassVar[bool] = True
    takes_cameras: ClassVar[bool] = True

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether it is the .mat file, holds it, or holds exported images with their depth."""
        if path.is_file():
            return path.name == MAT
        if mat_file(path) is not None:
            return True
        colors = [name for name in COLOR if (path / name).is_dir()]
        known = colors != ["image"] or any((path / name).is_dir() for name in _LABELS)
        return bool(colors) and known and any((path / name).is_dir() for name in _DEPTH)

    def scenes(self) -> Sequence[LazyScene]:
        """Return the scenes of the split; none is opened yet, so that asking one for names may raise DataError."""
        wanted = {"train": ["train"], "all": ["test", "train"]}.get(self.split, ["test"])
        return [
            LazyScene(f"nyuv2-{part}", lambda part=part: self._open(part), posed=False, split=part)  # type: ignore[misc]
            for part in wanted
        ]

    def _open(self, part: str) -> FrameList:
        mat = mat_file(self.path)
        camera = from_matrix(np.array(_MATRIX), "NYUv2")._replace(width=640, height=480)
        cameras = self.cameras or same_camera(camera)
        images = _Mat(mat, cameras) if mat is not None else _Exported(self.path, cameras)
        numbers = [n for n in images.numbers if (n in official_train()) == (part == "train")]
        if not numbers:
            raise DataError(f"{self.path}: holds no image of the official {part} set. Choose another --split.")
        return FrameList([f"{number:04d}" for number in numbers], images.load)


class _Mat:
    """Frames of the .mat file."""

    def __init__(self, path: Path, cameras: Cameras) -> None:
        self._file = MatFile(path)
        self._cameras = cameras
        self.numbers = range(1, self._file.count + 1)

    def load(self, name: str) -> Frame:
        what = f"{self._file.path}: image {name}"
        try:
            color, depth = self._file.color(int(name)), self._file.depth(int(name))
        except DataError as error:
            raise FrameError(str(error)) from error
        return build_frame(name, color, depth, np.eye(4), self._cameras, Origin(what, f"{what}: depth", what))


class _Exported:
    """Frames of exported files."""

    def __init__(self, path: Path, cameras: Cameras) -> None:
        self.path = path
        self._colors, self._depths = numbered(path, COLOR), numbered(path, _DEPTH)
        self._cameras = cameras
        self.numbers = sorted(self._colors)

    def load(self, name: str) -> Frame:
        path, depth = self._colors[int(name)], self._depths.get(int(name))
        if depth is None:
            raise FrameError(f"{path}: has no depth image of the same number. Looked in {', '.join(_DEPTH)}.")
        origin = Origin(str(path), str(depth), str(path))
        pixels = read_depth(depth, self._cameras.depth_scale)
        return build_frame(name, read_color(path), pixels, np.eye(4), self._cameras, origin)

"""Plain colour images: no depth, no cameras, no poses. For objectives that learn from single images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pri3d.errors import DataError, FrameError
from pri3d.recordings import Reader
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, same_camera
from pri3d.recordings._shared.files import LARGEST, Origin, build_frame
from pri3d.recordings._shared.scenes import FrameList, LazyScene, sort_scenes
from pri3d.recordings._shared.text import absolute, clean_id
from pri3d.types import Frame

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TRIED = 1000  # files that detection looks at
_BESIDE = ("cameras.yaml",)  # what may lie among the images


class ImagesReader(Reader):
    """A folder of images and nothing else, or folders of them at any depth; every folder with images is a scene.

    .bmp, .jpg, .png, .ppm, .tif and .webp, turned upright as their EXIF data say; hidden files do not count. A scene
    has one size, that of its first readable image: others are cut in the middle to its shape and resized. There is no
    depth, and the camera is a nominal one (as long a focal length as the image is wide, its centre in the middle)
    unless a cameras.yaml states it. Neither poses nor unit are known.
    """

    looks_for: ClassVar[str] = "images and no other file, in the folder or in folders below (images alone)"
    takes_cameras: ClassVar[bool] = True
    last_resort: ClassVar[bool] = True

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the first thousand files of the folder, and of those below, are images and nothing else."""
        found = [path.suffix.lower() in _SUFFIXES for path in islice(_files(path), _TRIED)]
        return bool(found) and all(found)

    def scenes(self) -> Sequence[LazyScene]:
        """Return every folder with images as a scene, sorted by id. Raises DataError where there is none."""
        folders: dict[Path, list[Path]] = {}
        for path in _files(self.path):
            if path.suffix.lower() in _SUFFIXES:
                folders.setdefault(path.parent, []).append(path)
        scenes = [self._scene(folder, images) for folder, images in folders.items()]
        return sort_scenes(self.path, scenes, self.looks_for)

    def _scene(self, folder: Path, images: list[Path]) -> LazyScene:
        parts = folder.relative_to(self.path).parts or (absolute(self.path).name,)
        return LazyScene(clean_id("-".join(parts)), lambda: self._open(images), posed=False, metric=False)

    def _open(self, images: list[Path]) -> FrameList:
        """Raises DataError where no image is readable."""
        size, first = None, ""  # of the first readable image
        for path in images:
            try:
                size = _read(path).size
                break
            except FrameError as error:
                first = first or str(error)
        if size is None:
            raise DataError(f"{images[0].parent}: none of its {len(images)} images is readable. The first: {first}")
        cameras = self.cameras or same_camera(Intrinsics(size[0], size[0], size[0] / 2, size[1] / 2))
        stems = {path.stem for path in images}
        files = {path.stem if len(stems) == len(images) else path.name: path for path in images}
        return FrameList(list(files), lambda name: _load(name, files[name], size, cameras))


def _files(path: Path) -> Iterator[Path]:
    """Every file below that counts, folder by folder."""
    for place, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name not in _BESIDE:
                yield Path(place, name)


def _load(name: str, path: Path, size: tuple[int, int], cameras: Cameras) -> Frame:
    color: NDArray[np.uint8] = np.asarray(ImageOps.fit(_read(path), size, Image.Resampling.BICUBIC))
    return build_frame(name, color, None, np.eye(4), cameras, Origin(str(path), str(path), str(path)))


def _read(path: Path) -> Image.Image:
    """Decode an image whole: upright RGB. Raises FrameError for a damaged or absurdly large one, or one of 16 bits."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST:
                raise FrameError(f"{path}: claims to be {image.width}x{image.height}; the file is damaged.")
            if image.mode.startswith(("I", "F")):
                raise FrameError(f"{path}: a 16-bit image is not a colour image; is it a depth image?")
            return ImageOps.exif_transpose(image).convert("RGB")
    except FrameError:
        raise
    except Exception as error:  # decoders raise what they like on damaged bytes
        raise FrameError(f"{path}: damaged or truncated image ({error}).") from error

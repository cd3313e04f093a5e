"""COLMAP workspaces (Schoenberger et al. 2016): sparse models with the depth maps of multi-view stereo, or others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.recordings import Reader
from pri3d.recordings._shared.cameras import Cameras
from pri3d.recordings._shared.colmap_model import MEGADEPTH, ModelFrames, model_files, read_model
from pri3d.recordings._shared.files import LARGEST, read_depth
from pri3d.recordings._shared.scenes import LazyScene, sort_scenes
from pri3d.recordings._shared.text import absolute, clean_id

_MAPS = "stereo/depth_maps"
_KINDS = ("geometric", "photometric")  # the first are the ones that agree with each other
_HEADER = re.compile(rb"([0-9]{1,9})&([0-9]{1,9})&([0-9]{1,9})&")


class ColmapReader(Reader):
    """WORKSPACE/images, sparse/0 or sparse, and stereo/depth_maps/NAME.geometric.bin, or depth/NAME.png.

    The model is cameras.bin and images.bin, or the same as .txt (:mod:`pri3d.recordings._shared.colmap_model`); NAME is
    an image's name in it, folders and ending included. The recording is a workspace, one whose ``dense`` or
    ``dense/0``, ``dense/1`` ... are, or a folder of some; each is a scene. Frames are in the order of the images'
    names.

    A depth map is ``width&height&channels&`` as text, then float32, little-endian, columns fastest: row after row as
    an image; z in the unit of the poses, 0 = invalid; the geometric ones go before the photometric. 16-bit images
    depth/NAME.png (or with NAME's own ending replaced) go before both; they are seen by the image's camera, distorted
    as it is, in millimetres. Depth of either kind may be smaller than its image.

    Each image has the camera that the model gives it. Distortion of the radial, OpenCV's and the fisheye models is
    undone; others are refused. A cameras.yaml stands for all cameras. The unit of a reconstruction is not known, so
    the scene is not metric, unless its depth is 16-bit and a cameras.yaml lies there or is given: whoever states the
    cameras and the depth's unit has scaled the poses to metres.
    """

    parts = (("images",), ("sparse", "sparse/0"), (_MAPS, "depth"))
    looks_for: ClassVar[str] = "images with sparse/0 or sparse, cameras and images as .bin or .txt (COLMAP)"
    takes_cameras: ClassVar[bool] = True

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder is a workspace or holds one."""
        return next(_workspaces(path), None) is not None

    def scenes(self) -> Sequence[LazyScene]:
        """Return every workspace as a scene, sorted by id; none is opened. Raises DataError where there is none."""
        return sort_scenes(
            self.path, [self._scene(name, folder) for name, folder in _workspaces(self.path)], self.looks_for
        )

    def _scene(self, name: str, folder: Path) -> LazyScene:
        stated = self.stated(folder)
        metric = stated is not None and (folder / "depth").is_dir()
        return LazyScene(name, lambda: _open(folder, stated), metric=metric)


def _open(folder: Path, cameras: Cameras | None) -> ModelFrames:
    """Raises DataError where the model is missing or damaged, or there is no depth at all."""
    files = model_files(folder)
    if files is None:
        raise DataError(f"{folder}: its sparse model was not found; cameras and images as .bin or .txt were expected.")
    if not _has_depth(folder):
        raise DataError(
            f"{folder}: has no depth. Run colmap image_undistorter and patch_match_stereo and give the dense workspace "
            "that they write, or put 16-bit images in millimetres into a folder depth."
        )
    scale = cameras.depth_scale if cameras else 0.001
    return ModelFrames(read_model(*files), folder / "images", lambda name: _depth(folder, name, scale), cameras)


def _depth(folder: Path, name: str, scale: float) -> tuple[NDArray[np.float32], str]:
    """Depth of an image and the file it is from. Raises FrameError where it is missing or damaged."""
    png = folder / "depth" / f"{name}.png"
    for path in (png, (folder / "depth" / name).with_suffix(".png")):
        if path.is_file():
            return read_depth(path, scale), str(path)
    maps = [folder / _MAPS / f"{name}.{kind}.bin" for kind in _KINDS]
    for path in maps:
        if path.is_file():
            return read_depth_map(path), str(path)
    raise FrameError(f"{maps[0] if (folder / _MAPS).is_dir() else png}: no such file.")


def read_depth_map(path: Path) -> NDArray[np.float32]:
    """Read a depth map (h, w) of multi-view stereo in the model's unit; what is no depth becomes 0.

    Raises FrameError where the file is damaged or cut off; nothing is allocated for pixels that it does not have.
    """
    try:
        with path.open("rb") as file:
            header = _HEADER.match(file.read(40))
            if header is None:
                raise FrameError(f"{path}: does not begin with width&height&channels&; it is not a depth map.")
            width, height, channels = (int(number) for number in header.groups())
            size = path.stat().st_size - header.end()
            if channels != 1 or not 0 < width * height <= LARGEST or size != 4 * width * height:
                raise FrameError(
                    f"{path}: says it is {width}x{height} of {channels} channels and has {size} bytes of pixels; it "
                    f"is damaged or truncated, or is not a depth map."
                )
            file.seek(header.end())
            depth = np.frombuffer(file.read(size), "<f4")
    except OSError as error:
        raise FrameError(f"{path}: cannot be read ({error}).") from error
    if len(depth) != width * height:
        raise FrameError(f"{path}: is truncated.")
    return np.where((depth > 0) & (depth < np.inf), depth, np.float32(0)).astype(np.float32).reshape(height, width)


def _workspaces(path: Path) -> Iterator[tuple[str, Path]]:
    """Scene ids and workspaces: the recording's own, else those of the folders in it."""
    own = _resolved(path)
    yield from own
    if not own:
        for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield from _resolved(folder)


def _resolved(folder: Path) -> list[tuple[str, Path]]:
    """The folder where it is a workspace with depth, else its dense ones, else itself where it is one without."""
    name = absolute(folder).name
    candidates = [folder, folder / "dense", *sorted((folder / "dense").glob("[0-9]*"))]
    found = []
    for candidate in candidates:
        if not (candidate / "images").is_dir() or model_files(candidate) is None:
            continue
        # MegaDepth's depth, or nerfstudio's list without any depth, are for other readers.
        megadepth = next((candidate / _MAPS).glob("*.h5"), None) is not None
        listed = (candidate / "transforms.json").is_file() or candidate.resolve().parent.name == MEGADEPTH
        if not megadepth and (_has_depth(candidate) or not listed):
            found.append(candidate)
    dense = [candidate for candidate in found if _has_depth(candidate)]
    chosen = [folder] if folder in dense else dense or found[:1]
    if len(chosen) == 1:
        return [(clean_id(name), chosen[0])]
    return [(clean_id(f"{name}-{candidate.name}"), candidate) for candidate in chosen]


def _has_depth(folder: Path) -> bool:
    return (folder / "depth").is_dir() or (folder / _MAPS).is_dir()

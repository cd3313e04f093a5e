"""MegaDepth (Li and Snavely 2018): photographs of landmarks, as its users undistort them to have poses and cameras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.recordings import Reader
from pri3d.recordings._shared.cameras import Cameras
from pri3d.recordings._shared.colmap_model import MEGADEPTH, ModelFrames, model_files, read_model
from pri3d.recordings._shared.files import LARGEST
from pri3d.recordings._shared.scenes import LazyScene, entries, sort_scenes
from pri3d.recordings._shared.text import absolute, clean_id

_TREE = "MegaDepth_v1"
_PARENTS = (f"phoenix/S6/zl548/{_TREE}", _TREE)  # the archive's own path, and without what leads there
_MAPS = "stereo/depth_maps"
_DEPTHS = "dense0/depths"
_ORDINAL = -1.0
_MOST_INFLATED = 1100  # bytes that a compressed byte can become


class MegaDepthReader(Reader):
    """Undistorted_SfM/SCENE/images and sparse, as ``colmap image_undistorter`` writes them, with depth as .h5.

    The depth of SCENE/images/NAME.jpg is the data set ``depth`` of SCENE/stereo/depth_maps/NAME.h5 (or NAME.jpg.h5),
    else of phoenix/S6/zl548/MegaDepth_v1/SCENE/dense0/depths/NAME.h5, beside Undistorted_SfM; the first folders of
    that path may be left out. The recording is what holds Undistorted_SfM, that folder, or one SCENE. Poses and cameras
    are those of the sparse model (:mod:`pri3d.recordings._shared.colmap_model`; sparse or sparse/0, .bin or .txt).
    MegaDepth_v1 alone states no poses, and is refused with the way to get them; scene_info/*.npz, which holds pickled
    objects, is never opened.

    Depth is z of the undistorted image in the unit of the model, which is not known: scenes are not metric. What is
    not more than 0 is invalid. Files that hold -1 only order the pixels and are refused; images without a file of
    depth are left out. A cameras.yaml stands for all cameras.
    """

    looks_for: ClassVar[str] = f"{MEGADEPTH}/SCENE with images, sparse and .h5 depth (MegaDepth, undistorted)"
    takes_cameras: ClassVar[bool] = True

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder holds undistorted scenes or is one, or has the archive's own layout."""
        return next(_scenes(path), None) is not None or _archive(path) is not None

    def scenes(self) -> Sequence[LazyScene]:
        """Return the scenes, sorted by id; none is opened. Raises DataError where there is none with poses."""
        found = list(_scenes(self.path))
        archive = _archive(self.path)
        if not found and archive is not None:
            raise DataError(
                f"{archive}: has images and depth, but no poses. Run colmap image_undistorter on the models of "
                f"MegaDepth_SfM, into {MEGADEPTH}/SCENE beside {archive.name}, and give the folder that holds both."
            )
        scenes = [
            LazyScene(
                clean_id(absolute(folder).name),
                lambda folder=folder: _open(folder, self.stated(folder)),  # type: ignore[misc]
                metric=False,
            )
            for folder in found
        ]
        return sort_scenes(self.path, scenes, self.looks_for)


def _open(folder: Path, cameras: Cameras | None) -> ModelFrames:
    """Raises DataError where the model is missing or damaged."""
    files = model_files(folder)
    if files is None:
        raise DataError(f"{folder}: its sparse model was not found; cameras and images as .bin or .txt were expected.")
    model = read_model(*files)
    return ModelFrames(model, folder / "images", lambda name: _depth(folder, name), cameras)


def _depth(folder: Path, name: str) -> tuple[NDArray[np.float32], str]:
    """Depth of an image and its file. Raises FrameError where it is missing, damaged or only ordinal."""
    depths = [folder / _MAPS, *_tree_depths(folder)]
    stem = str(Path(name).with_suffix(""))
    candidates = [place / f"{listed}.h5" for place in depths for listed in (stem, name)]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise FrameError(f"{candidates[0]}: no such file; MegaDepth has no depth of this image.")
    return read_h5_depth(path), str(path)


def read_h5_depth(path: Path) -> NDArray[np.float32]:
    """Read the data set ``depth`` (h, w) in the model's unit; what is not more than 0 becomes 0.

    Raises FrameError where it is missing or damaged, lies in another file, or holds -1, the mark of ordinal depth.
    """
    try:
        with h5py.File(path, "r") as file:
            depth = _array(file, path)
    except FrameError:
        raise
    except Exception as error:  # each damaged byte makes the library raise another kind of error
        raise FrameError(f"{path}: cannot be read as HDF5 ({error}).") from error
    if (depth == _ORDINAL).any():
        raise FrameError(f"{path}: holds -1: it contains ordinal depth (an order of the pixels), not distances.")
    return np.where((depth > 0) & (depth < np.inf), depth, 0).astype(np.float32)


def _array(file: Any, path: Path) -> NDArray[np.floating[Any]]:
    if not isinstance(file.get("depth", getlink=True), h5py.HardLink):
        raise FrameError(f"{path}: has no dataset named depth in the file itself; other files are not followed.")
    data = file["depth"]
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise FrameError(f"{path}: has no dataset named depth in the file itself; other files are not followed.")
    if data.ndim != 2 or data.dtype.kind != "f" or data.dtype.itemsize > 8:
        raise FrameError(f"{path}: its depth is {data.ndim}-dimensional of {data.dtype}, expected an image of floats.")
    largest = max(data.size, int(np.prod(data.chunks, dtype=np.float64)) if data.chunks else 0)
    room = _MOST_INFLATED * path.stat().st_size // data.dtype.itemsize
    if data.size == 0 or largest > min(LARGEST, room):
        raise FrameError(f"{path}: says its depth is {data.shape[1]}x{data.shape[0]} pixels; the file is damaged.")
    return np.asarray(data[()])


def _scenes(path: Path) -> Iterator[Path]:
    """Undistorted scenes: the folder itself, else those in its Undistorted_SfM, else those in it."""
    if _is_scene(path):
        yield path
        return
    inner = path / MEGADEPTH
    yield from filter(_is_scene, entries(inner if inner.is_dir() else path))


def _is_scene(folder: Path) -> bool:
    """Whether there are images, a model and MegaDepth's depth."""
    if not (folder / "images").is_dir() or model_files(folder) is None:
        return False
    return next((folder / _MAPS).glob("*.h5"), None) is not None or any(d.is_dir() for d in _tree_depths(folder))


def _tree_depths(folder: Path) -> list[Path]:
    """Where the depth of an undistorted scene lies in MegaDepth's own tree, beside Undistorted_SfM."""
    scene = folder.resolve()
    if scene.parent.name != MEGADEPTH:
        return []
    return [scene.parent.parent / parent / scene.name / _DEPTHS for parent in _PARENTS]


def _archive(path: Path) -> Path | None:
    """MegaDepth_v1 of the folder, or the folder itself where it is that or one scene of it; None for none."""
    for folder in (*(path / parent for parent in _PARENTS), path):
        candidates = [folder / "dense0", *(scene / "dense0" for scene in entries(folder))]
        if any((dense / "imgs").is_dir() and (dense / "depths").is_dir() for dense in candidates):
            return folder
    return None

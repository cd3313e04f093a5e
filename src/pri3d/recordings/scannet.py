"""ScanNet v2 (Dai et al. 2017): ``.sens`` scans, folders exported from them, and ``scannet_frames_25k``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import yaml
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid, invert_array
from pri3d.recordings import Reader
from pri3d.recordings._shared.cameras import Cameras, from_matrix
from pri3d.recordings._shared.files import read_matrix
from pri3d.recordings._shared.scenes import FileScene, LazyScene, scenes_of_split, sort_scenes
from pri3d.recordings._shared.sens import SensFile, SensScene
from pri3d.recordings._shared.text import absolute, clean_id
from pri3d.recordings.folder import PARTS, frame_files, is_scannet
from pri3d.types import Frame

#: The benchmark's 20 classes; their ids 0..19 are the places in this list.
# fmt: off
CLASS_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "desk", "curtain", "refrigerator", "shower-curtain", "toilet", "sink", "bathtub", "otherfurniture",
)
# fmt: on
_NYU40 = (*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39)  # their ids in the label images; the other classes are ignored
_BENCHMARK_IDS = np.full(256, 255, np.uint8)  # NYU40 id -> benchmark id (256,), 255 where it is none of the 20
_BENCHMARK_IDS[list(_NYU40)] = np.arange(len(_NYU40))
_DOWNLOAD_FOLDERS = ("scans", "scans_test")  # where ScanNet's download script puts scans


class ScanNetReader(Reader):
    """SCENE/SCENE.sens, exported SCENE/color, depth, pose and intrinsic, or those of scannet_frames_25k.

    Scenes lie in the recording or in its ``scans`` and ``scans_test``, or the recording is one; a scene that has both
    a .sens file and exported frames is read from the .sens file. SCENE_vh_clean_2.ply is its surface. Only the scenes
    of ``split`` are read; those in none of the official lists count as train.

    The intrinsics of the format count pixel centres at integers, so cx and cy get 0.5 more on our grid; those of a
    cameras.yaml do not. Poses are those of the camera whose extrinsic is the identity: the colour camera's in the
    published scans, whose depth is registered to colour. Label images hold NYU40 ids, which become 0..19 (255 for
    the rest). Exported depth is in millimetres.
    """

    looks_for: ClassVar[str] = (
        "SCENE.sens files, or folders color, depth and pose with intrinsic or intrinsics_color.txt (ScanNet)"
    )
    splits: ClassVar[bool] = True
    takes_cameras: ClassVar[bool] = True

    def __init__(self, path: Path, cameras: Path | None = None, split: str = "train") -> None:
        """Raises ConfigError where cameras.yaml cannot be understood, DataError where the given one is missing."""
        super().__init__(path, cameras, split)
        self._found = list(_find(path))
        #: scans are videos; of exported frames some were chosen already
        self.frame_step = 25 if any(source.is_file() for source in self._found) else 1
        labels = any(source.is_dir() and (source / "label").is_dir() for source in self._found)
        self.class_names = CLASS_NAMES if labels else None

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder is a scan or holds some."""
        return next(_find(path), None) is not None

    def scenes(self) -> Sequence[LazyScene]:
        """Return the scenes of the split, sorted by id; none is opened yet. Raises DataError where there is none."""
        scenes = [self._scene(source) for source in self._found]
        return sort_scenes(self.path, scenes_of_split(self.path, scenes, self.split), self.looks_for)

    def _scene(self, source: Path) -> LazyScene:
        folder = source if source.is_dir() else source.parent
        # One name for the scan wherever it lies, so that it is found in the official lists.
        name = clean_id(source.stem if source.is_file() else absolute(source).name)
        scan = source.resolve().stem if source.is_file() else source.resolve().name  # what a link leads to
        mesh = folder / f"{scan}_vh_clean_2.ply"
        split = official_split().get(name) or official_split().get(scan)
        return LazyScene(name, lambda: _open(source, self.stated(folder)), mesh, split=split)


class _LabelledScene(FileScene):
    """Exported frames, whose label images hold NYU40 ids."""

    def frame(self, index: int) -> Frame:
        """Load a frame with its labels as benchmark ids. Raises FrameError as `FileScene`, or for other ids."""
        frame = super().frame(index)
        if frame.label is None:
            return frame
        largest = int(frame.label[frame.label != 255].max(initial=0))
        if largest > 40:
            raise FrameError(
                f"{self.id}: the label image of frame {frame.name} holds id {largest}; expected are NYU40 ids, 0..40."
            )
        return frame._replace(label=_BENCHMARK_IDS[frame.label])


@cache
def official_split() -> Mapping[str, str]:
    """Scan id -> "train", "val" or "test": ScanNet v2's 1201, 312 and 100 scans, each list in the official order."""
    stated = yaml.safe_load((files("pri3d.recordings._shared") / "scannet_splits.yaml").read_text(encoding="utf-8"))
    split = {}
    for name, text in stated.items():
        for word in text.split():
            room, _, scans = word.partition("x")
            split.update({f"scene{int(room):04d}_{scan:02d}": name for scan in range(int(scans or 1))})
    return MappingProxyType(split)


def _find(path: Path) -> Iterator[Path]:
    """Every .sens file and every folder of exported frames: the recording itself, else those in it."""
    here = list(_sources(path))
    yield from here
    if here:
        return
    for folder in _folders(path):
        yield from _sources(folder)
        if folder.name in _DOWNLOAD_FOLDERS:
            for inner in _folders(folder):
                yield from _sources(inner)


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _sources(folder: Path) -> list[Path]:
    scans = sorted(p for p in folder.glob("*.sens") if p.is_file() and not p.name.startswith("."))
    exported = all((folder / part).is_dir() for part in PARTS) and is_scannet(folder)
    return scans or [folder] * exported


def _open(source: Path, cameras: Cameras | None) -> SensScene | FileScene:
    """Raises DataError where there is no frame, or what states the cameras is missing or damaged."""
    if not source.is_dir():
        scan = SensFile(source)
        if cameras is None:
            header = scan.header
            cameras = _cameras(
                (header.color_matrix, header.depth_matrix),
                (header.color_extrinsic, header.depth_extrinsic),
                str(source),
            )._replace(depth_scale=header.depth_scale)
        return SensScene(scan, cameras)
    frames = frame_files(source)
    if not frames:
        raise DataError(f"{source}: has no frame in color/.")
    if cameras is None:
        intrinsic = source / "intrinsic"
        inner = intrinsic.is_dir()
        matrices, extrinsics = [], []
        for camera in ("color", "depth"):
            file = intrinsic / f"intrinsic_{camera}.txt" if inner else source / f"intrinsics_{camera}.txt"
            matrices.append(read_matrix(file, (4, 4)))
            extrinsic = intrinsic / f"extrinsic_{camera}.txt"
            extrinsics.append(read_matrix(extrinsic, (4, 4)) if extrinsic.is_file() else np.eye(4))
        what = str(intrinsic if inner else source)
        cameras = _cameras((matrices[0], matrices[1]), (extrinsics[0], extrinsics[1]), what)
    return _LabelledScene(clean_id(absolute(source).name), frames, cameras)


def _cameras(
    matrices: tuple[NDArray[np.float64], NDArray[np.float64]],
    extrinsics: tuple[NDArray[np.float64], NDArray[np.float64]],
    what: str,
) -> Cameras:
    """Cameras of the intrinsics and extrinsics of colour and depth; each extrinsic leads to the camera of the poses."""
    color, depth = (
        from_matrix(matrix, f"{what}: the {camera} camera")
        for matrix, camera in zip(matrices, ("colour", "depth"), strict=True)
    )
    pose_from_color, pose_from_depth = (
        check_rigid(extrinsic, f"{what}: the extrinsic of the {camera} camera")
        for extrinsic, camera in zip(extrinsics, ("colour", "depth"), strict=True)
    )
    pose_of_depth = not np.allclose(pose_from_color, np.eye(4), atol=1e-6)
    if pose_of_depth and not np.allclose(pose_from_depth, np.eye(4), atol=1e-6):
        raise DataError(f"{what}: neither camera's extrinsic is the identity. State the cameras in a cameras.yaml.")
    return Cameras(color, depth, invert_array(pose_from_color) @ pose_from_depth, pose_of_depth)

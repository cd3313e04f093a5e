"""ARKitScenes (Baruch et al. 2021): the raw and the 3dod subset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid, invert_array
from pri3d.recordings._shared.cameras import Cameras, intrinsics, registered, same_camera
from pri3d.recordings._shared.files import (
    MILLIMETRES,
    Origin,
    build_frame,
    read_color,
    read_depth,
    read_levels,
    read_matrix,
)
from pri3d.recordings._shared.scenes import LazyScene, PosedList, SceneReader, entries
from pri3d.recordings._shared.text import absolute, clean_id, read_rows
from pri3d.types import Frame

_SPLITS = {"Training": "train", "Validation": "val"}  # the data set's folders
_SAME = 0.005  # seconds: a pose so near in time is the image's own; stamps are rounded to milliseconds
_LOST = 0.1  # seconds: an image without a pose so near was taken when tracking was lost
_FRAMES = "_frames"


class _Images(NamedTuple):
    """Which of a scene's folders are read."""

    color: str
    depth: str
    confidence: str | None


_LOW = _Images("lowres_wide", "lowres_depth", "confidence")
_HIGH = _Images("wide", "highres_depth", None)


class ARKitScenesReader(SceneReader):
    """[Training|Validation]/ID, or ID/ID_frames as in 3dod, of

        lowres_wide.traj                    time, rotation (axis-angle) and translation of world to camera, metres
        lowres_wide/ID_TIME.png             colour, 256 x 192
        lowres_depth/ID_TIME.png            16 bits, millimetres, of the same camera
        lowres_wide_intrinsics/ID_TIME.pincam    width height fx fy cx cy; may be a millisecond off
        confidence/ID_TIME.png              0, 1, 2: becomes percent; not in 3dod
        wide, highres_depth, wide_intrinsics     the same, 1920 x 1440, depth of a laser scanner; not in 3dod

    and ID_3dod_mesh.ply beside it: the surface in the world of the poses. Camera axes are OpenCV's; intrinsics count
    pixels from the image's corner (they are a larger image's divided by its scale).

    ``wide`` and ``highres_depth`` are read where both are there and at least half of their images have poses, else
    the low resolution. There are up to 60 images but 10 poses a second: an image's pose is one at most 5 ms away, and
    images between poses are passed over; those with no pose within 0.1 s are frames without one. Known from the
    data set's description and its own loader, which inverts the trajectory; tested on written files.
    """  # noqa: D400, D415 - a layout follows

    parts = (("lowres_wide",), ("lowres_depth",), ("lowres_wide.traj",))
    looks_for: ClassVar[str] = "lowres_wide, lowres_depth and lowres_wide.traj, in ID, ID_frames or Training/ID"
    splits: ClassVar[bool] = True
    frame_step = 8  # of ten poses a second

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether a folder is a video of the data set."""
        return _frames_folder(path) is not None

    @classmethod
    def find(cls, path: Path) -> Iterator[Path]:
        """The recording itself where it is a scene, else those in it or in its Training and Validation."""
        yield from super().find(path)
        for folder in entries(path):
            if folder.name in _SPLITS:
                yield from filter(cls.is_scene, entries(folder))

    def scene(self, source: Path) -> LazyScene:
        """The scene of a source, with its official split."""
        folder = absolute(source)
        name = folder.name.removesuffix(_FRAMES)
        above = folder.parent.parent if folder.name.endswith(_FRAMES) and folder.parent.name == name else folder.parent
        mesh = next((p for p in (f / f"{name}_3dod_mesh.ply" for f in (source, source.parent)) if p.is_file()), None)
        return LazyScene(
            clean_id(name),
            lambda: self.open(source, self.stated(source)),
            mesh,
            split=_SPLITS.get(above.name) or _SPLITS.get(source.resolve().parent.name),
        )

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Open a scene. Raises DataError where its trajectory or its images are missing or damaged."""
        folder = _frames_folder(source) or source
        if not (folder / "lowres_wide.traj").is_file():
            raise DataError(
                f"{folder / 'lowres_wide.traj'}: no such file. The raw and 3dod subsets have it; the one for depth "
                "upsampling has no poses."
            )
        rows = read_rows(folder / "lowres_wide.traj", 7)
        rows = rows[np.isfinite(rows).all(axis=1)]
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        high, low = (_stems(folder, images) for images in (_HIGH, _LOW))
        posed = int((_apart(list(high.values()), rows[:, 0])[1] <= _SAME).sum())
        images, stems = (_HIGH, high) if high and 2 * posed >= len(high) else (_LOW, low)
        nearest, apart = _apart(list(stems.values()), rows[:, 0])
        poses = {
            _name(time): (stem, rows[row] if gap <= _SAME else None)
            for (stem, time), row, gap in zip(stems.items(), nearest, apart, strict=True)
            if gap <= _SAME or gap > _LOST
        }
        if not poses:
            raise DataError(f"{folder}: no image has a pose within {_SAME:g} s in lowres_wide.traj.")
        pose = partial(_pose, folder, poses)
        return PosedList(
            list(poses), lambda name: _load(folder, images, name, poses[name][0], pose, given), pose, given, time=float
        )


_Poses = dict[str, tuple[str, NDArray[np.float64] | None]]  # name of a frame -> its file's stem, its row or None


def _frames_folder(path: Path) -> Path | None:
    """The folder of a scene that holds its images, None where ``path`` is no scene."""
    for folder in (path, path / f"{path.name}{_FRAMES}"):
        if any((folder / kind.color).is_dir() and (folder / kind.depth).is_dir() for kind in (_LOW, _HIGH)):
            return folder
    return None


def _stems(folder: Path, images: _Images) -> dict[str, float]:
    """Stem -> time in seconds of every colour image; at high resolution only of those with depth."""
    depth = {path.stem for path in entries(folder / images.depth)} if images is _HIGH else None
    stems = {}
    for path in entries(folder / images.color):
        time = path.stem.rpartition("_")[2]
        is_time = time.replace(".", "", 1).isdecimal() and time.isascii()
        if path.suffix == ".png" and (depth is None or path.stem in depth) and is_time:
            stems[path.stem] = float(time)
    return stems


def _name(time: float) -> str:
    return f"{time:013.3f}"


def _apart(times: Sequence[float], stamps: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of each time the nearest of the sorted stamps (its index) and how many seconds they are apart."""
    wanted = np.asarray(times, np.float64)
    if not len(stamps):
        return np.zeros(len(wanted), np.int64), np.full(len(wanted), np.inf)
    after = np.searchsorted(stamps, wanted).clip(0, len(stamps) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(stamps[before] - wanted) <= np.abs(stamps[after] - wanted), before, after)
    return nearest, np.abs(stamps[nearest] - wanted)


def _pose(folder: Path, poses: _Poses, name: str) -> NDArray[np.float64]:
    """Camera to world (4, 4), OpenCV axes."""
    what = f"{folder / 'lowres_wide.traj'}: time {name}"
    row = poses[name][1]
    if row is None:
        raise FrameError(f"{what}: has no pose; tracking was lost.")
    camera_from_world = np.eye(4)
    camera_from_world[:3, :3] = Rotation.from_rotvec(row[1:4]).as_matrix()
    camera_from_world[:3, 3] = row[4:7]
    return check_rigid(invert_array(camera_from_world), what)


def _load(
    folder: Path, images: _Images, name: str, stem: str, pose: partial[NDArray[np.float64]], given: Cameras | None
) -> Frame:
    color_path, depth_path = (folder / part / f"{stem}.png" for part in (images.color, images.depth))
    world_from_camera = pose(name)
    color = read_color(color_path)
    depth = read_depth(depth_path, MILLIMETRES if given is None else given.depth_scale)
    origin = Origin(str(color_path), str(depth_path), str(folder / "lowres_wide.traj"))
    cameras = given
    if cameras is None:
        video, _, time = stem.rpartition("_")  # the stamp of the intrinsics may be rounded the other way
        stems = [stem, *(f"{video}_{float(time) + shift:.3f}" for shift in (-0.001, 0.001))]
        pincams = [folder / f"{images.color}_intrinsics" / f"{near}.pincam" for near in stems]
        pincam = next((path for path in pincams if path.is_file()), pincams[0])
        width, height, *camera = read_matrix(pincam, (1, 6))[0].tolist()
        cameras = registered(
            same_camera(intrinsics([*camera, width, height], str(pincam))), color.shape, depth.shape, origin.depth
        )
    return build_frame(
        name,
        color,
        depth,
        world_from_camera,
        cameras,
        origin,
        confidence=None if images.confidence is None else read_levels(folder / images.confidence / f"{stem}.png"),
    )

"""ICL-NUIM (Handa et al. 2014): rendered rooms, as its authors offer them in the layout of the TUM benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import pose_of_quaternion
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, same_camera
from pri3d.recordings._shared.files import load_files
from pri3d.recordings._shared.scenes import PosedList, SceneReader, has_images
from pri3d.recordings._shared.text import inside, read_rows, read_words

UNITS = 5000  #: of the depth images, per metre
_MIRROR = np.diag((1.0, -1.0, 1.0, 1.0))  # y up <-> y down
_LAST = 10**9  # frame numbers


class IclReader(SceneReader):
    """SEQUENCE/rgb/N.png and depth/N.png with associations.txt and one .freiburg file of poses.

    The recording is a sequence (living_room_trajN_frei_png, trajN_frei_png) or a folder of some. A line of
    associations.txt is ``N depth/N.png N rgb/N.png``, in either order; without it equal names belong together. A line
    of livingRoomN.gt.freiburg or trajN.gt.freiburg is ``N tx ty tz qx qy qz qw``; images without a pose (image 0, as
    published) are left out. Depth is along z, 16 bits, 5000 units a metre.

    The renderer's camera has y up and so has its world: both are left-handed, and its calibration has a negative fy
    (481.2, -480, 319.5, 239.5). The PNG images of this layout have their first row at the top, as any. So the pose P
    of the file, camera to world in those frames, becomes M P M with M = diag(1, -1, 1, 1), a rigid motion between
    right-handed frames with y down, and fy becomes +480: points come out where they do with fy = -480 and P, but for
    the mirrored y of the world, in which a mesh of the authors must be mirrored too. This is known from the authors'
    notes on their calibration matrix and from public converters, one of which reports that trajectories estimated on
    these images fit M P M (1.5 % of error) and not P (40 %).

    The intrinsics count pixel centres at integers, so cx and cy get 0.5 more on our grid; those of a cameras.yaml do
    not, and its fy is positive. The images are free of noise, or have it in the sets whose names end in n.
    """

    parts = (("rgb",), ("depth",), ("*.freiburg",))
    looks_for: ClassVar[str] = "folders rgb and depth with a .freiburg file of poses (ICL-NUIM), or such sequences"
    frame_step = 25  # 30 frames a second

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether the folder is a sequence."""
        return has_images(path) and bool(_truths(path))

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Raises DataError where a list is missing or damaged, or no image has a pose."""
        cameras = given or _cameras()
        truth = _truths(source)
        if len(truth) != 1:
            there = ", ".join(p.name for p in truth) or "none"
            raise DataError(f"{source}: needs one .freiburg file of poses, found {there}.")
        images = _images(source)
        rows = {int(row[0]): row[1:] for row in read_rows(truth[0], 8) if 0 <= row[0] < _LAST}
        digits = len(str(max(images, default=0)))
        found = {f"{k:0{digits}d}": k for k in images if k in rows}
        if not found:
            raise DataError(
                f"{source}: no frame is left: none of its {len(images)} images has one of the {len(rows)} poses of "
                f"{truth[0].name}."
            )
        poses = {name: _pose(rows[k]) for name, k in found.items()}
        return PosedList(
            list(found),
            lambda name: load_files(name, *images[found[name]], poses[name], cameras, truth[0]),
            poses.__getitem__,
            cameras,
            str(truth[0]),
        )


def _truths(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.freiburg") if p.is_file() and not p.name.startswith("."))


def _cameras() -> Cameras:
    camera = Intrinsics(481.2, 480.0, 319.5 + 0.5, 239.5 + 0.5, 640, 480)
    return same_camera(camera)._replace(depth_scale=1 / UNITS)


def _pose(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """World from camera (4, 4) with y down, of tx ty tz qx qy qz qw (7,); NaN where the row is no pose."""
    try:
        return _MIRROR @ pose_of_quaternion(row[:3], row[3:], "") @ _MIRROR
    except FrameError:  # of this one frame: it is refused when it is asked for
        return np.full((4, 4), np.nan)


def _images(folder: Path) -> dict[int, tuple[Path, Path]]:
    """Frame number -> colour and depth image. Raises DataError where associations.txt is damaged."""
    listed = folder / "associations.txt"
    if not listed.is_file():
        files = [p for p in (folder / "rgb").glob("*.png") if p.stem.isdecimal()]
        return {int(p.stem): (p, folder / "depth" / p.name) for p in files if len(p.stem) < 10}
    images = {}
    for words in read_words(listed):
        entries = {Path(file).parts[:1]: (number, file) for number, file in zip(words[::2], words[1::2], strict=False)}
        color, depth = entries.get(("rgb",)), entries.get(("depth",))
        if len(words) != 4 or color is None or depth is None or not color[0].isdecimal() or len(color[0]) > 9:
            raise DataError(f"{listed}: expected lines N depth/N.png N rgb/N.png, found {' '.join(words)[:80]}")
        images[int(color[0])] = (inside(folder, color[1], listed), inside(folder, depth[1], listed))
    return images

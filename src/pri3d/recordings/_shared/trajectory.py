"""Trajectories: images of two cameras matched by their time stamps, poses between stamps, frames of known poses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from pri3d.geometry.pose import check_rigid
from pri3d.recordings._shared.cameras import Cameras
from pri3d.recordings._shared.files import read_color, read_depth
from pri3d.recordings._shared.scenes import FrameList, Origin, build_frame
from pri3d.types import Frame

_NEIGHBOURS = 4  # on either side in time: whom an image may be paired with
_FARTHEST = 1e6  # metres; beyond it a pose is damaged text


class PosedList(FrameList):
    """Frames that a function loads by name, and whose poses are known without them."""

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], Frame],
        pose: Callable[[str], NDArray[np.float64]],
        cameras: Cameras | None = None,
        what: str = "",
    ) -> None:
        """``pose`` gives the (4, 4), by the file ``what``, of the camera that ``cameras`` says, None for colour."""
        super().__init__(names, load)
        self._pose, self._cameras, self._what = pose, cameras, what

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return ``world_from_camera`` (4, 4) of the colour camera. Raises FrameError where it is not rigid."""
        name = self.names[index]
        pose = check_rigid(self._pose(name), f"{self._what}: frame {name}")
        return pose if self._cameras is None else self._cameras.world_from_color(pose)


def load_files(name: str, color: Path, depth: Path, pose: NDArray[np.float64], cameras: Cameras, poses: Path) -> Frame:
    """Read a frame of an image and a depth file, with its pose (4, 4) of the file ``poses``.

    Raises FrameError naming the file that is missing, damaged or of another size.
    """
    origin = Origin(str(color), str(depth), f"{poses}: frame {name}")
    return build_frame(name, read_color(color), read_depth(depth, cameras.depth_scale), pose, cameras, origin)


def has_images(folder: Path) -> bool:
    """Whether it has folders rgb and depth."""
    return (folder / "rgb").is_dir() and (folder / "depth").is_dir()


def associate(first: NDArray[np.float64], second: NDArray[np.float64], within: float) -> NDArray[np.int64]:
    """Pair time stamps (N,) and (M,), both sorted, that differ by less than ``within`` seconds: (P, 2) indices.

    One to one and the closest pair first; only the four stamps on either side of one are looked at. Rows are sorted.
    """
    if not len(first) or not len(second):
        return np.zeros((0, 2), np.int64)
    near = np.searchsorted(second, first)[:, None] + np.arange(-_NEIGHBOURS, _NEIGHBOURS)
    apart = np.abs(second[near.clip(0, len(second) - 1)] - first[:, None])
    rows, columns = np.nonzero((near >= 0) & (near < len(second)) & (apart < within))
    pairs = np.stack((rows, near[rows, columns]), axis=1)
    taken: tuple[set[int], set[int]] = (set(), set())
    result = []
    for i, j in pairs[np.argsort(apart[rows, columns], kind="stable")].tolist():
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            result.append((i, j))
    return np.array(sorted(result), np.int64).reshape(-1, 2)


def interpolate(
    rows: NDArray[np.float64], times: NDArray[np.float64], within: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Poses (N, 8) of time, translation, rotation x y z w -> poses (M, 4, 4) at ``times``, and which are known (M,).

    Between its two neighbours in time the translation goes straight and the rotation on the shortest arc. A pose is
    known where both neighbours are at most ``within`` seconds away, or where one has exactly this time. Rows that are
    not finite or have no rotation do not count; poses that are not known are the identity.
    """
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    length = np.linalg.norm(rows[:, 4:8], axis=1)
    usable = np.isfinite(rows).all(axis=1) & (length > 1e-6) & (np.abs(rows[:, 1:8]) < _FARTHEST).all(axis=1)
    stamps, first = np.unique(rows[usable, 0], return_index=True)
    rows = rows[usable][first]
    if not len(stamps):
        return poses, np.zeros(len(times), np.bool_)
    after = np.searchsorted(stamps, times).clip(0, len(stamps) - 1)
    before = np.where(stamps[after] == times, after, np.maximum(after - 1, 0))
    ahead, behind = stamps[after] - times, times - stamps[before]
    known = (ahead >= 0) & (ahead <= within) & (behind >= 0) & (behind <= within)
    share = (behind / np.maximum(ahead + behind, 1e-9)).clip(0, 1)[known, None]
    start, end = rows[before[known]], rows[after[known]]
    poses[known, :3, 3] = (1 - share) * start[:, 1:4] + share * end[:, 1:4]
    if len(stamps) == 1:
        poses[known, :3, :3] = Rotation.from_quat(rows[:, 4:8]).as_matrix()
    elif known.any():
        poses[known, :3, :3] = Slerp(stamps, Rotation.from_quat(rows[:, 4:8]))(times[known]).as_matrix()
    return poses, known

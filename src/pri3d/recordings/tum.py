"""TUM RGB-D benchmark (Sturm et al. 2012), and what is written like it, as ETH3D's SLAM benchmark (Schöps 2019)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from pri3d.errors import DataError, FrameError
from pri3d.geometry.warping import Lens
from pri3d.recordings._shared.cameras import Cameras, from_matrix, same_camera
from pri3d.recordings._shared.files import COLOR, load_files
from pri3d.recordings._shared.scenes import PosedList, SceneReader, has_images
from pri3d.recordings._shared.text import absolute, inside, numbers, read_rows, read_text, read_words

UNITS = 5000  #: of the depth images, per metre
_NEIGHBOURS = 4  # on either side in time: whom an image may be paired with
_FARTHEST = 1e6  # metres; beyond it a pose is damaged text
_DEPTH_WITHIN = 0.02  # seconds between a colour image and its depth
_POSE_WITHIN = 0.1  # seconds to the poses before and after; motion capture gives a hundred a second
_EPOCH = (5e8, 5e9)  # seconds since 1970 of recordings: from 1985 to 2128
_W_FIRST = re.compile(r"q\w*w\b.*q\w*x\b")
_HEAD = 10  # lines of a list that may be comments
_LATEST = 1e11  # seconds; larger stamps are of another unit
_KINECTS = re.compile(r"(?:^|[^a-z0-9])(?:freiburg|fr)([123])(?![0-9])")
# The published calibration of the colour cameras, centres at integers: fx, fy, cx, cy and k1, k2, p1, p2, k3. The
# images of the third are published undistorted.
_CALIBRATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "3": ((535.4, 539.2, 320.1, 247.6), ()),
    "": ((525.0, 525.0, 319.5, 239.5), ()),  # what ROS assumes of any Kinect
}


class TumReader(SceneReader):
    """SEQUENCE/rgb/TIME.png and depth/TIME.png, listed in rgb.txt and depth.txt, with groundtruth.txt.

    The recording is a sequence or a folder of some. A line of rgb.txt is a time in seconds and a file; without the
    lists the files' names are the times. groundtruth.txt has lines ``time tx ty tz qx qy qz qw``: metres, camera to
    world, OpenCV axes, of the colour camera; '#' starts a comment. Depth is registered to colour, 16 bits, 5000 units
    a metre, 0 where there is none.

    Colour images get the depth image nearest in time, closer than 0.02 s, one to one and best first, and the pose
    interpolated between the one before and the one after, at most 0.1 s away each; those without either are left out.

    Cameras: a cameras.yaml, else ``calibration.txt`` (fx fy cx cy, as in ETH3D's SLAM benchmark), else the published
    ones of freiburg1, 2 and 3 (or fr1, fr2, fr3), whose distortion is undone, by the bag that the comments of the lists
    name or by the folder's name, else ROS's default, which is then said.
    These count pixel centres at integers, so cx and cy get 0.5 more on our grid; those of a cameras.yaml do not.
    """

    parts = (("rgb",), ("depth",), ("groundtruth.txt",))
    signs = ("rgb.txt", "depth.txt", "associations.txt")
    looks_for: ClassVar[str] = "folders rgb and depth with groundtruth.txt (TUM RGB-D), or such sequences"
    frame_step = 25  # 30 frames a second

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether the folder is a sequence."""
        return has_images(path) and (path / "groundtruth.txt").is_file()

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Raises DataError where a list is missing or damaged, or no image has both a depth and a pose."""
        truth = source / "groundtruth.txt"
        cameras, assumed = (given, "") if given else _cameras(source)
        (times, colors), (depth_times, depths) = _images(source, "rgb"), _images(source, "depth")
        pairs = associate(times, depth_times, _DEPTH_WITHIN)
        times = times[pairs[:, 0]]
        rows = read_rows(truth, 8)  # seconds, place, rotation x y z w
        heading = " ".join(line for line in read_text(truth).splitlines()[:_HEAD] if line.startswith("#")).lower()
        if _W_FIRST.search(heading):  # qw before qx (EuRoC)
            rows = rows[:, [0, 1, 2, 3, 5, 6, 7, 4]]
        rows[:, 0] = in_seconds(rows[:, 0])
        poses, known = interpolate(rows, times, _POSE_WITHIN)
        if not known.any():
            raise DataError(
                f"{source}: no frame is left. Of {len(colors)} colour images {len(pairs)} have a depth image within "
                f"{_DEPTH_WITHIN} s, and none of these has poses of {truth.name} within {_POSE_WITHIN} s before and "
                "after."
            )
        width = len(f"{times.max():.6f}")
        names = [f"{time:0{width}.6f}" for time in times]
        files = {names[k]: (colors[pairs[k, 0]], depths[pairs[k, 1]]) for k in np.flatnonzero(known)}
        by_name = {names[k]: poses[k] for k in np.flatnonzero(known)}
        return PosedList(
            list(files),
            lambda name: load_files(name, *files[name], by_name[name], cameras, truth),
            by_name.__getitem__,
            cameras,
            str(truth),
            float,
            assumed,
            lambda name, seconds: _pose_at(rows, float(name) + seconds),
        )


def in_seconds(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of stamps (N,) of seconds, or of milli-, micro- or nanoseconds since 1970, which their size tells."""
    if not len(times):
        return times
    for unit in (1e3, 1e6, 1e9):
        if (times > _EPOCH[0] * unit).all() and (times < _EPOCH[1] * unit).all():
            return times / unit
    return times


def _pose_at(rows: NDArray[np.float64], time: float) -> NDArray[np.float64]:
    """Pose (4, 4) at a time. Raises FrameError where none is known around it."""
    poses, known = interpolate(rows, np.array([time]), _POSE_WITHIN)
    if not known[0]:
        raise FrameError(f"groundtruth.txt: has no poses within {_POSE_WITHIN} s before and after {time:.6f}.")
    return np.asarray(poses[0])


def _images(folder: Path, part: str) -> tuple[NDArray[np.float64], list[Path]]:
    """Times (N,), sorted and unique, and files of the images that PART.txt lists, else of those in the folder."""
    listed = folder / f"{part}.txt"
    if listed.is_file():
        rows = read_words(listed)
        if any(len(words) < 2 for words in rows):
            raise DataError(f"{listed}: a line has no file name; expected a time in seconds and a file.")
        files = [inside(folder, words[1], listed) for words in rows]
        stamps = [words[0] for words in rows]
    else:
        files = [p for p in (folder / part).iterdir() if p.suffix.lower() in COLOR and p.name[0] != "."]
        stamps = [p.stem for p in files]
    times = numbers(stamps, (len(files),), f"{listed if listed.is_file() else folder / part}: the times")
    times = in_seconds(times)
    if not ((times >= 0) & (times < _LATEST)).all():
        raise DataError(f"{listed if listed.is_file() else folder / part}: the times are not all seconds.")
    times, first = np.unique(times, return_index=True)
    return times, [files[k] for k in first]


def _cameras(folder: Path) -> tuple[Cameras, str]:
    """Cameras of calibration.txt, else the published ones, and what is assumed where nothing says which these are.

    Raises DataError where calibration.txt holds none.
    """
    assumed = ""
    stated = folder / "calibration.txt"
    lens: tuple[float, ...]
    if stated.is_file():
        (fx, fy, cx, cy), lens = numbers(read_words(stated), (4,), str(stated)).tolist(), ()
    else:
        match = _kinect(folder)
        if match is None:
            assumed = (
                "neither calibration.txt, cameras.yaml, the folder's name nor the lists name its camera: f = 525, "
                "centre (320, 240), ROS's default of a Kinect, is assumed, without distortion."
            )
        (fx, fy, cx, cy), lens = _CALIBRATION[match[1] if match else ""]
    camera = from_matrix(np.array(((fx, 0, cx), (0, fy, cy), (0, 0, 1))), str(stated))
    cameras = same_camera(camera._replace(lens=Lens("radial", lens)) if lens else camera)
    return cameras._replace(depth_scale=1 / UNITS), assumed


def _kinect(folder: Path) -> re.Match[str] | None:
    """Which camera of the benchmark took it: as the comments of the lists name the bag, else as the folder's name."""
    for name in ("rgb.txt", "depth.txt", "groundtruth.txt"):
        if (folder / name).is_file():
            comments = [line for line in read_text(folder / name).splitlines()[:_HEAD] if line.startswith("#")]
            match = _KINECTS.search("\n".join(comments).lower())
            if match is not None:
                return match
    return _KINECTS.search(absolute(folder).name.lower()) or _KINECTS.search(folder.resolve().name.lower())


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

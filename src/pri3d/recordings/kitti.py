"""KITTI (Geiger et al. 2012 and 2013): raw drives and odometry sequences of a car, with depth of its LiDAR.

A calibration file has lines ``KEY: numbers``. P_rect_02 (P2) projects points of the rectified camera 0 into the image
of camera 2: its left three columns are the intrinsics, and these times the translation between the two are the fourth.
R_rect_00 turns camera 0 into the rectified one; R and T lead from the LiDAR to camera 0, and from the inertial unit to
the LiDAR.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid, invert_array
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, from_matrix, registered
from pri3d.recordings._shared.files import COLOR, LARGEST, Origin, build_frame, read_color, read_depth
from pri3d.recordings._shared.scenes import LazyScene, PosedList, SceneReader, entries
from pri3d.recordings._shared.text import absolute, clean_id, framed, numbers, read_rows, read_text
from pri3d.types import Camera, Frame

_DATE = re.compile(r"[0-9]{4}_[0-9]{2}_[0-9]{2}")
_ANNOTATED = "proj_depth/groundtruth/image_02"
_ANNOTATED_UNITS = 256  # per metre
_EARTH = 6378137.0  # metres, its radius as the data set's description has it
_OXTS = 6  # numbers of a measurement that make its pose: latitude, longitude, altitude, roll, pitch, yaw
_POINT = 16  # bytes: x, y, z and reflectance as float32
_MOST_POINTS = 10**7  # a scan has 120,000
_NEAREST, _FARTHEST = 0.1, 200.0  # metres; the LiDAR reaches 120

Pose = Callable[[str], NDArray[np.float64]]


class Rig(NamedTuple):
    """Camera 2 and where it sits."""

    camera: Intrinsics  #: of the rectified images
    camera_from_lidar: NDArray[np.float64]  #: (4, 4)
    camera_from_body: NDArray[np.float64]  #: (4, 4) from what the poses are of: the inertial unit, or camera 0


class KittiReader(SceneReader):
    """Raw: DATE/DATE_drive_NNNN_sync; odometry: sequences/NN. The left colour camera, 2, with LiDAR depth.

        DATE/calib_cam_to_cam.txt, calib_velo_to_cam.txt, calib_imu_to_velo.txt
        DATE/DRIVE/image_02/data/*.png, velodyne_points/data/*.bin, oxts/data/*.txt
        DATE/DRIVE/proj_depth/groundtruth/image_02/*.png     of the depth completion benchmark; may be missing

        sequences/NN/image_2/*.png, velodyne/*.bin, calib.txt     of which P2 and Tr are used
        poses/NN.txt                                              beside sequences; missing for sequences 11 to 21

    The recording is one drive or sequence, a DATE, a ``sequences``, or what holds these (``dataset/sequences`` too).

    Raw poses are those of the inertial unit: latitude and longitude by a Mercator projection at the first frame's
    latitude, altitude in metres, and roll, pitch, yaw, all relative to the first frame. Odometry poses are those of the
    rectified camera 0. Both are carried to camera 2 by the calibration. A sequence without poses has none, and its
    frames are single images.

    Depth is z of the LiDAR's points in the pixels they fall into, the nearest where several do; it is sparse, and
    points behind an edge of a near object show between its own. Annotated depth goes before it, frame by frame:
    16 bits, 256 units a metre (``depth_scale`` of a cameras.yaml changes neither). Images are rectified. What the
    pixels' centres are is not said; we take integers, so cx and cy get 0.5 more on our grid.
    """

    looks_for: ClassVar[str] = "DATE_drive_NNNN_sync with image_02/data and oxts/data, or sequences/NN (KITTI)"
    frame_step = 5  # 10 frames a second of a car: half a second, some 5 m in town

    @classmethod
    def find(cls, path: Path) -> Iterator[Path]:
        """The recording itself where it is a drive or sequence, else those in it."""
        if cls.is_scene(path):
            yield path
            return
        for folder in (path, path / "sequences", path / "dataset" / "sequences"):
            yield from filter(cls.is_scene, entries(folder))
        for folder in entries(path):
            if _DATE.fullmatch(folder.name):
                yield from filter(cls.is_scene, entries(folder))

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether a folder is a raw drive or an odometry sequence."""
        raw = (path / "image_02" / "data").is_dir() and (path / "oxts" / "data").is_dir()
        return raw or _is_sequence(path)

    def scene(self, source: Path) -> LazyScene:
        """The scene of a drive or sequence, opened when it is first used."""
        posed = not _is_sequence(source) or _poses_file(source).is_file()
        return LazyScene(clean_id(absolute(source).name), lambda: self.open(source, self.stated(source)), posed=posed)

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Open a drive or sequence. Raises DataError where its calibration or trajectory is missing or damaged."""
        sequence = _is_sequence(source)
        images, scans = (
            (source / "image_2", source / "velodyne")
            if sequence
            else (source / "image_02" / "data", source / "velodyne_points" / "data")
        )
        files = {path.stem: path for path in entries(images) if path.suffix.lower() in COLOR and path.stem.isdecimal()}
        if not files:
            raise DataError(f"{images}: holds no image.")
        digits = max(map(len, files))
        images_of = {name.zfill(digits): path for name, path in files.items()}
        rig, pose, what = _read_sequence(source) if sequence else _read_drive(source, images_of)
        camera = given.color if given else rig.camera
        annotated = source / _ANNOTATED

        def load(name: str) -> Frame:
            stem = images_of[name].stem
            depths = annotated / f"{stem}.png", scans / f"{stem}.bin"
            return _load(name, images_of[name], depths, pose(name), camera, rig, what)

        return PosedList(list(images_of), load, pose, None, what)


def _load(
    name: str,
    image: Path,
    depths: tuple[Path, Path],
    pose: NDArray[np.float64],
    camera: Intrinsics,
    rig: Rig,
    what: str,
) -> Frame:
    """A frame of annotated depth, else of a scan. Raises FrameError naming the file that is missing or damaged."""
    color = read_color(image)
    annotated, scan = depths
    flat = camera._replace(lens=None)  # depth is of the pinhole camera: rectified, or projected into it
    origin = Origin(str(image), str(annotated if annotated.is_file() else scan), f"{what}: frame {name}")
    cameras = Cameras(camera, flat, np.eye(4))
    if annotated.is_file():
        depth = read_depth(annotated, 1 / _ANNOTATED_UNITS)
        cameras = registered(cameras, color.shape, depth.shape, str(annotated))
    else:
        height, width = color.shape[:2]
        depth = project(read_scan(scan), rig.camera_from_lidar, flat.of_image(width, height, str(image)))
    return build_frame(name, color, depth, pose, cameras, origin)


def _is_sequence(path: Path) -> bool:
    return (path / "image_2").is_dir() and (path / "calib.txt").is_file()


def _poses_file(sequence: Path) -> Path:
    place = sequence.resolve()
    return place.parent.parent / "poses" / f"{place.name}.txt"


def _read_sequence(sequence: Path) -> tuple[Rig, Pose, str]:
    """The rig of calib.txt, poses of camera 2 by line, and their file; the identity for a sequence that has none.

    Raises DataError where calib.txt is missing, damaged or has no Tr.
    """
    calibration = sequence / "calib.txt"
    stated = _stated(calibration)
    camera, camera_from_rectified = _projection(stated, "P2", calibration)
    rectified_from_lidar = np.eye(4)
    rectified_from_lidar[:3] = _values(stated, "Tr", (3, 4), calibration)
    lidar = check_rigid(rectified_from_lidar, f"{calibration}: Tr")
    rig = Rig(camera, camera_from_rectified @ lidar, camera_from_rectified)
    path = _poses_file(sequence)
    if not path.is_file():
        return rig, lambda _: np.eye(4), str(path)
    rows = read_rows(path, 12)

    def pose(name: str) -> NDArray[np.float64]:
        if int(name) >= len(rows):
            raise FrameError(f"{path}: has {len(rows)} poses, none for frame {name}.")
        world_from_body = np.eye(4)
        world_from_body[:3] = rows[int(name)].reshape(3, 4)
        return check_rigid(world_from_body, f"{path}: frame {name}") @ invert_array(rig.camera_from_body)

    return rig, pose, str(path)


def _read_drive(drive: Path, images: dict[str, Path]) -> tuple[Rig, Pose, str]:
    """The rig of its date's three files, poses of camera 2 by its measurements, and their folder.

    The first frame's inertial unit is the world. Raises DataError naming the file that is missing or damaged.
    """
    date = drive.resolve().parent
    cameras, lidar, unit = (date / f"calib_{name}.txt" for name in ("cam_to_cam", "velo_to_cam", "imu_to_velo"))
    stated = _stated(cameras)
    camera, camera_from_rectified = _projection(stated, "P_rect_02", cameras)
    if "S_rect_02" in stated:
        width, height = _values(stated, "S_rect_02", (2,), cameras)
        if not (0 < width * height <= LARGEST and width > 0):
            raise DataError(f"{cameras}: S_rect_02 is {width:g} {height:g}, which is not a size; the file is damaged.")
        camera = camera._replace(width=int(width), height=int(height))
    rectified = np.eye(4)
    rectified[:3, :3] = _values(stated, "R_rect_00", (3, 3), cameras)
    rectified = check_rigid(rectified, f"{cameras}: R_rect_00")
    camera_from_lidar = camera_from_rectified @ rectified @ _placed(lidar)
    rig = Rig(camera, camera_from_lidar, camera_from_lidar @ _placed(unit))
    folder = drive / "oxts" / "data"
    first = _measurement(folder / f"{images[min(images)].stem}.txt")
    origin = _earth_from_body(first, first)

    def pose(name: str) -> NDArray[np.float64]:
        path = folder / f"{images[name].stem}.txt"
        measured: NDArray[np.float64] = framed(lambda: _measurement(path))
        body = invert_array(origin) @ _earth_from_body(measured, first)
        return check_rigid(body, str(path)) @ invert_array(rig.camera_from_body)

    return rig, pose, str(folder)


def _measurement(path: Path) -> NDArray[np.float64]:
    """Latitude and longitude in degrees, altitude in metres, roll, pitch and yaw in radians (6,)."""
    values = numbers(read_text(path).split()[:_OXTS], (_OXTS,), str(path))
    if not (abs(values[0]) < 89 and abs(values[1]) <= 360 and (np.abs(values[2:]) < 1e5).all()):
        raise DataError(
            f"{path}: {' '.join(f'{x:g}' for x in values)} is not a valid position and direction; it is damaged."
        )
    return values


def _earth_from_body(measured: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pose (4, 4) of the inertial unit: metres east, north and up of the first one, x forward, y left, z up.

    The projection is Mercator's, scaled to be true at the latitude of the first.
    """
    scale = np.cos(np.radians(first[0]))

    def place(values: NDArray[np.float64]) -> NDArray[np.float64]:
        north = np.log(np.tan(np.radians(90 + values[0]) / 2))
        return np.array((scale * _EARTH * np.radians(values[1]), scale * _EARTH * north, values[2]))

    (sr, sp, sy), (cr, cp, cy) = np.sin(measured[3:]), np.cos(measured[3:])
    roll = np.array(((1, 0, 0), (0, cr, -sr), (0, sr, cr)))
    pitch = np.array(((cp, 0, sp), (0, 1, 0), (-sp, 0, cp)))
    yaw = np.array(((cy, -sy, 0), (sy, cy, 0), (0, 0, 1)))
    result = np.eye(4)
    result[:3, :3] = yaw @ pitch @ roll
    result[:3, 3] = place(measured) - place(first)
    return result


def read_scan(path: Path) -> NDArray[np.float32]:
    """Read the points (N, 3) of a LiDAR scan in its own axes: x forward, y left, z up, metres.

    Raises FrameError where the file is missing or its size is not that of whole points.
    """
    if not path.is_file():
        raise FrameError(f"{path}: no such file.")
    size = path.stat().st_size
    if size % _POINT or not 0 < size <= _POINT * _MOST_POINTS:
        raise FrameError(
            f"{path}: has {size} bytes, which is not a scan of points of {_POINT}; was it copied completely?"
        )
    data = path.read_bytes()
    if len(data) != size:
        raise FrameError(f"{path}: changed while it was read.")
    return np.frombuffer(data, "<f4").reshape(-1, 4)[:, :3].astype(np.float32, copy=False)


def project(points: NDArray[np.float32], camera_from_lidar: NDArray[np.float64], camera: Camera) -> NDArray[np.float32]:
    """Points (N, 3) m of a LiDAR -> depth (H, W) m of a pinhole camera: z in the pixels hit, the nearest, else 0."""
    points = points[(np.abs(points) < _FARTHEST).all(axis=1)]  # not so of nan
    x, y, z = camera_from_lidar[:3, :3] @ points.T.astype(np.float64) + camera_from_lidar[:3, 3:]
    ahead = (z > _NEAREST) & (z < _FARTHEST)
    x, y, z = x[ahead], y[ahead], z[ahead]
    column, row = np.floor(camera.fx * x / z + camera.cx), np.floor(camera.fy * y / z + camera.cy)
    seen = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    nearest = np.full((camera.height, camera.width), np.inf)
    np.minimum.at(nearest, (row[seen].astype(np.int64), column[seen].astype(np.int64)), z[seen])
    return np.where(np.isfinite(nearest), nearest, 0).astype(np.float32)


def _projection(stated: dict[str, str], key: str, path: Path) -> tuple[Intrinsics, NDArray[np.float64]]:
    """Intrinsics of a projection matrix, and the translation (4, 4) from the rectified camera 0."""
    matrix = _values(stated, key, (3, 4), path)
    camera = from_matrix(matrix, f"{path}: {key}")
    flat = np.array(((matrix[0, 0], 0, matrix[0, 2]), (0, matrix[1, 1], matrix[1, 2]), (0, 0, 1)))
    if not np.allclose(matrix[:, :3], flat):
        raise DataError(f"{path}: {key} is not a projection of a rectified camera (fx 0 cx / 0 fy cy / 0 0 1).")
    result = np.eye(4)
    result[:3, 3] = np.linalg.solve(flat, matrix[:, 3])
    return camera, check_rigid(result, f"{path}: {key}")


def _placed(path: Path) -> NDArray[np.float64]:
    """Transform (4, 4) of a file with R and T."""
    stated, result = _stated(path), np.eye(4)
    result[:3, :3], result[:3, 3] = _values(stated, "R", (3, 3), path), _values(stated, "T", (3,), path)
    return check_rigid(result, f"{path}: R and T")


def _stated(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in read_text(path).splitlines())
    return {key.strip(): value for key, colon, value in lines if colon}


def _values(stated: dict[str, str], key: str, shape: tuple[int, ...], path: Path) -> NDArray[np.float64]:
    if key not in stated:
        raise DataError(f"{path}: has no line {key}. Use the unmodified calibration files of the dataset.")
    values = numbers(stated[key].split(), shape, f"{path}: {key}")
    if not (np.abs(values) < 1e6).all():
        raise DataError(f"{path}: {key} is not finite or far too large; the file is damaged.")
    return values

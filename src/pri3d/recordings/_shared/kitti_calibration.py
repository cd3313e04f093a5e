"""KITTI's calibration files and LiDAR scans: from the files' matrices to depth in the left colour camera.

A calibration file has lines ``KEY: numbers``. P_rect_02 (P2) projects points of the rectified camera 0 into the image
of camera 2: its left three columns are the intrinsics, and these times the translation between the two are the fourth.
R_rect_00 turns camera 0 into the rectified one; R and T lead from the LiDAR to camera 0, and from the inertial unit to
the LiDAR.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid
from pri3d.recordings._shared.cameras import Intrinsics, from_matrix
from pri3d.recordings._shared.files import LARGEST
from pri3d.recordings._shared.tables import numbers, read_text
from pri3d.types import Camera

_POINT = 16  # bytes: x, y, z and reflectance as float32
_MOST_POINTS = 10**7  # a scan has 120,000
_NEAREST, _FARTHEST = 0.1, 200.0  # metres; the LiDAR reaches 120


class Rig(NamedTuple):
    """Camera 2 and where it sits."""

    camera: Intrinsics  #: of the rectified images
    camera_from_lidar: NDArray[np.float64]  #: (4, 4)
    camera_from_body: NDArray[np.float64]  #: (4, 4) from what the poses are of: the inertial unit, or camera 0


def raw_rig(folder: Path) -> Rig:
    """Read the three files of a raw drive's date. Raises DataError naming the file that is missing or damaged."""
    cameras, lidar, body = (folder / f"calib_{name}.txt" for name in ("cam_to_cam", "velo_to_cam", "imu_to_velo"))
    stated = _entries(cameras)
    camera, camera_from_rectified = _projection(stated, "P_rect_02", cameras)
    if "S_rect_02" in stated:
        width, height = _values(stated, "S_rect_02", (2,), cameras)
        if not (0 < width * height <= LARGEST and width > 0):
            raise DataError(f"{cameras}: S_rect_02 is {width:g} {height:g}, which is no size; the file is damaged.")
        camera = camera._replace(width=int(width), height=int(height))
    rectified = np.eye(4)
    rectified[:3, :3] = _values(stated, "R_rect_00", (3, 3), cameras)
    rectified = check_rigid(rectified, f"{cameras}: R_rect_00")
    camera_from_lidar = camera_from_rectified @ rectified @ _placed(lidar)
    return Rig(camera, camera_from_lidar, camera_from_lidar @ _placed(body))


def odometry_rig(path: Path) -> Rig:
    """Read a sequence's calib.txt. Raises DataError where it is missing, damaged or has no Tr."""
    stated = _entries(path)
    camera, camera_from_rectified = _projection(stated, "P2", path)
    rectified_from_lidar = np.eye(4)
    rectified_from_lidar[:3] = _values(stated, "Tr", (3, 4), path)
    lidar = check_rigid(rectified_from_lidar, f"{path}: Tr")
    return Rig(camera, camera_from_rectified @ lidar, camera_from_rectified)


def read_scan(path: Path) -> NDArray[np.float32]:
    """Read the points (N, 3) of a LiDAR scan in its own axes: x forward, y left, z up, metres.

    Raises FrameError where the file is missing or its size is not that of whole points.
    """
    if not path.is_file():
        raise FrameError(f"{path}: no such file.")
    size = path.stat().st_size
    if size % _POINT or not 0 < size <= _POINT * _MOST_POINTS:
        raise FrameError(f"{path}: has {size} bytes, which are no scan of points of {_POINT}; is it copied whole?")
    data = path.read_bytes()
    if len(data) != size:
        raise FrameError(f"{path}: changes while it is read.")
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
        raise DataError(f"{path}: {key} is no projection of a rectified camera (fx 0 cx / 0 fy cy / 0 0 1).")
    result = np.eye(4)
    result[:3, 3] = np.linalg.solve(flat, matrix[:, 3])
    return camera, check_rigid(result, f"{path}: {key}")


def _placed(path: Path) -> NDArray[np.float64]:
    """Transform (4, 4) of a file with R and T."""
    stated, result = _entries(path), np.eye(4)
    result[:3, :3], result[:3, 3] = _values(stated, "R", (3, 3), path), _values(stated, "T", (3,), path)
    return check_rigid(result, f"{path}: R and T")


def _entries(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in read_text(path).splitlines())
    return {key.strip(): value for key, colon, value in lines if colon}


def _values(stated: dict[str, str], key: str, shape: tuple[int, ...], path: Path) -> NDArray[np.float64]:
    if key not in stated:
        raise DataError(f"{path}: has no line {key}. Take the data set's calibration files as they are.")
    values = numbers(stated[key].split(), shape, f"{path}: {key}")
    if not (np.abs(values) < 1e6).all():
        raise DataError(f"{path}: {key} is not finite or far too large; the file is damaged.")
    return values

"""Small recordings in the layouts of reconstructions from images, and outdoors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from sample_frames import Sample, rendered
from scipy.spatial.transform import Rotation

from pri3d.types import Camera, Frame

Stated = tuple[int, str, int, int, tuple[float, ...]]  # id, model, width, height, parameters
MODELS = [
    *("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "FOV"),
    *("SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE"),
]


def colmap_camera(camera: Camera, number: int = 1) -> Stated:
    return number, "PINHOLE", camera.width, camera.height, tuple(camera[2:])


def camera_from_world(frame: Frame) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rotation w, x, y, z and translation."""
    matrix = np.linalg.inv(frame.world_from_camera)
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
    return (w, x, y, z), tuple(matrix[:3, 3])


def cameras_bin(cameras: list[Stated]) -> bytes:
    items = (struct.pack(f"<IiQQ{len(p)}d", k, MODELS.index(model), w, h, *p) for k, model, w, h, p in cameras)
    return struct.pack("<Q", len(cameras)) + b"".join(items)


def images_bin(names: dict[str, Frame], cameras: list[int] | None = None, points: int = 3) -> bytes:
    """Backwards, since the order in the file is that of registration."""
    result = [struct.pack("<Q", len(names))]
    for k, (name, frame) in reversed(list(enumerate(names.items()))):
        rotation, translation = camera_from_world(frame)
        camera = cameras[k] if cameras else 1
        result.append(struct.pack("<I7dI", k + 1, *rotation, *translation, camera) + name.encode() + b"\0")
        result.append(struct.pack("<Q", points) + struct.pack("<ddq", 1.5, 2.5, -1) * points)
    return b"".join(result)


def cameras_txt(cameras: list[Stated]) -> str:
    lines = (" ".join(map(repr, (k, w, h, *p))).replace(" ", f" {model} ", 1) for k, model, w, h, p in cameras)
    return "# Camera list\n" + "\n".join(lines) + "\n"


def images_txt(names: dict[str, Frame]) -> str:
    lines = ["# Image list"]
    for k, (name, frame) in reversed(list(enumerate(names.items()))):
        rotation, translation = camera_from_world(frame)
        lines += [" ".join([str(k + 1), *(repr(float(x)) for x in (*rotation, *translation)), "1", name])]
        lines += ["1.5 2.5 -1 3.5 4.5 7" * (k % 2)]
    return "\n".join(lines) + "\n"


def depth_map(depth: np.ndarray) -> bytes:
    return b"%d&%d&1&" % (depth.shape[1], depth.shape[0]) + depth.astype("<f4").tobytes()


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95, subsampling=0)


def millimetres(frame: Frame) -> np.ndarray:
    return np.round(frame.depth * 1000).astype(np.uint16)


def write_colmap(root: Path, ending: str = "bin", depth: str = "stereo") -> Sample:
    """A dense workspace, whose images lie in folders; or one with a sensor's depth."""
    names = {f"{'left' if k < 2 else 'right'}/{k + 8}.jpg": frame for k, frame in enumerate(rendered())}
    model = root / ("sparse" if ending == "bin" else "sparse/0")
    model.mkdir(parents=True)
    cameras = [colmap_camera(rendered()[0].color_camera)]
    if ending == "bin":
        (model / "cameras.bin").write_bytes(cameras_bin(cameras))
        (model / "images.bin").write_bytes(images_bin(names))
    else:
        (model / "cameras.txt").write_text(cameras_txt(cameras))
        (model / "images.txt").write_text(images_txt(names))
    for name, frame in names.items():
        save(root / "images" / name, frame.color)
        if depth == "stereo":
            path = root / "stereo/depth_maps" / f"{name}.geometric.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(depth_map(frame.depth))
        else:
            save(root / "depth" / f"{name}.png", millimetres(frame))
    first = "left/8.jpg"
    depths = root / (f"stereo/depth_maps/{first}.geometric.bin" if depth == "stereo" else f"depth/{first}.png")
    return Sample(root, root / "images" / first, depths, model / f"images.{ending}")


FLIP = np.diag((1.0, -1.0, -1.0, 1.0))


def transforms(camera: Camera) -> dict[str, Any]:
    """What transforms.json states once."""
    keys = ("w", "h", "fl_x", "fl_y", "cx", "cy")
    return {"camera_model": "OPENCV", **dict(zip(keys, camera, strict=True)), "k1": 0.0, "k2": 0, "p1": 0, "p2": 0}


def write_nerfstudio(root: Path) -> Sample:
    """As nerfstudio's import of a phone's capture writes it."""
    stated: dict[str, Any] = transforms(rendered()[0].color_camera)
    stated["applied_transform"] = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]
    stated["frames"] = []
    for k, frame in reversed(list(enumerate(rendered()))):
        color, depth = f"images/frame_{k + 9}.png", f"depth/frame_{k + 9}.png"
        save(root / color, frame.color)
        save(root / depth, millimetres(frame))
        matrix = (frame.world_from_camera @ FLIP).tolist()
        stated["frames"].append({"file_path": color, "depth_file_path": depth, "transform_matrix": matrix})
    (root / "transforms.json").write_text(json.dumps(stated))
    return Sample(root, root / "images/frame_9.png", root / "depth/frame_9.png", root / "transforms.json")


def write_ngp(root: Path) -> Sample:
    """instant-ngp's: no endings, other names of the depth's keys, here a camera for each frame, units of 0.25 mm."""
    stated: dict[str, Any] = {"aabb_scale": 4, "enable_depth_loading": True, "integer_depth_scale": 1 / 4000}
    stated["frames"] = []
    for k, frame in enumerate(rendered()):
        save(root / f"rgb/{k}.jpg", frame.color)
        save(root / f"depth/{k}.png", np.round(frame.depth * 4000).astype(np.uint16))
        item = {"file_path": f"./rgb/{k}", "depth_path": f"./depth/{k}.png", "sharpness": 30.5}
        item |= {"transform_matrix": (frame.world_from_camera @ FLIP).tolist()}
        stated["frames"].append(transforms(frame.color_camera) | item)
    (root / "transforms.json").write_text(json.dumps(stated))
    return Sample(root, root / "rgb/0.jpg", root / "depth/0.png", root / "transforms.json")


def save_h5(path: Path, depth: np.ndarray, name: str = "depth", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=depth, **options)


def write_megadepth(root: Path, tree: bool = False) -> Sample:
    """An undistorted scene with depth beside its model, or in MegaDepth's own tree."""
    scene = root / "Undistorted_SfM" / "0022"
    names = {f"{k + 8}_o.jpg": frame for k, frame in enumerate(rendered())}
    model = scene / "sparse"
    model.mkdir(parents=True)
    if tree:
        (model / "cameras.bin").write_bytes(cameras_bin([colmap_camera(rendered()[0].color_camera)]))
        (model / "images.bin").write_bytes(images_bin(names))
    else:
        (model / "cameras.txt").write_text(cameras_txt([colmap_camera(rendered()[0].color_camera)]))
        (model / "images.txt").write_text(images_txt(names))
    depths = root / "phoenix/S6/zl548/MegaDepth_v1/0022/dense0/depths" if tree else scene / "stereo/depth_maps"
    for name, frame in names.items():
        save(scene / "images" / name, frame.color)
        save_h5(depths / name.replace(".jpg", ".h5"), frame.depth)
        if tree:
            save(depths.parent / "imgs" / name, frame.color)
    ending = "bin" if tree else "txt"
    return Sample(root, scene / "images/8_o.jpg", depths / "8_o.h5", model / f"images.{ending}")


DRIVE = "2011_09_26/2011_09_26_drive_0001_sync"
EARTH = 6378137.0
START = (49.015, 8.4342, 116.4, 0.02, -0.015, 0.7)  # of the inertial unit: degrees, metres, radians


def placed(degrees: tuple[float, ...], translation: tuple[float, ...]) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    result[:3, 3] = translation
    return result


AXES = np.array(
    ((0, -1, 0, 0), (0, 0, -1, 0), (1, 0, 0, 0), (0, 0, 0, 1.0))
)  # forward, left, up -> right, down, forward
RECTIFIED = placed((0.4, -0.5, 0.3), (0, 0, 0))  # from camera 0
CAMERA0_FROM_LIDAR = placed((0.8, 0.4, -0.2), (-0.004, -0.076, -0.272)) @ AXES
CAMERA2_FROM_RECTIFIED = placed((0, 0, 0), (0.0599, -0.0003, 0.0027))
CAMERA2_FROM_LIDAR = CAMERA2_FROM_RECTIFIED @ RECTIFIED @ CAMERA0_FROM_LIDAR


def words(values: Any) -> str:
    return " ".join(repr(float(x)) for x in np.asarray(values).flat)


def projection(camera: Camera) -> str:
    """3 x 4 matrix of camera 2, which counts pixel centres at integers."""
    k = np.array(((camera.fx, 0, camera.cx - 0.5), (0, camera.fy, camera.cy - 0.5), (0, 0, 1)))
    return words(np.c_[k, k @ CAMERA2_FROM_RECTIFIED[:3, 3]])


def scan(frame: Frame) -> bytes:
    """The frame's depth as points of the LiDAR, one for each pixel."""
    camera, z = frame.color_camera, frame.depth
    rows, columns = np.nonzero(z)
    z = z[rows, columns].astype(np.float64)
    x, y = (columns + 0.5 - camera.cx) / camera.fx * z, (rows + 0.5 - camera.cy) / camera.fy * z
    points = np.linalg.inv(CAMERA2_FROM_LIDAR) @ (x, y, z, np.ones_like(z))
    return points.T.astype("<f4").tobytes()


def oxts(world_from_imu: np.ndarray) -> str:
    """A line of measurements: of the unit that the first one placed at START."""
    start = np.eye(4)
    start[:3, :3] = Rotation.from_euler("xyz", START[3:]).as_matrix()
    pose = start @ world_from_imu
    roll, pitch, yaw = Rotation.from_matrix(pose[:3, :3]).as_euler("xyz")
    scale = np.cos(np.radians(START[0])) * EARTH
    north = np.log(np.tan(np.pi / 4 + np.radians(START[0]) / 2)) + pose[1, 3] / scale
    latitude = np.degrees(2 * np.arctan(np.exp(north)) - np.pi / 2)
    place = latitude, START[1] + np.degrees(pose[0, 3] / scale), START[2] + pose[2, 3]
    return words((*place, roll, pitch, yaw, *range(24))) + "\n"


def write_kitti(root: Path) -> Sample:
    """A raw drive. The inertial unit sits where the first frame's room has its origin: this is the drive's world."""
    date, drive = (root / DRIVE).parent, root / DRIVE
    camera, truth = rendered()[0].color_camera, rendered()[0].world_from_camera
    for part in ("image_02", "velodyne_points", "oxts"):
        (drive / part / "data").mkdir(parents=True)
    for k, frame in enumerate(rendered()):
        save(drive / f"image_02/data/{k:010d}.png", frame.color)
        (drive / f"velodyne_points/data/{k:010d}.bin").write_bytes(scan(frame))
        world_from_imu = frame.world_from_camera @ np.linalg.inv(truth)
        (drive / f"oxts/data/{k:010d}.txt").write_text(oxts(world_from_imu))
    lidar_from_imu = np.linalg.inv(CAMERA2_FROM_LIDAR) @ np.linalg.inv(truth)
    (date / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.95e-02\nS_rect_02: {camera.width} {camera.height}\n"
        f"R_rect_00: {words(RECTIFIED[:3, :3])}\nP_rect_02: {projection(camera)}\n"
    )
    for name, matrix in (("velo_to_cam", CAMERA0_FROM_LIDAR), ("imu_to_velo", lidar_from_imu)):
        text = f"calib_time: 15-Mar-2012 11:37:16\nR: {words(matrix[:3, :3])}\nT: {words(matrix[:3, 3])}\n"
        (date / f"calib_{name}.txt").write_text(text)
    first = "data/0000000000"
    parts = (f"image_02/{first}.png", f"velodyne_points/{first}.bin", f"oxts/{first}.txt")
    return Sample(root, *(drive / part for part in parts))


def write_odometry(root: Path) -> Sample:
    sequence = root / "dataset/sequences/00"
    for part in (sequence / "image_2", sequence / "velodyne", root / "dataset/poses"):
        part.mkdir(parents=True)
    lines = []
    for k, frame in enumerate(rendered()):
        save(sequence / f"image_2/{k:06d}.png", frame.color)
        (sequence / f"velodyne/{k:06d}.bin").write_bytes(scan(frame))
        lines.append(words((frame.world_from_camera @ CAMERA2_FROM_RECTIFIED)[:3]))
    (root / "dataset/poses/00.txt").write_text("\n".join(lines) + "\n")
    tr = words((RECTIFIED @ CAMERA0_FROM_LIDAR)[:3])
    (sequence / "calib.txt").write_text(f"P2: {projection(rendered()[0].color_camera)}\nTr: {tr}\n")
    first = sequence / "image_2/000000.png"
    return Sample(root, first, sequence / "velodyne/000000.bin", root / "dataset/poses/00.txt")


OUTDOOR: dict[str, Callable[[Path], Sample]] = {
    "colmap": write_colmap,
    "colmap-text": lambda root: write_colmap(root, "txt", "sensor"),
    "kitti": write_kitti,
    "kitti-odometry": write_odometry,
    "megadepth": write_megadepth,
    "megadepth-tree": lambda root: write_megadepth(root, tree=True),
    "nerfstudio": write_nerfstudio,
    "nerfstudio-ngp": write_ngp,
}

"""Small recordings in the layouts of depth cameras and SLAM sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sample_frames import Sample, rendered
from scipy.spatial.transform import Rotation

from pri3d.types import Camera, Frame

MIRROR = np.diag((1.0, -1.0, 1.0, 1.0))
START = 1305031452.791720  # seconds of the first frame of the TUM layout


def matrix(camera: Camera, start: str = "top") -> np.ndarray:
    """Intrinsics (3, 3) with centres at integers, counted from the image's top or bottom."""
    cy = camera.cy if start == "top" else camera.height - camera.cy
    return np.array(((camera.fx, 0, camera.cx - 0.5), (0, camera.fy, cy - 0.5), (0, 0, 1)))


def write_images(frame: Frame, color: Path, depth: Path, units: int) -> None:
    """Colour (JPEG or PNG by its name) and 16-bit depth of ``units`` a metre; their folders are made."""
    for path in (color, depth):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame.color).save(color, quality=95, subsampling=0)
    Image.fromarray(np.round(frame.depth * units).astype(np.uint16)).save(depth)


def quaternion_row(pose: np.ndarray) -> str:
    """The words tx ty tz qx qy qz qw of a pose (4, 4)."""
    values = (*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat())
    return " ".join(f"{value:.14f}" for value in values)


def write_tum(root: Path, name: str = "") -> Sample:
    """Depth 5 ms after its image; every pose at its image's time; one comment a list; calibration.txt as ETH3D's."""
    folder = root / name
    listed = {part: ["# " + part] for part in ("rgb", "depth", "groundtruth")}
    files = []
    for k, frame in enumerate(rendered()):
        time, later = f"{START + k / 30:.6f}", f"{START + k / 30 + 0.005:.6f}"
        files.append((folder / f"rgb/{time}.png", folder / f"depth/{later}.png"))
        write_images(frame, *files[-1], units=5000)
        listed["rgb"].append(f"{time} rgb/{time}.png")
        listed["depth"].append(f"{later} depth/{later}.png")
        listed["groundtruth"].append(f"{time} {quaternion_row(frame.world_from_camera)}")
    for part, lines in listed.items():
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
    k = matrix(rendered()[0].color_camera)
    (folder / "calibration.txt").write_text(" ".join(repr(float(k[at])) for at in ((0, 0), (1, 1), (0, 2), (1, 2))))
    return Sample(root, *files[0], folder / "groundtruth.txt")


def write_icl(root: Path) -> Sample:
    """Frames 1..3 and an image 0 without a pose; a cameras.yaml, as the published camera is of another size."""
    files, poses, pairs = [], [], []
    for k, frame in enumerate((rendered()[2], *rendered())):
        files.append((root / f"rgb/{k}.png", root / f"depth/{k}.png"))
        write_images(frame, *files[-1], units=5000)
        pairs.append(f"{k} depth/{k}.png {k} rgb/{k}.png\n")
        if k:
            poses.append(f"{k} {quaternion_row(MIRROR @ frame.world_from_camera @ MIRROR)}\n")
    (root / "associations.txt").write_text("".join(pairs))
    truth = root / "livingRoom1.gt.freiburg"
    truth.write_text("".join(poses))
    camera = rendered()[0].color_camera
    (root / "cameras.yaml").write_text(
        f"color: {{fx: {camera.fx!r}, fy: {camera.fy!r}, cx: {camera.cx!r}, cy: {camera.cy!r}}}\ndepth_scale: 0.0002\n"
    )
    return Sample(root, *files[1], truth)


def open3d_camera(camera: Camera) -> dict[str, object]:
    """A camera as Open3D's JSON has it: the matrix column by column."""
    columns = matrix(camera).T.reshape(-1).tolist()
    return {"width": camera.width, "height": camera.height, "intrinsic_matrix": columns}


def write_open3d(root: Path, as_json: bool = False) -> Sample:
    """Redwood's trajectory.log with camera_intrinsic.json, or a trajectory.json with its own cameras."""
    folder, end = ("rgb", "png") if as_json else ("color", "jpg")
    files, log, entries = [], [], []
    for k, frame in enumerate(rendered()):
        files.append((root / folder / f"{k:05d}.{end}", root / f"depth/{k:05d}.png"))
        write_images(frame, *files[-1], units=1000)
        pose = frame.world_from_camera
        log.append("\n".join([f"{k} {k} {k + 1}", *(" ".join(f"{v:.10f}" for v in row) for row in pose)]) + "\n")
        camera = open3d_camera(frame.color_camera)
        entries.append({"extrinsic": np.linalg.inv(pose).T.reshape(-1).tolist(), "intrinsic": camera})
    path = root / ("trajectory.json" if as_json else "trajectory.log")
    path.write_text(json.dumps({"class_name": "PinholeCameraTrajectory", "parameters": entries}))
    if not as_json:
        path.write_text("".join(log))
        (root / "camera_intrinsic.json").write_text(json.dumps(open3d_camera(rendered()[0].color_camera)))
    return Sample(root, *files[0], path)


def write_matterport3d(root: Path, house: str = "17DRP5sb8fy") -> Sample:
    """As unpacked of the download; the last image is of another of the three cameras."""
    folder = root / "v1" / "scans" / house
    conf = folder / "undistorted_camera_parameters" / f"{house}.conf"
    conf.parent.mkdir(parents=True)
    lines = ["dataset matterport", "n_images 3", "depth_directory undistorted_depth_images"]
    files = []
    for k, frame in enumerate(rendered()):
        names = f"ab12_i{k}_0.jpg", f"ab12_d{k}_0.png"
        files.append((folder / "undistorted_color_images" / names[0], folder / "undistorted_depth_images" / names[1]))
        write_images(frame, *files[-1], units=4000)
        if k != 1:
            k9 = matrix(frame.color_camera, start="bottom").reshape(-1)
            lines.append("intrinsics_matrix " + " ".join(f"{v:.10f}" for v in k9))
        pose = frame.world_from_camera @ np.diag((1.0, -1, -1, 1))
        lines.append(f"scan {names[1]} {names[0]} " + " ".join(f"{v:.10f}" for v in pose.reshape(-1)))
    conf.write_text("\n".join(lines) + "\n")
    return Sample(root, *files[0], conf)


def write_scannetpp(root: Path, scene: str = "02455b3d20") -> Sample:
    iphone = root / "data" / scene / "iphone"
    stated, files = {}, []
    for k, frame in enumerate(rendered()):
        name = f"frame_{10 * k:06d}"
        files.append((iphone / "rgb" / f"{name}.jpg", iphone / "depth" / f"{name}.png"))
        write_images(frame, *files[-1], units=1000)
        stated[name] = {
            "timestamp": k / 60,
            "intrinsic": matrix(frame.color_camera).tolist(),
            "aligned_pose": frame.world_from_camera.tolist(),
            "pose": np.eye(4).tolist(),
        }
    path = iphone / "pose_intrinsic_imu.json"
    path.write_text(json.dumps(stated))
    return Sample(root, *files[0], path)


DESK: dict[str, Callable[[Path], Sample]] = {
    "tum": write_tum,
    "icl": write_icl,
    "open3d": write_open3d,
    "open3d-json": lambda root: write_open3d(root, as_json=True),
    "matterport3d": write_matterport3d,
    "scannetpp": write_scannetpp,
}

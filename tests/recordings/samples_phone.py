"""Small recordings in the layouts of phones."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import lzfse_writer
import numpy as np
import trimesh
from PIL import Image
from sample_frames import HEIGHT, WIDTH, Sample, rendered
from scipy.spatial.transform import Rotation

from pri3d.types import Frame

OPENGL = np.diag((1.0, -1, -1, 1))
CAMERA = rendered()[0].color_camera
INTRINSICS = (CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy)


def save_depth(depth: np.ndarray, path: Path) -> None:
    Image.fromarray(np.round(depth * 1000).astype(np.uint16)).save(path)


def save_color(color: np.ndarray, path: Path) -> None:
    Image.fromarray(color).save(path, quality=95, subsampling=0)


def levels(frame: Frame) -> np.ndarray:
    """Confidence 0, 1, 2 by column."""
    return np.tile(np.arange(frame.depth.shape[1]) % 3, (len(frame.depth), 1)).astype(np.uint8)


def quaternion(pose: np.ndarray) -> list[float]:
    return Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()


# ARKitScenes


def arkitscenes_frames(folder: Path, video: str, images: Sequence[str], times: Sequence[float]) -> None:
    """The images of one resolution: colour, depth, and intrinsics."""
    color, depth = images
    for part in (color, depth, f"{color}_intrinsics"):
        (folder / part).mkdir(parents=True)
    for frame, time in zip(rendered(), times, strict=True):
        stem = f"{video}_{time:.3f}"
        save_color(frame.color, folder / color / f"{stem}.png")
        save_depth(frame.depth, folder / depth / f"{stem}.png")
        pincam = (WIDTH, HEIGHT, *INTRINSICS)
        (folder / f"{color}_intrinsics" / f"{stem}.pincam").write_text(" ".join(map(str, pincam)) + "\n")


def traj_line(time: float, world_from_camera: np.ndarray) -> str:
    camera_from_world = np.linalg.inv(world_from_camera)
    rotation = Rotation.from_matrix(camera_from_world[:3, :3]).as_rotvec()
    return " ".join(repr(float(v)) for v in (time, *rotation, *camera_from_world[:3, 3]))


TIMES = (98.85, 98.951, 100.05)


def write_arkitscenes(root: Path, threedod: bool = False) -> Sample:
    """The raw subset's layout, or that of 3dod, which has no confidence."""
    scene = root / "Training" / "41048190"
    folder = scene / "41048190_frames" if threedod else scene
    arkitscenes_frames(folder, "41048190", ("lowres_wide", "lowres_depth"), TIMES)
    if not threedod:
        (folder / "confidence").mkdir()
        for frame, time in zip(rendered(), TIMES, strict=True):
            Image.fromarray(levels(frame)).save(folder / "confidence" / f"41048190_{time:.3f}.png")
    lines = [traj_line(time + 0.0004, frame.world_from_camera) for frame, time in zip(rendered(), TIMES, strict=True)]
    (folder / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
    trimesh.creation.box((4, 3, 4)).export(scene / "41048190_3dod_mesh.ply")
    first = f"41048190_{TIMES[0]:.3f}.png"
    return Sample(root, folder / "lowres_wide" / first, folder / "lowres_depth" / first, folder / "lowres_wide.traj")


# Stray Scanner


def write_video(
    path: Path, images: Sequence[np.ndarray], codec: str = "libx264", gop: int = 12, **options: str
) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv444p" if codec == "libx264" else "yuv420p"
        stream.gop_size, stream.time_base = gop, Fraction(1, 30)
        stream.options = {"crf": "1", **options}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


def write_stray(root: Path, scene: str = "71de12f9", camera_columns: bool = False, npy: bool = False) -> Sample:
    folder = root / scene
    for part in ("depth", "confidence"):
        (folder / part).mkdir(parents=True)
    write_video(folder / "rgb.mp4", [frame.color for frame in rendered()])
    head = "timestamp, frame, x, y, z, qx, qy, qz, qw" + ", fx, fy, cx, cy" * camera_columns
    lines = [head]
    for k, frame in enumerate(rendered()):
        pose = frame.world_from_camera
        values = [*pose[:3, 3].tolist(), *quaternion(pose), *(INTRINSICS if camera_columns else ())]
        lines.append(", ".join((f"{7.5 + k / 60:.6f}", f"{k:06d}", *map(repr, values))))
        if npy:
            np.save(folder / "depth" / f"{k:06d}.npy", np.round(frame.depth * 1000).astype(np.uint16))
        else:
            save_depth(frame.depth, folder / "depth" / f"{k:06d}.png")
        Image.fromarray(levels(frame)).save(folder / "confidence" / f"{k:06d}.png")
    (folder / "odometry.csv").write_text("\n".join(lines) + "\n")
    if not camera_columns:
        fx, fy, cx, cy = INTRINSICS
        (folder / "camera_matrix.csv").write_text(f"{fx}, 0.0, {cx}\n0.0, {fy}, {cy}\n0.0, 0.0, 1.0")
    depth = folder / "depth" / f"000000.{'npy' if npy else 'png'}"
    return Sample(root, folder / "rgb.mp4", depth, folder / "odometry.csv")


# Record3D


def record3d_entries(**changed: Any) -> dict[str, bytes]:
    """Files of a recording: metadata with ``changed`` keys (None leaves one out), images, depth, confidence."""
    fx, fy, cx, cy = INTRINSICS
    metadata: dict[str, Any] = {
        "w": WIDTH,
        "h": HEIGHT,
        "dw": WIDTH,
        "dh": HEIGHT,
        "fps": 60,
        "K": [fx, 0, 0, 0, fy, 0, cx, cy, 1],
        "initPose": [0, 0, 0, 1, 0, 0, 0],
        "poses": [record3d_pose(frame.world_from_camera) for frame in rendered()],
        "frameTimestamps": [0.0, 0.1, 0.2],
    } | changed
    stated = {key: value for key, value in metadata.items() if value is not None}
    entries = {"metadata": json.dumps(stated).encode()}
    for k, frame in enumerate(rendered()):
        buffer = io.BytesIO()
        Image.fromarray(frame.color).save(buffer, "JPEG", quality=95, subsampling=0)
        metres = np.where(frame.depth > 0, frame.depth, np.nan).astype("<f4")
        entries[f"rgbd/{k}.jpg"] = buffer.getvalue()
        entries[f"rgbd/{k}.depth"] = lzfse_writer.compress(metres.tobytes())
        entries[f"rgbd/{k}.conf"] = lzfse_writer.compress(levels(frame).tobytes())
    return entries


def record3d_pose(world_from_camera: np.ndarray) -> list[float]:
    pose = world_from_camera @ OPENGL
    return [*quaternion(pose), *pose[:3, 3].tolist()]


def write_r3d(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def write_record3d(root: Path) -> Sample:
    path = write_r3d(root / "2026-03-01--10-20-30.r3d", record3d_entries())
    return Sample(root, path, path, path)


def write_record3d_unpacked(root: Path) -> Sample:
    folder = root / "kitchen"
    (folder / "rgbd").mkdir(parents=True)
    for name, content in record3d_entries().items():
        (folder / name).write_bytes(content)
    return Sample(folder, folder / "rgbd/0.jpg", folder / "rgbd/0.depth", folder / "metadata")


# 3D Scanner App


def write_scanner3d(root: Path) -> Sample:
    folder = root / "2026_03_01_10_20_30"
    folder.mkdir(parents=True)
    fx, fy, cx, cy = INTRINSICS
    for k, frame in enumerate(rendered()):
        number = f"{6 * k:05d}"
        stated = {
            "cameraPoseARFrame": (frame.world_from_camera @ OPENGL).reshape(-1).tolist(),
            "intrinsics": [fx, 0, cx, 0, fy, cy, 0, 0, 1],
            "motionQuality": 1,
            "frame_index": 6 * k,
            "time": 1500.25 + 0.5 * k,
        }
        (folder / f"frame_{number}.json").write_text(json.dumps(stated))
        save_color(frame.color, folder / f"frame_{number}.jpg")
        save_depth(frame.depth, folder / f"depth_{number}.png")
        Image.fromarray(levels(frame)).save(folder / f"conf_{number}.png")
        (folder / f"frame_{6 * k + 1:05d}.json").write_text(json.dumps(stated))  # of a frame without an image
        save_depth(frame.depth, folder / f"depth_{6 * k + 1:05d}.png")
    (folder / "info.json").write_text("{}")
    return Sample(root, *(folder / name for name in ("frame_00000.jpg", "depth_00000.png", "frame_00000.json")))


# Polycam


def polycam_camera(frame: Frame, shift: float = 0.0) -> str:
    pose = frame.world_from_camera @ OPENGL
    values: dict[str, Any] = {f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)}
    values["t_03"] += shift
    values |= dict(zip(("fx", "fy", "cx", "cy"), INTRINSICS, strict=True), width=WIDTH, height=HEIGHT)
    return json.dumps(values | {"blur_score": 55.5, "neighbors": [1, 2]})


def write_polycam(root: Path, corrected: bool = False) -> Sample:
    """Of the corrected layout the images and cameras as they were differ: they must not be read."""
    keyframes = root / "poly" / "keyframes"
    kinds = ("", "corrected_") if corrected else ("",)
    for part in ("depth", "confidence", *(f"{kind}{part}" for kind in kinds for part in ("images", "cameras"))):
        (keyframes / part).mkdir(parents=True)
    for k, frame in enumerate(rendered()):
        stem = str(999_900_000 + 250_142 * k)  # the second has a digit more
        save_depth(frame.depth, keyframes / "depth" / f"{stem}.png")
        byte = np.array((0, 127, 255), np.uint8)[levels(frame)]
        Image.fromarray(byte).save(keyframes / "confidence" / f"{stem}.png")
        for kind in kinds:
            stale = corrected and not kind
            color = 255 - frame.color if stale else frame.color
            save_color(color, keyframes / f"{kind}images" / f"{stem}.jpg")
            (keyframes / f"{kind}cameras" / f"{stem}.json").write_text(polycam_camera(frame, 1.0 if stale else 0.0))
    first = "999900000"
    images, cameras = (keyframes / f"{kinds[-1]}{part}" for part in ("images", "cameras"))
    return Sample(root, images / f"{first}.jpg", keyframes / "depth" / f"{first}.png", cameras / f"{first}.json")


PHONE: dict[str, Callable[[Path], Sample]] = {
    "arkitscenes": write_arkitscenes,
    "arkitscenes-threedod": lambda root: write_arkitscenes(root, threedod=True),
    "stray": write_stray,
    "stray-columns": lambda root: write_stray(root, camera_columns=True, npy=True),
    "record3d": write_record3d,
    "record3d-unpacked": write_record3d_unpacked,
    "scanner3d": write_scanner3d,
    "polycam": write_polycam,
    "polycam-corrected": lambda root: write_polycam(root, corrected=True),
}

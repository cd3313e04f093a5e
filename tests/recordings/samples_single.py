"""Small recordings in the layouts of single images without poses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from sample_frames import Sample, rendered

NUMBERS = (3, 4, 5)  #: of the official training set; 1 and 2 are of the test set


def write_cameras(root: Path) -> None:
    """What NYUv2 needs to hear of images that are not 640 x 480."""
    camera = rendered()[0].color_camera
    lines = ", ".join(f"{key}: {getattr(camera, key)}" for key in ("fx", "fy", "cx", "cy"))
    (root / "cameras.yaml").write_text(f"color: {{{lines}}}\n")


def write_nyu_mat(root: Path) -> Sample:
    """Axes in reverse, as MATLAB stores them. Images 1 and 2 are black."""
    frames = rendered()
    color = np.stack([f.color.transpose(2, 1, 0) for f in frames])
    depth = np.stack([f.depth.T for f in frames])
    labels = np.ones((5, *depth.shape[1:]), np.uint16)
    path = root / "nyu_depth_v2_labeled.mat"
    root.mkdir(parents=True)
    write_cameras(root)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["images"] = np.concatenate((np.zeros_like(color[:2]), color))
        file["labels"], file["instances"] = labels, labels.astype(np.uint8)
        measured = np.concatenate((depth[:2], depth)).astype(np.float32)
        file["rawDepths"] = np.where(measured == 0, 10, measured).astype(np.float32)
        file["depths"] = np.where(measured == 0, 2, measured).astype(np.float32)
    return Sample(root, path, path, path)


def write_nyu_exported(root: Path) -> Sample:
    for number, frame in zip(NUMBERS, rendered(), strict=True):
        color, depth = root / "train" / "color" / f"{number:04d}.png", root / "depth" / f"{number:06d}.png"
        save(frame.color, color)
        save(millimetres(frame.depth), depth)
    save(np.zeros((36, 48, 3), np.uint8), root / "val" / "color" / "0001.png")
    write_cameras(root)
    return Sample(root, root / "train/color/0003.png", root / "depth/000003.png", root / "cameras.yaml")


def write_sunrgbd(root: Path) -> Sample:
    camera = rendered()[0].color_camera
    k = ((camera.fx, 0, camera.cx - 0.5), (0, camera.fy, camera.cy - 0.5), (0, 0, 1))
    folders = [root / "xtion" / "sun3ddata" / "home_1" / "home_1" / f"{n:07d}-{n:012d}" for n in range(3)]
    for folder, frame in zip(folders, rendered(), strict=True):
        save(frame.color, folder / "image" / "0000001.jpg")
        raw = millimetres(frame.depth)
        save((raw << 3) | (raw >> 13), folder / "depth" / "0000001-000000020023.png")
        save(np.zeros_like(raw), folder / "depth_bfx" / "0000001-000000020023.png")
        (folder / "extrinsics").mkdir()
        np.savetxt(folder / "extrinsics" / "20150423.txt", np.eye(3, 4))
        np.savetxt(folder / "intrinsics.txt", k, fmt="%.9f")
    first = folders[0]
    depth = first / "depth" / "0000001-000000020023.png"
    return Sample(root, first / "image" / "0000001.jpg", depth, first / "intrinsics.txt")


def write_images(root: Path) -> Sample:
    """Two folders of images and nothing else."""
    for folder in ("first", "second/inner"):
        for frame in rendered():
            save(frame.color, root / folder / f"{frame.name}.png")
    first = root / "first" / f"{rendered()[0].name}.png"
    return Sample(root, first, first, first)


def millimetres(depth: np.ndarray) -> np.ndarray:
    return np.round(depth * 1000).astype(np.uint16)


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(pixels).save(path, **options)


SINGLE: dict[str, Callable[[Path], Sample]] = {
    "nyuv2": write_nyu_mat,
    "nyuv2-exported": write_nyu_exported,
    "sunrgbd": write_sunrgbd,
    "images": write_images,
}

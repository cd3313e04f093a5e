"""Small recordings in the layouts of depth cameras and SLAM sets."""

from __future__ import annotations

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


DESK: dict[str, Callable[[Path], Sample]] = {
    "tum": write_tum,
    "icl": write_icl,
}

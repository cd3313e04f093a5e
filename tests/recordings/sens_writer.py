"""Writes ``.sens`` files, field by field as the format has them; every field can be given a wrong value."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pri3d.types import Camera, Frame


class Parts(NamedTuple):
    """One frame as it will lie in the file."""

    pose: np.ndarray
    color: bytes
    depth: bytes


def encoded(color: np.ndarray, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(color).save(buffer, form, quality=95, subsampling=0)
    return buffer.getvalue()


def parts(frame: Frame) -> Parts:
    depth = np.round(frame.depth * 1000).astype("<u2").tobytes()
    return Parts(frame.world_from_camera, encoded(frame.color), zlib.compress(depth))


def matrix(camera: Camera) -> np.ndarray:
    """Intrinsics that count pixel centres at integers."""
    k = np.eye(4)
    k[0, 0], k[1, 1], k[0, 2], k[1, 2] = camera.fx, camera.fy, camera.cx - 0.5, camera.cy - 0.5
    return k


def header(camera: Camera, depth_camera: Camera | None = None, **changed: Any) -> bytes:
    depth_camera = depth_camera or camera
    fields: dict[str, Any] = {
        "version": 4,
        "sensor": b"StructureSensor",
        "color_matrix": matrix(camera),
        "color_extrinsic": np.eye(4),
        "depth_matrix": matrix(depth_camera),
        "depth_extrinsic": np.eye(4),
        "compression": (2, 1),
        "sizes": (camera.width, camera.height, depth_camera.width, depth_camera.height),
        "units": 1000.0,
        "frames": 0,
    } | changed
    matrices = ("color_matrix", "color_extrinsic", "depth_matrix", "depth_extrinsic")
    return b"".join(
        (
            struct.pack("<IQ", fields["version"], len(fields["sensor"])) + fields["sensor"],
            *(np.asarray(fields[name], "<f4").tobytes() for name in matrices),
            struct.pack("<2i4If", *fields["compression"], *fields["sizes"], fields["units"]),
            struct.pack("<Q", fields["frames"]),
        )
    )


def frame_bytes(frame: Parts, color_bytes: int | None = None, depth_bytes: int | None = None) -> bytes:
    sizes = (
        len(frame.color) if color_bytes is None else color_bytes,
        len(frame.depth) if depth_bytes is None else depth_bytes,
    )
    pose = np.asarray(frame.pose, "<f4").tobytes()
    return pose + struct.pack("<4Q", 11, 12, *sizes) + frame.color + frame.depth


def write_sens(path: Path, items: Sequence[Parts], camera: Camera, **changed: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    inertial = struct.pack("<Q", 0)
    content = b"".join(frame_bytes(item) for item in items)
    path.write_bytes(header(camera, **{"frames": len(items), **changed}) + content + inertial)
    return path

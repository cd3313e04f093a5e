"""Which frames of a scene are prepared: every k-th, or those that the camera's motion and their sharpness choose."""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, radians
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import DataError, FrameError
from pri3d.recordings import Scene
from pri3d.types import View

Select = Literal["every", "motion"]

#: Metres that a stretch spans at most. Half a metre away a point moves by 11 degrees: neighbouring stretches overlap
#: by most of the picture, and only one step of many looks the same twice. Scenes of an unknown unit are scaled to a
#: median depth of 2 m before, so that this is a twentieth of it.
MOVED = 0.1
TURNED = radians(10)  #: and that it turns by, a fifth to a sixth of the field of view of the usual cameras
LOOKED_AT = 5  #: frames of a stretch whose sharpness is compared; a shake lasts some tenths of a second
_COMPARED = 320  # pixels of width at which sharpness is measured: what blur of a pixel or less does is no harm


class Stretch(NamedTuple):
    """Neighbouring frames that see nearly the same: one of them is prepared."""

    looked_at: list[int]  #: indices of the frames to choose from, in time order
    lost: dict[int, str]  #: index -> why a frame among or beside them has no pose
    toward: NDArray[np.float64] | None = None  #: (3,) of the world, where its first frame looks


def stretches(scene: Scene, select: Select, step: int) -> list[Stretch]:
    """Cut the scene's every ``step``-th frames into stretches of which one frame each is wanted.

    "every" makes each frame a stretch. With "motion" a new one begins where the camera has moved by more than
    ``MOVED`` metres or turned by more than ``TURNED`` since the first frame of the stretch; a camera that rests gives
    one stretch however long it rests. Only poses are read, where the scene can give them alone. Raises DataError
    for "motion" where the scene has no poses.
    """
    indices = range(0, len(scene.names), step)
    if select == "every":
        return [Stretch([index], {}) for index in indices]
    if not scene.posed:
        raise DataError("its frames have no poses to tell the camera's motion from. Leave out --select motion.")
    return list(_cut(scene, indices))


def _cut(scene: Scene, indices: range) -> Iterator[Stretch]:
    inside: list[int] = []
    lost: dict[int, str] = {}
    first = np.eye(4)
    for index in indices:
        try:
            pose = scene.pose(index)
        except FrameError as error:
            lost[index] = str(error)
            continue
        if not inside or _apart(first, pose):
            if inside:
                yield Stretch(_thinned(inside), lost, first[:3, 2])
                inside, lost = [], {}
            first = pose
        inside.append(index)
    if inside or lost:
        yield Stretch(_thinned(inside), lost, first[:3, 2])


def _apart(first: NDArray[np.float64], pose: NDArray[np.float64]) -> bool:
    moved = float(np.linalg.norm(pose[:3, 3] - first[:3, 3]))
    cosine = (float(np.sum(first[:3, :3] * pose[:3, :3])) - 1) / 2
    return moved > MOVED or cosine < cos(TURNED)


def _thinned(inside: list[int]) -> list[int]:
    """The middle frames of equal parts of a stretch."""
    count = min(len(inside), LOOKED_AT)
    return [inside[(2 * k + 1) * len(inside) // (2 * count)] for k in range(count)]


def sharpness(view: View, toward: NDArray[np.float64]) -> float:
    """How sharp the part of a frame is that lies about the direction ``toward`` (3,) of the world; more is sharper.

    The variance of the Laplacian of the grey image over the variance of the image itself, which takes the exposure
    out. The part is half as wide and high as the image: of neighbouring frames it shows nearly the same, so that
    their values can be compared, and a patterned curtain at the border of one makes it no sharper.
    """
    height, width = view.color.shape[:2]
    scale = min(1.0, _COMPARED / width)
    size = max(3, round(width * scale)), max(3, round(height * scale))
    image = Image.fromarray(view.color).convert("L").resize(size, Image.Resampling.BILINEAR)
    grey = np.asarray(image, np.float64)
    x, y, z = view.world_from_camera[:3, :3].T @ toward
    fx, fy, cx, cy = view.intrinsics
    at = ((x / z * fx + cx) / width, (y / z * fy + cy) / height) if z > 0 else (0.5, 0.5)
    rows, columns = _middle(at[1], size[1]), _middle(at[0], size[0])
    part = grey[rows, columns]
    bent = part[:-2, 1:-1] + part[2:, 1:-1] + part[1:-1, :-2] + part[1:-1, 2:] - 4 * part[1:-1, 1:-1]
    return float(bent.var() / part.var()) if part.var() > 0 else 0.0


def _middle(at: float, size: int) -> slice:
    """Half of ``size`` pixels, three at least, about the share ``at`` of them, as near as the border lets."""
    half = max(3, size // 2)
    start = min(max(0, round(at * size - half / 2)), size - half)
    return slice(start, start + half)

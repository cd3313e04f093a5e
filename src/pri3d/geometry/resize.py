"""Image sizes and resampling; numpy only, since preparation does not need PyTorch."""

from __future__ import annotations

import re
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.api.pretrain import Interpolation
from pri3d.errors import ConfigError
from pri3d.types import View

#: Relative difference of aspect ratios up to which images are resampled to another shape, as the paper does with
#: ScanNet's 1296 x 968 (0.4 %); the intrinsics carry the two scales. Of others the middle is cut out.
SAME_SHAPE = 0.03
Scalar = TypeVar("Scalar", bound=np.generic)


def parse_size(text: str) -> tuple[int, int]:
    """``320x240`` (width x height, as cameras state it) -> (320, 240). Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(int(n) for n in found.groups()) < 16:
        raise ConfigError(f"--size {text}: write width x height in pixels, 16 or more each, as in 320x240.")
    return int(found[1]), int(found[2])


def shape_box(have: tuple[int, int], want: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the middle part of an image ``have`` that has the shape of ``want`` = (w, h).

    All of it where the aspect ratios differ by ``SAME_SHAPE`` at most.
    """
    width, height = have
    ratio = width * want[1] / (height * want[0])
    if abs(ratio - 1) <= SAME_SHAPE:
        return 0, 0, width, height
    if ratio > 1:
        width = max(1, round(height * want[0] / want[1]))
    else:
        height = max(1, round(width * want[1] / want[0]))
    return (have[0] - width) // 2, (have[1] - height) // 2, width, height


def crop_to_shape(view: View, want: tuple[int, int]) -> View:
    """Middle of a view, of the shape of ``want`` = (w, h), see :func:`shape_box`; its camera is that of the part."""
    left, top, width, height = shape_box((view.depth.shape[1], view.depth.shape[0]), want)
    if (height, width) == view.depth.shape:
        return view
    part = np.s_[top : top + height, left : left + width]
    moved = np.asarray(view.intrinsics - (0, 0, left, top), np.float64)
    return view._replace(color=view.color[part], depth=view.depth[part], intrinsics=moved)


def resize_color(color: NDArray[np.uint8], size: tuple[int, int], how: Interpolation = "bilinear") -> NDArray[np.uint8]:
    """RGB (H, W, 3) -> (h, w, 3) of ``size`` = (w, h).

    Bilinear is antialiased; nearest is what the released code does.
    """
    if (color.shape[1], color.shape[0]) == size:
        return color
    resample = Image.Resampling.BILINEAR if how == "bilinear" else Image.Resampling.NEAREST
    return np.array(Image.fromarray(color).resize(size, resample))


def resize_nearest(values: NDArray[Scalar], size: tuple[int, int]) -> NDArray[Scalar]:
    """Depth or labels (H, W) -> (h, w) of ``size`` = (w, h) by taking the pixel each new centre falls into."""
    height, width = values.shape
    if (width, height) == size:
        return values
    rows = ((np.arange(size[1]) + 0.5) * (height / size[1])).astype(np.int64)
    columns = ((np.arange(size[0]) + 0.5) * (width / size[0])).astype(np.int64)
    picked: NDArray[Scalar] = values[rows[:, None], columns]
    return picked

"""Image sizes and resampling; numpy only, since preparation does not need PyTorch."""

from __future__ import annotations

import re
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.api.pretrain import Interpolation
from pri3d.errors import ConfigError

Scalar = TypeVar("Scalar", bound=np.generic)


def parse_size(text: str) -> tuple[int, int]:
    """``320x240`` (width x height, as cameras state it) -> (320, 240). Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(int(n) for n in found.groups()) < 16:
        raise ConfigError(f"--size {text}: write width x height in pixels, 16 or more each, as in 320x240.")
    return int(found[1]), int(found[2])


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

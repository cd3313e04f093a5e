"""What a structured-light depth camera makes of exact depth, and a colour camera of exact colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_DISPARITY = 585.0 * 0.075  # pixels times metres: focal length at 640 x 480 and baseline of the first Kinect
_SUBPIXEL = 8  # steps per pixel of disparity
_NEAREST, _FARTHEST = 0.4, 6.0  # metres


def noisy_depth(depth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Exact depth (H, W), metres, 0 = none -> measured depth in whole millimetres (as metres), 0 = invalid.

    Noise that grows with the square of the distance (Nguyen et al. 2012), disparity in steps of 1/8 pixel, holes
    along depth edges, nothing nearer than 0.4 m or farther than 6 m.
    """
    z = depth + rng.standard_normal(depth.shape) * (0.0012 + 0.0019 * (depth - 0.4) ** 2) * (depth > 0)
    steps = np.round(_DISPARITY / np.maximum(z, 0.05) * _SUBPIXEL)
    z = _DISPARITY * _SUBPIXEL / np.maximum(steps, 1)
    jump = ndimage.maximum_filter(depth, 3) - ndimage.minimum_filter(depth, 3)
    share = 0.6 * min(1.0, depth.shape[1] / 160)  # a hole is a few millimetres wide, not a share of a coarse pixel
    edge = (jump > 0.04 + 0.05 * depth) & (rng.random(depth.shape) < share)
    valid = (depth > 0) & ~edge & (z >= _NEAREST) & (z <= _FARTHEST)
    return np.array(np.round(z * 1000) / 1000 * valid, np.float32)


def noisy_color(color: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Linear RGB (H, W, 3) -> the same with this frame's exposure, white balance and read noise."""
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.94, 1.06, 3)
    shot = rng.standard_normal(color.shape, dtype=np.float32) * (0.004 + 0.01 * np.sqrt(color))
    return np.array(color * gain + shot, np.float32)

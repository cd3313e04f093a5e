"""What linear probes predict, and how it is scored: depth, surface normals, classes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pri3d.geometry.camera import pixel_centres

WINDOW = 5  #: pixels on a side, to which a plane is fitted for a normal
ROUGHNESS = 0.02  #: root mean square distance from that plane, as a share of the depth, above which there is none
DEGREES = (11.25, 22.5, 30.0)
RATIO = 1.25  #: of depths, for delta 1 to 3


class DepthScore(NamedTuple):
    """Predicted against measured depth over all measured pixels."""

    rmse: float  #: metres
    delta1: float  #: share 0..1 of pixels whose larger depth is less than 1.25 times the smaller
    delta2: float  #: 1.25 to the power of 2
    delta3: float
    pixels: int


class NormalScore(NamedTuple):
    """Angle between predicted and measured normals over all pixels that have one."""

    mean: float  #: degrees
    median: float
    below_11: float  #: share 0..1 of pixels with less than 11.25 degrees
    below_22: float  #: 22.5
    below_30: float
    pixels: int


class SegmentationScore(NamedTuple):
    """Classes of labelled pixels."""

    miou: float  #: 0..1, over the classes that occur
    accuracy: float  #: share 0..1 of pixels
    classes: int  #: that occur


class DepthErrors:
    """Gathers :class:`DepthScore` on the device."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Add images of metres (..., H, W). Pixels whose true depth is 0 do not count.

        In ratios a prediction below 1 mm is 1 mm.
        """
        valid = true > 0
        square = torch.where(valid, predicted - true, 0.0).double().square().sum()
        near, true = predicted.clamp(min=1e-3), torch.where(valid, true, 1.0)
        ratio = torch.maximum(near / true, true / near)
        close = [(valid & (ratio < RATIO**k)).sum() for k in (1, 2, 3)]
        self.sums.append(torch.stack([square, *(x.double() for x in close), valid.sum().double()]))

    def result(self) -> DepthScore:
        """Scores, NaN where no pixel was measured."""
        square, *close, count = torch.stack(self.sums).sum(dim=0).tolist()
        if not count:
            return DepthScore(math.nan, math.nan, math.nan, math.nan, 0)
        one, two, three = (x / count for x in close)
        return DepthScore(math.sqrt(square / count), one, two, three, int(count))


class NormalErrors:
    """Gathers :class:`NormalScore` on the device."""

    def __init__(self) -> None:
        self.angles: list[Tensor] = []

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Add normals (B, 3, H, W): predicted of any length, true of length 1, or 0 where there is none."""
        valid = true.square().sum(dim=1) > 0.5
        # atan2, since arccos of float32 cannot tell angles below 0.02 degrees from 0
        a, b = F.normalize(predicted, dim=1), true
        angle = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))
        self.angles.append(torch.rad2deg(angle[valid]))

    def result(self) -> NormalScore:
        """Scores, NaN where no pixel has a normal."""
        angles = torch.cat(self.angles)
        if not len(angles):
            return NormalScore(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
        one, two, three = (float((angles < end).double().mean()) for end in DEGREES)
        return NormalScore(float(angles.double().mean()), float(angles.median()), one, two, three, len(angles))


def surface_normals(depth: Tensor, intrinsics: Tensor, window: int = WINDOW) -> Tensor:
    """Normals of measured surfaces in camera axes (x right, y down, z forward), towards the camera.

    A plane is fitted to the pixels around each by least squares. The inverse depth of a plane is linear in the pixel,
    so the fit has a closed form and is exact for a plane at any slant. There is no normal where a pixel of the window
    is not measured or outside the image, or where they lie off the plane by more than ``ROUGHNESS`` of the depth (an
    edge).

    Args:
        depth: (B, H, W) metres, 0 = invalid.
        intrinsics: (B, 4) in pixels of (H, W).
        window: odd number of pixels.

    Returns:
        (B, 3, H, W) of length 1, or 0 where there is none.
    """
    height, width = depth.shape[-2:]
    reach = window // 2
    inverse = torch.where(depth > 0, 1 / depth.clamp(min=1e-6), 0.0)
    offset = torch.arange(-reach, reach + 1, device=depth.device, dtype=depth.dtype).expand(window, window)
    kernel = torch.stack((torch.ones_like(offset), offset, offset.mT))[:, None]
    padded = F.pad(inverse[:, None], (reach,) * 4)
    total, across, down = F.conv2d(padded, kernel).unbind(1)
    count, spread = window**2, float(offset.square().sum())
    mean, du, dv = total / count, across / spread, down / spread
    whole = -F.max_pool2d(F.pad(-(depth > 0).to(depth.dtype)[:, None], (reach,) * 4), window, 1)[:, 0] > 0
    # Differences from the centre, so that float32 does not cancel
    local = F.unfold(padded, window).view(len(depth), window**2, height, width) - mean[:, None]
    u, v = offset.flatten()[:, None, None], offset.mT.flatten()[:, None, None]
    rough = (local - du[:, None] * u - dv[:, None] * v).square().mean(dim=1).sqrt()
    valid = whole & (rough < ROUGHNESS * mean)
    fx, fy, cx, cy = intrinsics[:, :, None, None].unbind(1)
    x, y = pixel_centres(height, width, like=depth).unbind(-1)
    # 1 / z = n . (ray of the pixel) / distance
    normal = torch.stack((du * fx, dv * fy, mean - du * (x - cx) - dv * (y - cy)), dim=1)
    return torch.where(valid[:, None], -F.normalize(normal, dim=1), 0.0)

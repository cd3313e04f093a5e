"""Normals of measured surfaces."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pri3d.geometry.camera import pixel_centres

WINDOW = 5  #: pixels on a side, to which a plane is fitted for a normal
ROUGHNESS = 0.02  #: root mean square distance from that plane, as a share of the depth, above which there is none


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
    count, spread = window**2, window**2 * (window**2 - 1) / 12  # of ones and of squared offsets
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

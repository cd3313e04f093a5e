"""Normals of measured surfaces."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pri3d.geometry.camera import pixel_centres

WINDOW = 5  #: pixels on a side, to which a plane is fitted for a normal
ROUGHNESS = 0.02  #: root mean square distance from that plane, as a share of the depth, above which there is none


def surface_normals(depth: Tensor, intrinsics: Tensor, window: int = WINDOW, pixels: Tensor | None = None) -> Tensor:
    """Normals of measured surfaces in camera axes (x right, y down, z forward), towards the camera.

    A plane is fitted to the pixels around each by least squares. The inverse depth of a plane is linear in the pixel,
    so the fit has a closed form and is exact for a plane at any slant. There is no normal where a pixel of the window
    is not measured or outside the image, or where they lie off the plane by more than ``ROUGHNESS`` of the depth (an
    edge).

    Args:
        depth: (B, H, W) metres, 0 = invalid.
        intrinsics: (B, 4) in pixels of (H, W).
        window: odd number of pixels.
        pixels: (B, N) int64, flat numbers of the pixels that are wanted; all where it is not given.

    Returns:
        (B, 3, H, W), or (B, 3, N) of ``pixels``, of length 1, or 0 where there is none.
    """
    height, width = depth.shape[-2:]
    reach = window // 2
    inverse = torch.where(depth > 0, 1 / depth.clamp(min=1e-6), 0.0)
    padded = F.pad(inverse, (reach,) * 4)  # with 0, which is not measured
    steps = torch.arange(window, device=depth.device)
    if pixels is None:
        near = F.unfold(padded[:, None], window)
        places = pixel_centres(height, width, like=depth).flatten(0, 1)
    else:
        corner = pixels // width * padded.shape[-1] + pixels % width
        around = (steps[:, None] * padded.shape[-1] + steps).flatten()
        near = (
            padded.flatten(1)
            .gather(1, (corner[:, None] + around[:, None]).flatten(1))
            .view(len(depth), -1, pixels.shape[1])
        )
        places = pixel_centres(height, width, like=depth).flatten(0, 1)[pixels]
    offset = (steps - reach).to(depth.dtype)
    u, v = offset.repeat(window)[:, None], offset.repeat_interleave(window)[:, None]
    spread = window**2 * (window**2 - 1) / 12  # sum of the squared offsets
    mean, du, dv = near.mean(dim=1), (near * u).sum(dim=1) / spread, (near * v).sum(dim=1) / spread
    # Differences from the centre, so that float32 does not cancel
    rough = (near - mean[:, None] - du[:, None] * u - dv[:, None] * v).square().mean(dim=1).sqrt()
    valid = (near > 0).all(dim=1) & (rough < ROUGHNESS * mean)
    fx, fy, cx, cy = intrinsics[:, :, None].unbind(1)
    x, y = places.unbind(-1)
    # 1 / z = n . (ray of the pixel) / distance
    normal = torch.stack((du * fx, dv * fy, mean - du * (x - cx) - dv * (y - cy)), dim=1)
    normal = torch.where(valid[:, None], -F.normalize(normal, dim=1), 0.0)
    return normal if pixels is not None else normal.view(len(depth), 3, height, width)

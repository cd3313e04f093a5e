"""The pinhole camera, stated once. Axes OpenCV: x right, y down, z forward; pixel centres at integer + 0.5.

All functions take and return torch tensors of any leading batch shape and run on the tensors' own device.
Intrinsics are (..., 4): fx, fy, cx, cy in pixels of the image they belong to. Depth is z in metres, 0 = invalid.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_centres(height: int, width: int, *, like: Tensor) -> Tensor:
    """Pixel centres (height, width, 2): u = column + 0.5, v = row + 0.5, on the device and of the dtype of ``like``."""
    v = torch.arange(height, device=like.device, dtype=like.dtype) + 0.5
    u = torch.arange(width, device=like.device, dtype=like.dtype) + 0.5
    return torch.stack((u.expand(height, width), v[:, None].expand(height, width)), dim=-1)


def back_project(depth: Tensor, pixels: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels with depth -> camera points. depth (..., N), pixels (..., N, 2), intrinsics (..., 4) -> (..., N, 3) m."""
    focal, centre = intrinsics[..., None, :2], intrinsics[..., None, 2:]
    rays = (pixels - centre) / focal
    return torch.cat((rays * depth[..., None], depth[..., None]), dim=-1)


def project(points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Camera points (..., N, 3) m -> pixels (..., N, 2) and depth z (..., N).

    Points with z <= 0 are behind the camera: their pixels are finite but meaningless, test z first.
    """
    z = points[..., 2]
    safe = torch.where(z.abs() < 1e-6, torch.full_like(z, 1e-6), z)
    pixels = points[..., :2] / safe[..., None] * intrinsics[..., None, :2] + intrinsics[..., None, 2:]
    return pixels, z

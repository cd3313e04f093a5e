"""Image warping: undistortion, and depth seen from another camera."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pri3d.types import Camera

Scalar = TypeVar("Scalar", bound=np.generic)
Plane = NDArray[np.float64]
SAME = 0.1  #: pixels; cameras whose images nowhere differ by more count as one
_RADII = 4096  # steps in which the growth of the radius is followed


class Lens(NamedTuple):
    """Distortion with OpenCV's models and order of coefficients."""

    kind: Literal["radial", "fisheye"]
    #: radial: k1, k2, p1, p2, k3, k4, k5, k6 (the last may be missing); fisheye (equidistant): k1, k2, k3, k4
    k: tuple[float, ...]

    def distort(self, x: Plane, y: Plane) -> tuple[Plane, Plane]:
        """Ideal image coordinates x = X / Z, y = Y / Z (any shape) -> where the lens puts them."""
        scale = self._scale(np.hypot(x, y))
        if self.kind == "fisheye":
            return x * scale, y * scale
        p1, p2 = (*self.k, *(0.0,) * 4)[2:4]
        s = x * x + y * y
        return x * scale + 2 * p1 * x * y + p2 * (s + 2 * x * x), y * scale + p1 * (s + 2 * y * y) + 2 * p2 * x * y

    def reach(self, largest: float) -> float:
        """Radius up to which a larger ideal radius is a larger one in the image; inf if that holds to ``largest``.

        Beyond it a polynomial that was fitted to the image's own radii folds back: what it puts into the image there
        is seen a second time.
        """
        radii = np.linspace(0.0, largest, _RADII)
        with np.errstate(all="ignore"):
            grows = np.diff(radii * self._scale(radii)) > 0  # not so of nan
        return np.inf if grows.all() else float(radii[int(np.argmin(grows))])

    def _scale(self, r: Plane) -> Plane:
        """Ideal radii -> the factors by which the lens stretches them, tangential distortion aside."""
        if self.kind == "fisheye":
            k = (*self.k, *(0.0,) * 4)[:4]
            angle = np.arctan(r)
            s = angle * angle
            bent = angle * (1 + s * (k[0] + s * (k[1] + s * (k[2] + s * k[3]))))
            return np.where(r > 1e-9, bent / np.maximum(r, 1e-9), 1.0)
        k1, k2, _, _, k3, k4, k5, k6 = (*self.k, *(0.0,) * 8)[:8]
        s = r * r
        return (1 + s * (k1 + s * (k2 + s * k3))) / (1 + s * (k4 + s * (k5 + s * k6)))


def undistort_color(color: NDArray[np.uint8], camera: Camera, lens: Lens) -> NDArray[np.uint8]:
    """RGB (H, W, 3) seen through ``lens`` -> RGB of the pinhole ``camera``, bilinear; black where nothing was seen."""
    u, v = _sources(camera, lens)
    result = np.zeros_like(color)
    _bilinear(np.ascontiguousarray(color), u - 0.5, v - 0.5, result)
    return result


def undistort_nearest(values: NDArray[Scalar], camera: Camera, lens: Lens, outside: int = 0) -> NDArray[Scalar]:
    """Depth or ids (H, W) seen through ``lens`` -> those of the pinhole ``camera``, by the nearest pixel.

    ``outside`` stands where nothing was seen.
    """
    u, v = _sources(camera, lens)
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    result = np.full_like(values, outside)
    result[inside] = values[v[inside].astype(np.int64), u[inside].astype(np.int64)]
    return result


@lru_cache(maxsize=2)  # a scene's colour and depth camera; of large photographs each takes 100 MB
def _sources(camera: Camera, lens: Lens) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixel coordinates u, v (H, W) in the distorted image of every pixel of the ideal one; -1 where there is none."""
    x, y = np.meshgrid(
        (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx,
        (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy,
    )
    radius = np.hypot(x, y)
    with np.errstate(all="ignore"):
        bent_x, bent_y = lens.distort(x, y)
        u, v = bent_x * camera.fx + camera.cx, bent_y * camera.fy + camera.cy
        seen = (radius <= lens.reach(float(radius.max()))) & (u >= 0) & (u <= camera.width)
        seen &= (v >= 0) & (v <= camera.height)  # false of nan
    return np.where(seen, u, -1).astype(np.float32), np.where(seen, v, -1).astype(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def _bilinear(
    image: NDArray[np.uint8], columns: NDArray[np.float32], rows: NDArray[np.float32], result: NDArray[np.uint8]
) -> None:
    """Fill ``result`` (H, W, 3) with ``image`` at fractional pixel indices; border pixels reach half a pixel out."""
    height, width = image.shape[:2]
    for v in range(result.shape[0]):
        for u in range(result.shape[1]):
            x, y = columns[v, u], rows[v, u]
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                continue
            x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
            left, top = int(x), int(y)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            a, b = x - left, y - top
            for c in range(3):
                upper = (1 - a) * image[top, left, c] + a * image[top, right, c]
                lower = (1 - a) * image[bottom, left, c] + a * image[bottom, right, c]
                result[v, u, c] = int((1 - b) * upper + b * lower + 0.5)


def register_depth(
    depth: NDArray[np.float32], source: Camera, target: Camera, target_from_source: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Depth (h, w) m of ``source`` -> depth (H, W) m as ``target`` sees it, 0 = invalid in both.

    Every pixel is carried over as the rectangle it covers, so that a denser target shows no cracks; where several
    surfaces meet the nearest wins. Returns the input where the cameras agree within ``SAME`` pixels.
    """
    if source[:2] == target[:2] and np.allclose(target_from_source, np.eye(4), atol=1e-6):
        shift_u = (np.array((0, source.width)) - source.cx) / source.fx * target.fx + target.cx - (0, source.width)
        shift_v = (np.array((0, source.height)) - source.cy) / source.fy * target.fy + target.cy - (0, source.height)
        if max(np.abs(shift_u).max(), np.abs(shift_v).max()) <= SAME:
            return depth
    source_intrinsics, target_intrinsics = np.array(source[2:]), np.array(target[2:])
    nearest = np.full((target.height, target.width), np.inf, dtype=np.float32)
    _splat(np.ascontiguousarray(depth, np.float32), source_intrinsics, target_intrinsics, target_from_source, nearest)
    return np.where(np.isfinite(nearest), nearest, np.float32(0))


@njit(cache=True, nogil=True, error_model="numpy")
def _splat(
    depth: NDArray[np.float32],
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    target_from_source: NDArray[np.float64],
    nearest: NDArray[np.float32],
) -> None:
    """Write into ``nearest`` the smallest depth of the source pixels that cover each target pixel's centre."""
    m = target_from_source
    corner = np.empty((4, 2))
    for row in range(depth.shape[0]):
        for column in range(depth.shape[1]):
            z = float(depth[row, column])
            if z <= 0.0:
                continue
            x, y = (column + 0.5 - source[2]) / source[0] * z, (row + 0.5 - source[3]) / source[1] * z
            seen = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
            for k in range(4):  # the pixel's corners, at its own depth
                x, y = (column + k % 2 - source[2]) / source[0] * z, (row + k // 2 - source[3]) / source[1] * z
                ahead = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
                if ahead <= 0.0:
                    seen = 0.0
                corner[k, 0] = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / ahead * target[0] + target[2]
                corner[k, 1] = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / ahead * target[1] + target[3]
            if seen > 0.0:
                _fill(nearest, corner, seen)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(nearest: NDArray[np.float32], corner: NDArray[np.float64], z: float) -> None:
    """Lower ``nearest`` to ``z`` at the pixels whose centres lie within the box round the corners."""
    height, width = nearest.shape
    u0, u1 = corner[:, 0].min(), corner[:, 0].max()
    v0, v1 = corner[:, 1].min(), corner[:, 1].max()
    if u1 < 0.0 or v1 < 0.0 or u0 > width or v0 > height:
        return
    for row in range(max(0, int(np.ceil(v0 - 0.5))), min(height, int(np.ceil(v1 - 0.5)))):
        for column in range(max(0, int(np.ceil(u0 - 0.5))), min(width, int(np.ceil(u1 - 0.5)))):
            nearest[row, column] = min(nearest[row, column], z)

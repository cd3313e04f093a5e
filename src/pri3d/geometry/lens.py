"""Lens distortion: what a calibration says about it, and images as the ideal pinhole camera would see them."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pri3d.types import Camera

Scalar = TypeVar("Scalar", bound=np.generic)
Plane = NDArray[np.float64]
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

"""Colour operations on bytes, each one pass over the pixels: torchvision's up to rounding, several times as fast.

All take and fill RGB images (3, H, W) uint8.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
_RED, _GREEN, _BLUE = (
    np.float32(0.2989),
    np.float32(0.587),
    np.float32(0.114),
)  # of grey, as in torchvision


def brightness(image: Bytes, factor: float, result: Bytes) -> None:
    """Multiply by ``factor``, at least 0."""
    _look_up(image, _table(np.arange(256, dtype=np.float32) * np.float32(factor)), result)


def contrast(image: Bytes, factor: float, result: Bytes) -> None:
    """Multiply the distance from the image's mean grey by ``factor``, at least 0."""
    mean = np.float32(_mean_grey(image))
    values = np.arange(256, dtype=np.float32) * np.float32(factor)
    _look_up(image, _table(values + mean * np.float32(1 - factor)), result)


def saturation(image: Bytes, factor: float, result: Bytes) -> None:
    """Multiply the distance from each pixel's grey by ``factor``, at least 0."""
    _saturate(image, np.float32(factor), result)


def hue(image: Bytes, shift: float, result: Bytes) -> None:
    """Turn the hue by ``shift`` of the colour circle, -0.5..0.5."""
    _turn_hue(image, np.float32(shift), result)


def blur(image: Bytes, weights: Floats, result: Bytes) -> None:
    """Blur with ``weights`` (2 n + 1,), along rows and then columns; the border is mirrored without its edge."""
    half = len(weights) // 2
    padded = np.pad(image, ((0, 0), (half, half), (half, half)), mode="reflect")
    _convolve(padded, weights, result)


def _table(values: Floats) -> Bytes:
    """What becomes of each byte (256,)."""
    table: Bytes = np.clip(values, 0, 255).astype(np.uint8)
    return table


@njit(cache=True, nogil=True, error_model="numpy")
def _look_up(image: Bytes, table: Bytes, result: Bytes) -> None:
    source, target = image.reshape(-1), result.reshape(-1)
    for k in range(source.size):
        target[k] = table[source[k]]


@njit(cache=True, nogil=True, error_model="numpy")
def _grey(r: int, g: int, b: int) -> int:
    return int(_RED * np.float32(r) + _GREEN * np.float32(g) + _BLUE * np.float32(b))


@njit(cache=True, nogil=True, error_model="numpy")
def _mean_grey(image: Bytes) -> float:
    total = 0
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            total += _grey(image[0, row, column], image[1, row, column], image[2, row, column])
    return float(total / (image.shape[1] * image.shape[2]))


@njit(cache=True, nogil=True, error_model="numpy")
def _saturate(image: Bytes, factor: np.float32, result: Bytes) -> None:
    rest, most = np.float32(1) - factor, np.float32(255)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            grey = rest * np.float32(_grey(image[0, row, column], image[1, row, column], image[2, row, column]))
            for channel in range(3):
                value = factor * np.float32(image[channel, row, column]) + grey
                result[channel, row, column] = np.uint8(min(max(value, np.float32(0)), most))


@njit(cache=True, nogil=True, error_model="numpy")
def _turn_hue(image: Bytes, shift: np.float32, result: Bytes) -> None:
    """Of a pixel the largest and the smallest value stay, and the place on the circle of six sixths moves.

    Of value v, chroma c and place h the channel has v - c * clip(min(k, 4 - k), 0, 1) with k = (n + h) mod 6, for red
    n = 5, green 3 and blue 1.
    """
    one, six = np.float32(1), np.float32(6)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            r, g, b = image[0, row, column], image[1, row, column], image[2, row, column]
            top, low = max(r, g, b), min(r, g, b)
            if top == low:
                result[0, row, column] = result[1, row, column] = result[2, row, column] = top
                continue
            chroma = np.float32(top - low)
            if top == r:
                place = (np.float32(g) - np.float32(b)) / chroma
            elif top == g:
                place = (np.float32(b) - np.float32(r)) / chroma + np.float32(2)
            else:
                place = (np.float32(r) - np.float32(g)) / chroma + np.float32(4)
            place += six * shift + six  # more than 0: a shift is half a turn at most
            for channel in range(3):
                k = place + np.float32(5 - 2 * channel)
                k -= six * np.floor(k / six)
                share = max(np.float32(0), min(k, np.float32(4) - k, one))
                result[channel, row, column] = np.uint8(np.float32(top) - chroma * share + np.float32(0.5))


@njit(cache=True, nogil=True, error_model="numpy")
def _convolve(padded: Bytes, weights: Floats, result: Bytes) -> None:
    """Rows, then columns; the inner loops run along rows, where several pixels are worked on at a time."""
    height, width = result.shape[1:]
    lines = np.empty((padded.shape[1], width), np.float32)
    line = np.empty(width, np.float32)
    for channel in range(3):
        for row in range(padded.shape[1]):
            lines[row] = 0
            for k in range(weights.size):
                for column in range(width):
                    lines[row, column] += weights[k] * np.float32(padded[channel, row, column + k])
        for row in range(height):
            line[:] = np.float32(0.5)
            for k in range(weights.size):
                for column in range(width):
                    line[column] += weights[k] * lines[row + k, column]
            for column in range(width):
                result[channel, row, column] = np.uint8(min(line[column], np.float32(255)))

"""Colour augmentation of single images; all random numbers come from the given generator.

The operations are torchvision's: of bytes in a form of our own, one pass over the pixels each, equal up to rounding and
several times as fast. The drawing of their parameters is ours, because torchvision draws from the global generator and
a resumed run must repeat the draws of the killed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from pri3d import registry


class ColorRecipe(NamedTuple):
    """How strongly colours change; the amplitudes are ColorJitter's."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p_jitter: float
    p_gray: float
    p_blur: float
    sigma: tuple[float, float] = (0.1, 2.0)  #: of the Gaussian blur, pixels of an image ``width`` pixels wide
    width: int | None = 320  #: None: ``sigma`` is in pixels of whatever image comes
    kernel: int | None = None  #: edge of the blur's window, pixels of the image that comes; None: 3 sigma each way


#: The released code's recipe for ScanNet pairs (reference: ColorJitter, grayscale, blur), and none.
STRONG = ColorRecipe(0.4, 0.4, 0.4, 0.1, 0.8, 0.2, 0.5)
#: For fine-tuning: colours move, sharpness stays.
LIGHT = ColorRecipe(0.3, 0.3, 0.3, 0.05, 0.8, 0.1, 0.0)
#: Of SimCLR, for trivial correspondences, as the released code has it: always blurred, in a window of 25 pixels.
SIMCLR = ColorRecipe(0.8, 0.8, 0.8, 0.2, 0.8, 0.2, 1.0, kernel=25)
#: Sharpness alone, as the released code trains PSPNet.
BLUR = ColorRecipe(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5)
RECIPES: dict[str, ColorRecipe | None] = {
    "strong": STRONG,
    "light": LIGHT,
    "simclr": SIMCLR,
    "blur": BLUR,
    "none": None,
}


def recipe(name: str) -> ColorRecipe | None:
    """Look a recipe up by name. Raises ConfigError listing the names."""
    return registry.choice("augment", RECIPES, name)


def to_tensor(color: NDArray[np.uint8]) -> Tensor:
    """RGB (H, W, 3) -> (3, H, W) uint8."""
    return torch.tensor(color).permute(2, 0, 1).contiguous()  # hue changes twice as fast


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """One number between ``low`` and ``high``."""
    return low + (high - low) * float(torch.rand((), generator=generator))


#: An RGB image (3, H, W): the operations on bytes take and fill one.
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
def saturation(image: Bytes, factor: float, result: Bytes) -> None:
    """Multiply the distance from each pixel's grey by ``factor``, at least 0."""
    scale, most = np.float32(factor), np.float32(255)
    rest = np.float32(1) - scale
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            grey = rest * np.float32(_grey(image[0, row, column], image[1, row, column], image[2, row, column]))
            for channel in range(3):
                value = scale * np.float32(image[channel, row, column]) + grey
                result[channel, row, column] = np.uint8(min(max(value, np.float32(0)), most))


@njit(cache=True, nogil=True, error_model="numpy")
def hue(image: Bytes, shift: float, result: Bytes) -> None:
    """Turn the hue by ``shift`` of the colour circle, -0.5..0.5.

    Of a pixel the largest and the smallest value stay, and the place on the circle of six sixths moves.

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
            place += six * np.float32(shift) + six  # more than 0: a shift is half a turn at most
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


class Operation(NamedTuple):
    """A change of colours by an amount."""

    of_bytes: Callable[[NDArray[np.uint8], float, NDArray[np.uint8]], None]
    of_floats: Callable[[Tensor, float], Tensor]

    def apply(self, image: Tensor, amount: float) -> Tensor:
        """Change one RGB image (3, H, W) uint8 or float 0..1; same shape and dtype."""
        if image.dtype != torch.uint8:
            return self.of_floats(image, amount)
        result = torch.empty(image.shape, dtype=torch.uint8)
        self.of_bytes(image.contiguous().numpy(), amount, result.numpy())
        return result


_BRIGHTNESS = Operation(brightness, F.adjust_brightness)
_CONTRAST = Operation(contrast, F.adjust_contrast)
_SATURATION = Operation(saturation, F.adjust_saturation)
_HUE = Operation(hue, F.adjust_hue)


def augment_color(image: Tensor, recipe: ColorRecipe | None, generator: torch.Generator) -> Tensor:
    """Augment one RGB image (3, H, W) uint8 or float 0..1; same shape and dtype."""
    if recipe is None:
        return image
    if uniform(generator) < recipe.p_jitter:
        # Brightness, contrast, saturation and hue in random order.
        steps: list[tuple[Operation, float]] = [
            (operation, uniform(generator, max(0.0, 1 - amplitude), 1 + amplitude))
            for operation, amplitude in (
                (_BRIGHTNESS, recipe.brightness),
                (_CONTRAST, recipe.contrast),
                (_SATURATION, recipe.saturation),
            )
        ]
        steps.append((_HUE, uniform(generator, -recipe.hue, recipe.hue)))
        for position in torch.randperm(len(steps), generator=generator).tolist():
            operation, amount = steps[position]
            image = operation.apply(image, amount)
    if uniform(generator) < recipe.p_gray:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if uniform(generator) < recipe.p_blur:
        sigma = uniform(generator, *recipe.sigma) * (image.shape[-1] / recipe.width if recipe.width else 1.0)
        # The window is mirrored at the border, so it may not reach beyond an image.
        most = 2 * min(image.shape[-2:]) - 1
        window = min(recipe.kernel or 2 * math.ceil(3 * sigma) + 1, most)
        if image.dtype != torch.uint8:
            blurred: Tensor = F.gaussian_blur(image, [window] * 2, [sigma] * 2)
            return blurred
        weights = np.exp(-0.5 * (np.arange(-(window // 2), window // 2 + 1) / sigma) ** 2)
        result = torch.empty_like(image)
        blur(image.numpy(), (weights / weights.sum()).astype(np.float32), result.numpy())
        return result
    return image

"""Colour augmentation of single images; every draw comes from the generator that is passed in.

The operations are torchvision's, but for blur and hue, which are several times faster here. The drawing of their
parameters is ours, because torchvision draws from the global generator and a resumed run must repeat the draws of the
killed one.
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
from torch.nn import functional
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


def augment_color(image: Tensor, recipe: ColorRecipe | None, generator: torch.Generator) -> Tensor:
    """Augment one RGB image (3, H, W) uint8 or float 0..1; same shape and dtype."""
    if recipe is None:
        return image
    if uniform(generator) < recipe.p_jitter:
        image = _jitter(image, recipe, generator)
    if uniform(generator) < recipe.p_gray:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if uniform(generator) < recipe.p_blur:
        sigma = uniform(generator, *recipe.sigma) * (image.shape[-1] / recipe.width if recipe.width else 1.0)
        # The window is mirrored at the border, so it may not reach beyond an image.
        most = 2 * min(image.shape[-2:]) - 1
        image = _blur(image, min(recipe.kernel or 2 * math.ceil(3 * sigma) + 1, most), sigma)
    return image


def _jitter(image: Tensor, recipe: ColorRecipe, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue in random order."""
    steps: list[tuple[Callable[[Tensor, float], Tensor], float]] = [
        (function, uniform(generator, max(0.0, 1 - amplitude), 1 + amplitude))
        for function, amplitude in (
            (F.adjust_brightness, recipe.brightness),
            (F.adjust_contrast, recipe.contrast),
            (F.adjust_saturation, recipe.saturation),
        )
    ]
    steps.append((adjust_hue, uniform(generator, -recipe.hue, recipe.hue)))
    for position in torch.randperm(len(steps), generator=generator).tolist():
        function, amount = steps[position]
        image = function(image, amount)
    return image


def adjust_hue(image: Tensor, shift: float) -> Tensor:
    """Turn the hue of an RGB image (3, H, W) by ``shift`` of the colour circle, -0.5..0.5.

    That of bytes is torchvision's up to rounding, in one pass over the pixels, which is several times as fast.
    """
    if image.dtype != torch.uint8:
        changed: Tensor = F.adjust_hue(image, shift)
        return changed
    result = torch.empty_like(image)
    _turn_hue(image.contiguous().numpy(), np.float32(shift), result.numpy())
    return result


@njit(cache=True, nogil=True, error_model="numpy")
def _turn_hue(image: NDArray[np.uint8], shift: np.float32, result: NDArray[np.uint8]) -> None:
    """Fill ``result`` (3, H, W): of a pixel the largest and the smallest value stay, and the sixth of the circle moves.

    Of value v, chroma c and hue h the channel that lies n sixths behind has v - c * clip(min(k, 4 - k), 0, 1) with
    k = (n + 6 h) mod 6, for red n = 5, green 3 and blue 1.
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
                hue = (np.float32(g) - np.float32(b)) / chroma
            elif top == g:
                hue = (np.float32(b) - np.float32(r)) / chroma + np.float32(2)
            else:
                hue = (np.float32(r) - np.float32(g)) / chroma + np.float32(4)
            hue += six * shift + six  # more than 0: a shift is half a turn at most
            for channel in range(3):
                k = hue + np.float32(5 - 2 * channel)
                k -= six * np.floor(k / six)
                share = max(np.float32(0), min(k, np.float32(4) - k, one))
                result[channel, row, column] = np.uint8(np.float32(top) - chroma * share + np.float32(0.5))


def _blur(image: Tensor, window: int, sigma: float) -> Tensor:
    """Gaussian blur (3, H, W) in a window of odd size, the border mirrored: rows, then columns."""
    half = window // 2
    weights = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
    shares = (weights / weights.sum()).tolist()
    result = functional.pad(image.float()[None], (half,) * 4, mode="reflect")[0]
    for axis in (2, 1):
        parts = [result.narrow(axis, start, image.shape[axis]) for start in range(window)]
        result = parts[0] * shares[0]
        for part, share in zip(parts[1:], shares[1:], strict=True):
            result.add_(part, alpha=share)
    return result if image.is_floating_point() else result.round_().to(image.dtype)

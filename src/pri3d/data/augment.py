"""Colour augmentation of single images; every draw comes from the generator that is passed in.

The operations are torchvision's, of bytes in the faster form of :mod:`pri3d.data.pixels`. The drawing of their
parameters is ours, because torchvision draws from the global generator and a resumed run must repeat the draws of the
killed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from pri3d import registry
from pri3d.data import pixels


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


_BRIGHTNESS = Operation(pixels.brightness, F.adjust_brightness)
_CONTRAST = Operation(pixels.contrast, F.adjust_contrast)
_SATURATION = Operation(pixels.saturation, F.adjust_saturation)
_HUE = Operation(pixels.hue, F.adjust_hue)


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
    return image


def _blur(image: Tensor, window: int, sigma: float) -> Tensor:
    """Gaussian blur (3, H, W) in a window of odd size, the border mirrored."""
    if image.dtype != torch.uint8:
        blurred: Tensor = F.gaussian_blur(image, [window] * 2, [sigma] * 2)
        return blurred
    weights = np.exp(-0.5 * (np.arange(-(window // 2), window // 2 + 1) / sigma) ** 2)
    result = torch.empty_like(image)
    pixels.blur(image.numpy(), (weights / weights.sum()).astype(np.float32), result.numpy())
    return result

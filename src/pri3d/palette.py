"""Colours of classes, the same in every picture."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import ConfigError

#: Colours of ids 0..39. The first three are calm: in indoor label sets they are wall, floor and ceiling. Each further
#: one is the farthest from all before it in CIELAB, as seen with normal vision (counted 0.6-fold) and without red or
#: green cones (matrices of Machado et al. 2009).
# fmt: off
_CLASSES = (
    "#aebfd6", "#c19a6b", "#ece7d5", "#0000ff", "#a5ff00", "#780078", "#0087ff", "#004b00", "#e16900", "#e1f078",
    "#b44b69", "#2d2dc3", "#d2a5ff", "#e11eb4", "#96ffa5", "#c3002d", "#5a2d4b", "#ff5aa5", "#2dc33c", "#f00fff",
    "#003ca5", "#0087c3", "#f0a5a5", "#69693c", "#a5d21e", "#b40f78", "#78ffff", "#5a3cff", "#781e2d", "#874bd2",
    "#a5d278", "#a55a00", "#3ca5a5", "#b47869", "#d2c3ff", "#f0a54b", "#ffe15a", "#c378e1", "#870f00", "#4b6996",
)
# fmt: on


def palette(classes: int) -> NDArray[np.uint8]:
    """Return (classes, 3) RGB of class ids; id k has the same colour whatever ``classes`` is, and none is black.

    Raises ConfigError for more than 255 classes: 255 is the ignored label.
    """
    if not 0 <= classes <= 255:
        raise ConfigError(f"{classes} classes: label images hold at most 255, id 255 is ignored.")
    fixed = [tuple(int(color[k : k + 2], 16) for k in (1, 3, 5)) for color in _CLASSES[:classes]]
    # Beyond the chosen ones: hues by the golden ratio, in three strengths.
    more = [
        colorsys.hsv_to_rgb(k * 0.618034 % 1, (0.55, 0.85, 0.4)[k % 3], (0.95, 0.7, 0.5)[k % 3])
        for k in range(max(0, classes - len(_CLASSES)))
    ]
    rows = fixed + [tuple(round(255 * x) for x in color) for color in more]
    return np.array(rows, np.uint8).reshape(-1, 3)


def color_labels(label: NDArray[np.integer], classes: int) -> NDArray[np.uint8]:
    """Class ids (H, W) -> RGB (H, W, 3); ids that are no class, 255 among them, are black."""
    table = np.zeros((256, 3), np.uint8)
    table[:classes] = palette(classes)
    colors: NDArray[np.uint8] = table[np.clip(label, 0, 255)]
    return colors

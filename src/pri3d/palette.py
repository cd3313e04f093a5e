"""Colours of classes by their names, the same in every picture."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import ConfigError

#: Rooms consist of these more than of anything else: calm colours, so that the objects in them stand out.
_CALM = {"wall": "#aebfd6", "floor": "#c19a6b", "ceiling": "#ece7d5"}
#: Colours of all other classes, in order. Each is the farthest from the calm ones and all before it in CIELAB, as seen
#: with normal vision (counted 0.6-fold) and without red or green cones (matrices of Machado et al. 2009).
# fmt: off
_BRIGHT = (
    "#0000ff", "#a5ff00", "#780078", "#0087ff", "#004b00", "#e16900", "#e1f078",
    "#b44b69", "#2d2dc3", "#d2a5ff", "#e11eb4", "#96ffa5", "#c3002d", "#5a2d4b", "#ff5aa5", "#2dc33c", "#f00fff",
    "#003ca5", "#0087c3", "#f0a5a5", "#69693c", "#a5d21e", "#b40f78", "#78ffff", "#5a3cff", "#781e2d", "#874bd2",
    "#a5d278", "#a55a00", "#3ca5a5", "#b47869", "#d2c3ff", "#f0a54b", "#ffe15a", "#c378e1", "#870f00", "#4b6996",
)
# fmt: on


def palette(class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Return (K, 3) RGB of K classes by name: calm ones for wall, floor and ceiling, bright ones for the rest in order.

    None is black. A class keeps its colour where other classes follow, and where wall, floor and ceiling are left out:
    in maps of all classes and in lists of objects alike, if these are all others. Raises ConfigError for more than 255
    classes: 255 is the ignored label.
    """
    if len(class_names) > 255:
        raise ConfigError(f"{len(class_names)} classes: label images hold at most 255, id 255 is ignored.")
    calm, bright = dict(_CALM), _bright()
    rows = [calm.pop(name.casefold(), "") or next(bright) for name in class_names]
    return np.array([[int(row[k : k + 2], 16) for k in (1, 3, 5)] for row in rows], np.uint8).reshape(-1, 3)


def color_labels(label: NDArray[np.integer], class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Class ids (H, W) -> RGB (H, W, 3) as :func:`palette`; ids that are no class, 255 among them, are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(class_names)] = palette(class_names)
    colors: NDArray[np.uint8] = table[np.clip(label, 0, 255)]
    return colors


def _bright() -> Iterator[str]:
    """The chosen colours, then without end hues by the golden ratio in three strengths."""
    yield from _BRIGHT
    for k in count():
        color = colorsys.hsv_to_rgb(k * 0.618034 % 1, (0.55, 0.85, 0.4)[k % 3], (0.95, 0.7, 0.5)[k % 3])
        yield "#" + "".join(f"{round(255 * share):02x}" for share in color)

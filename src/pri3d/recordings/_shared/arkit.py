"""What recordings of phones with ARKit share: cameras, levels of confidence.

ARKit gives poses of the camera in a world whose y points up, in metres, with OpenGL's camera axes. Its intrinsics
count pixels from the corner of the image, which is our grid. Depth is that of the colour camera at a lower resolution,
with a confidence of 0 (low), 1 or 2 (high) a pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import FrameError
from pri3d.recordings._shared.cameras import Intrinsics
from pri3d.recordings._shared.files import read_image
from pri3d.recordings._shared.tables import framed, numbers

MILLIMETRES = 0.001  #: metres per unit of depth
_LARGEST = 1e6  # pixels; beyond it numbers are damaged


def intrinsics(values: Any, what: str) -> Intrinsics:
    """Camera of fx, fy, cx, cy in pixels from the image's corner, and of its width and height where they follow.

    Raises FrameError, which calls the values ``what``, where they are not as many positive numbers.
    """
    found = framed(lambda: numbers(values, (len(values),), what))
    if not all(0 < number < _LARGEST for number in found):  # nan compares false
        raise FrameError(f"{what}: its camera is {', '.join(f'{number:g}' for number in found)} pixels; it is damaged.")
    fx, fy, cx, cy, *size = found.tolist()
    width, height = (int(number) for number in size) if size else (None, None)
    return Intrinsics(fx, fy, cx, cy, width, height)


def percent(levels: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
    """Confidence levels 0, 1, 2 (h, w) -> 0, 50, 100 percent. Raises FrameError for other levels."""
    if levels.max(initial=0) > 2:
        raise FrameError(f"{what}: holds the confidence {levels.max()}, expected 0, 1 or 2.")
    return (levels * 50).astype(np.uint8)


def read_levels(path: Path) -> NDArray[np.uint8] | None:
    """Read an image of confidence levels 0, 1, 2 as percent (h, w); None where there is no such file.

    Raises FrameError where it is damaged or holds something else.
    """
    return percent(read_bytes(path), str(path)) if path.is_file() else None


def read_bytes(path: Path) -> NDArray[np.uint8]:
    """Read an image of one byte a pixel (h, w). Raises FrameError for a missing or damaged file and for 16 bits."""
    image = read_image(path, ids=True)
    if image.dtype != np.uint8:
        raise FrameError(f"{path}: has 16 bits a pixel, expected 8.")
    return image.astype(np.uint8, copy=False)

"""Scenes whose unit is not known (structure from motion): carried to a size at which every step works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.recordings import ChangedScene, Scene
from pri3d.types import Frame

MEDIAN = 2.0  #: metres; the median depth of a scaled scene, about that of a room
_LOOKED_AT = 9  # frames, evenly spread


class ScaledScene(ChangedScene):
    """A scene with poses and depth multiplied by ``factor``, so that its median depth is ``MEDIAN`` metres.

    Its mesh, in the unit of the source, is left out. Raises DataError where no frame has depth.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.metric = True  # of the unit that the factor makes
        self.factor = MEDIAN / _median_depth(scene)  #: metres a unit of the source

    def frame(self, index: int) -> Frame:
        """Load and scale frame ``names[index]``. Raises FrameError where it is unusable."""
        frame = self.scene.frame(index)
        return frame._replace(
            depth=(frame.depth * self.factor).astype(np.float32),
            color_from_depth=_scaled(frame.color_from_depth, self.factor),
            world_from_camera=_scaled(frame.world_from_camera, self.factor),
        )

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return the frame's scaled pose (4, 4). Raises FrameError where it is unusable."""
        return _scaled(self.scene.pose(index), self.factor)

    def mesh(self) -> Path | None:
        """Return None: the surface is fused from the depth."""
        return None


def _scaled(transform: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    result = transform.copy()
    result[:3, 3] *= factor
    return result


def _median_depth(scene: Scene) -> float:
    """Median over the frames that were looked at of their median valid depth, in the unit of the source."""
    count = len(scene.names)
    medians, reason = [], "there is no frame"
    for index in np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).round().astype(int)).tolist():
        try:
            depth = scene.frame(index).depth
        except FrameError as error:
            reason = str(error)
            continue
        valid = depth[np.isfinite(depth) & (depth > 0)]
        if valid.size:
            medians.append(float(np.median(valid)))
        else:
            reason = f"{scene.names[index]}: has no valid depth"
    if not medians:
        raise DataError(f"its unit is not known, and no depth tells how large it is. {reason}")
    return float(np.median(medians))

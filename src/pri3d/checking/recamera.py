"""Scenes with other cameras than they state, and the cameras.yaml that states them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pri3d.geometry.pose import invert_array
from pri3d.recordings import ChangedScene, Scene
from pri3d.types import Camera, Frame


class RecameredScene(ChangedScene):
    """A scene whose frames have the cameras given; everything else is the scene's own."""

    def __init__(
        self, scene: Scene, color: Camera, depth: Camera, color_from_depth: NDArray[np.float64] | None = None
    ) -> None:
        """``color_from_depth`` (4, 4) None leaves it; else the poses are taken for the depth camera's."""
        super().__init__(scene)
        self._color, self._depth, self._moved = color, depth, color_from_depth

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError where it is unusable."""
        frame = self.scene.frame(index)
        changed: dict[str, Any] = {"color_camera": self._color, "depth_camera": self._depth}
        if self._moved is not None:
            of_depth = frame.world_from_camera @ frame.color_from_depth
            changed |= {
                "color_from_depth": self._moved,
                "world_from_camera": of_depth @ invert_array(self._moved),
            }
        return frame._replace(**changed)


def recamered(scene: Scene, color: Camera, depth: Camera) -> Scene:
    """The scene with other intrinsics."""
    return RecameredScene(scene, color, depth)


def advised_yaml(color: Camera, depth: Camera, color_from_depth: NDArray[np.float64] | None = None) -> str:
    """What to write into a cameras.yaml; ``color_from_depth`` (4, 4) for two cameras, the poses being of depth."""
    lines = [f"color: {_camera(color)}"]
    if depth != color or color_from_depth is not None:
        lines.append(f"depth: {_camera(depth)}")
    if color_from_depth is not None:
        rows = ", ".join("[" + ", ".join(f"{x:.6g}" for x in row) + "]" for row in color_from_depth)
        lines += [f"color_from_depth: {{matrix: [{rows}]}}", "pose_of: depth"]
    return "\n".join(lines) + "\n"


def _camera(camera: Camera) -> str:
    numbers = ", ".join(f"{name}: {getattr(camera, name):.2f}" for name in ("fx", "fy", "cx", "cy"))
    return f"{{width: {camera.width}, height: {camera.height}, {numbers}}}"

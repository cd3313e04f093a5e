"""Corrections of a recording that a user can state, so that its files need not be rewritten."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import ConfigError
from pri3d.geometry.pose import OPENGL_FLIP, check_rigid, invert_array
from pri3d.types import Frame

_FLAGS = ("inverse", "opengl", "ray")
_NUMBERS = ("depth", "shift", "translation", "time")
_LATEST = 10.0  # seconds


class Correction(NamedTuple):
    """What has to be done to every frame; as text: ``inverse,opengl,ray,depth=0.2,shift=1,time=-0.02``."""

    inverse: bool = False  #: the poses are world to camera
    opengl: bool = False  #: the camera axes are OpenGL's: y up, z backward
    ray: bool = False  #: depth is the length of the ray, not z
    depth: float = 1.0  #: factor that makes the depth metres
    shift: int = 0  #: the depth that belongs to frame k is stated for frame k + shift
    translation: float = 1.0  #: factor that makes the translations of the poses metres
    time: float = 0.0  #: seconds after its own time at which the pose that belongs to a frame is stated

    def __str__(self) -> str:
        numbers = [f"{name}={getattr(self, name):g}" for name in _NUMBERS if getattr(self, name) != _UNCHANGED[name]]
        return ",".join([name for name in _FLAGS if getattr(self, name)] + numbers)

    def apply(self, frame: Frame) -> Frame:
        """Correct one frame but for :attr:`shift` and :attr:`time`, which need others.

        Raises FrameError where its pose is not rigid.
        """
        pose = self.apply_to_pose(frame.world_from_camera, frame.name)
        depth = frame.depth * np.float32(self.depth) if self.depth != 1 else frame.depth
        if self.ray:
            camera = frame.depth_camera
            x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
            y = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
            depth = (depth / np.sqrt(1 + x**2 + y[:, None] ** 2)).astype(np.float32)
        return frame._replace(world_from_camera=pose, depth=depth)

    def apply_to_pose(self, pose: NDArray[np.float64], what: str) -> NDArray[np.float64]:
        """Correct ``world_from_camera`` (4, 4). Raises FrameError naming ``what`` where it is not rigid."""
        pose = check_rigid(pose, what)
        pose[:3, 3] *= self.translation
        pose = invert_array(pose) if self.inverse else pose
        return pose @ OPENGL_FLIP if self.opengl else pose


_UNCHANGED = Correction._field_defaults


def parse_correction(text: str) -> Correction:
    """``inverse,depth=0.2`` -> :class:`Correction`. Raises ConfigError that lists what can be said."""
    said: dict[str, Any] = {}
    for part in (word.strip() for word in text.split(",") if word.strip()):
        name, equals, value = part.partition("=")
        try:
            if name in said or (name in _FLAGS) == bool(equals) or name not in (*_FLAGS, *_NUMBERS):
                raise ValueError
            said[name] = True if name in _FLAGS else (int(value) if name == "shift" else float(value))
            if name == "time" and not abs(said[name]) <= _LATEST:
                raise ValueError
            if name in ("depth", "translation") and not 0 < said[name] < 1e6:
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"--correct {text}: {part!r} is not understood. Join by commas, each once: inverse (poses are world to "
                "camera), opengl (camera axes y up, z backward), ray (depth is the ray's length), depth=0.2 (factor "
                "of the depth), translation=0.001 (factor of the poses' translations), shift=1 (frames by which the "
                "depth comes late), time=-0.02 (seconds by which the right pose comes later than its frame)."
            ) from None
    return Correction(**said)

"""Mistakes of a recording that a user can state, so that its files need not be written anew."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import ConfigError, FrameError
from pri3d.geometry.pose import OPENGL_FLIP, check_rigid, invert_array
from pri3d.recordings._shared.scenes import pose_of
from pri3d.types import Frame

_FLAGS = ("inverse", "opengl", "ray")
_NUMBERS = ("depth", "shift", "translation")


class Correction(NamedTuple):
    """What has to be done to every frame; as text: ``inverse,opengl,ray,depth=0.2,shift=1``."""

    inverse: bool = False  #: the poses are world to camera
    opengl: bool = False  #: the camera axes are OpenGL's: y up, z backward
    ray: bool = False  #: depth is the length of the ray, not z
    depth: float = 1.0  #: factor that makes the depth metres
    shift: int = 0  #: the depth that belongs to frame k is stated for frame k + shift
    translation: float = 1.0  #: factor that makes the translations of the poses metres

    def __str__(self) -> str:
        numbers = [f"{name}={getattr(self, name):g}" for name in _NUMBERS if getattr(self, name) != _UNCHANGED[name]]
        return ",".join([name for name in _FLAGS if getattr(self, name)] + numbers)

    def apply(self, frame: Frame) -> Frame:
        """Correct one frame but for :attr:`shift`, which needs two. Raises FrameError where its pose is not rigid."""
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
            if name in ("depth", "translation") and not 0 < said[name] < 1e6:
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"--correct {text}: {part!r} is not understood. Join by commas, each once: inverse (poses are world to "
                "camera), opengl (camera axes y up, z backward), ray (depth is the ray's length), depth=0.2 (factor "
                "of the depth), translation=0.001 (factor of the poses' translations), shift=1 (frames by which the "
                "depth comes late)."
            ) from None
    return Correction(**said)


class CorrectedScene:
    """A scene whose frames are corrected; everything else is the scene's own."""

    def __init__(self, scene: Any, correction: Correction) -> None:
        self._scene = scene
        self._correction = correction
        self.id: str = scene.id

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_scene":
            raise AttributeError(name)
        return getattr(self._scene, name)

    def __copy__(self) -> CorrectedScene:
        """Return one whose scene is a copy too: what it opens stays with it."""
        return CorrectedScene(copy(self._scene), self._correction)

    @property
    def names(self) -> Sequence[str]:
        """Names of the frames. Raises DataError where the scene cannot be opened."""
        names: Sequence[str] = self._scene.names
        return names

    def frame(self, index: int) -> Frame:
        """Load and correct frame ``names[index]``. Raises FrameError where it, or the one its depth is of, is bad."""
        frame: Frame = self._scene.frame(index)
        shift = self._correction.shift
        if shift:
            if not 0 <= index + shift < len(self.names):
                raise FrameError(f"{frame.name}: has no depth, shifted by {shift} frames.")
            other: Frame = self._scene.frame(index + shift)
            frame = frame._replace(depth=other.depth, confidence=other.confidence)
        return self._correction.apply(frame)

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return the frame's corrected pose (4, 4). Raises FrameError where it is unusable."""
        return self._correction.apply_to_pose(pose_of(self._scene, index), self.names[index])

    def mesh(self) -> Path | None:
        """Return the scene's triangle mesh in world metres, None where it has none."""
        mesh: Path | None = self._scene.mesh()
        return mesh


class CorrectedReader:
    """A reader whose scenes are corrected."""

    def __init__(self, reader: Any, correction: Correction) -> None:
        self.looks_for: str = reader.looks_for
        self.class_names: Sequence[str] | None = reader.class_names
        self.frame_step: int = getattr(reader, "frame_step", 1)
        self._reader = reader
        self._correction = correction

    def scenes(self) -> Sequence[Any]:
        """Every scene of the recording, sorted by id."""
        return [CorrectedScene(scene, self._correction) for scene in self._reader.scenes()]

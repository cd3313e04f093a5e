"""What most readers build their scenes of: a scene opened late, a list of frames, a frame put together and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import FrameError
from pri3d.geometry.pose import check_rigid
from pri3d.geometry.warping import undistort_color, undistort_nearest
from pri3d.recordings._shared.cameras import Cameras
from pri3d.types import Camera, Frame


class Frames(Protocol):
    """The frames of a scene that is open."""

    names: Sequence[str]

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError where it is unusable."""
        ...


def pose_of(frames: Frames, index: int) -> NDArray[np.float64]:
    """``world_from_camera`` (4, 4) of one frame, read without its pixels where the frames have a method ``pose``.

    Raises FrameError where it, or where need be its frame, is unusable.
    """
    quick: Callable[[int], NDArray[np.float64]] | None = getattr(frames, "pose", None)
    return frames.frame(index).world_from_camera if quick is None else quick(index)


class FrameList:
    """Frames that a function loads by name."""

    def __init__(self, names: Sequence[str], load: Callable[[str], Frame]) -> None:
        self.names: Sequence[str] = sorted(names)
        self._load = load

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError where it is unusable."""
        return self._load(self.names[index])


class LazyScene:
    """A scene that is opened when it is first asked for frames: a damaged one must not stop the thousand others.

    ``posed`` is False where the frames have no poses (nothing can be paired), ``metric`` where poses and depth share
    an unknown unit; ``split`` is the official list the scene belongs to, None for none.
    """

    def __init__(
        self,
        scene_id: str,
        opener: Callable[[], Frames],
        mesh: Path | None = None,
        *,
        posed: bool = True,
        metric: bool = True,
        split: str | None = None,
    ) -> None:
        """``opener`` may raise DataError, as asking for ``names`` then does."""
        self.id = scene_id
        self.posed, self.metric, self.split = posed, metric, split
        self._mesh = mesh
        self._opener = opener

    @cached_property
    def _opened(self) -> Frames:
        return self._opener()

    @property
    def names(self) -> Sequence[str]:
        """Names of the frames. Raises DataError where the scene cannot be opened."""
        return self._opened.names

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError naming the file that is missing or damaged."""
        return self._opened.frame(index)

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return the frame's pose as :func:`pose_of` does. Raises FrameError where it is unusable."""
        return pose_of(self._opened, index)

    def mesh(self) -> Path | None:
        """Return the scene's triangle mesh in world metres, None where there is none."""
        return self._mesh if self._mesh is not None and self._mesh.is_file() else None


class Origin(NamedTuple):
    """What error messages call the parts of a frame: usually their files."""

    color: str
    depth: str
    pose: str


def build_frame(
    name: str,
    color: NDArray[np.uint8],
    depth: NDArray[np.float32] | None,
    pose: NDArray[np.float64],
    cameras: Cameras,
    origin: Origin,
    *,
    confidence: NDArray[np.uint8] | None = None,
    label: NDArray[np.uint8] | None = None,
    instance: NDArray[np.uint16] | None = None,
    color_jpeg: bytes | None = None,
) -> Frame:
    """Put a frame together from what its files hold, all as :class:`pri3d.types.Frame` describes it.

    ``pose`` (4, 4) is camera to world with OpenCV axes, of the camera that ``cameras`` says; ``depth`` None gives a
    frame without any. Distortion that ``cameras`` states is undone. Raises FrameError naming the part where an
    image does not fit its camera, sizes differ or the pose is not rigid.
    """
    height, width = color.shape[:2]
    camera = cameras.color.of_image(width, height, origin.color)
    if depth is None:
        depth, depth_camera, lens = np.zeros((height, width), np.float32), camera, None
    else:
        depth_camera, lens = cameras.depth.of_image(depth.shape[1], depth.shape[0], origin.depth), cameras.depth.lens
    if confidence is not None and confidence.shape != depth.shape:
        raise FrameError(f"{origin.depth}: depth is {_size(depth)}, its confidence {_size(confidence)}.")
    if lens is not None:
        depth = undistort_nearest(depth, depth_camera, lens)
        confidence = None if confidence is None else undistort_nearest(confidence, depth_camera, lens)
    frame = Frame(
        name=name,
        color=color,
        depth=depth,
        color_camera=camera,
        depth_camera=depth_camera,
        color_from_depth=cameras.color_from_depth,
        world_from_camera=cameras.world_from_color(check_rigid(pose, origin.pose)),
        label=label,
        instance=instance,
        color_jpeg=color_jpeg,
        confidence=confidence,
    )
    return frame if cameras.color.lens is None else _undistorted(frame, camera, cameras)


def _undistorted(frame: Frame, camera: Camera, cameras: Cameras) -> Frame:
    """The frame with its colour image, and what is seen in it, as the pinhole camera would see them."""
    lens = cameras.color.lens
    if lens is None:
        return frame
    return frame._replace(
        color=undistort_color(frame.color, camera, lens),
        label=None if frame.label is None else undistort_nearest(frame.label, camera, lens, outside=255),
        instance=None if frame.instance is None else undistort_nearest(frame.instance, camera, lens),
        color_jpeg=None,
    )


def _size(image: NDArray[np.generic]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"

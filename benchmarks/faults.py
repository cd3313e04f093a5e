"""Recordings in memory: rooms and real scenes as they are, and with one mistake made on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pri3d.errors import FrameError
from pri3d.geometry.pose import OPENGL_FLIP, invert_array
from pri3d.geometry.resize import resize_nearest
from pri3d.recordings import Scene
from pri3d.types import Camera, Frame
from pri3d.worlds.render import _frame, caster, render_room
from pri3d.worlds.room import build_room

Load = Callable[[Scene, int], Frame]


class MadeScene(Scene):
    """A scene whose frames a function makes of those of another, or of a list."""

    def __init__(
        self, scene_id: str, names: Sequence[str], load: Callable[[int], Frame], times: Sequence[float] | None = None
    ) -> None:
        self.id, self.names, self._load, self.times = scene_id, names, load, times

    def frame(self, index: int) -> Frame:
        """Frame ``names[index]``."""
        return self._load(index)


def of_frames(scene_id: str, frames: list[Frame]) -> MadeScene:
    """A scene of these frames."""
    return MadeScene(scene_id, [frame.name for frame in frames], frames.__getitem__)


def room_scene(seed: int, index: int, frames: int, size: tuple[int, int], noise: bool = True) -> MadeScene:
    """A rendered room; its camera turns by 17 degrees a frame."""
    return of_frames(f"room-{seed}-{index}", render_room(build_room(seed, index), frames, *size, noise=noise))


def slow_room_scene(
    seed: int, index: int, frames: int, size: tuple[int, int], between: int = 12, late: float = 0.0
) -> MadeScene:
    """A room filmed: ``between`` frames on the way from each frame of :func:`room_scene` to the next, 30 a second.

    The pose that is stated is the one ``late`` seconds after the frame: -0.02 is to be corrected by time=0.02.
    """
    room = build_room(seed, index)
    ends = [f.world_from_camera for f in render_room(room, frames // between + 3, 16, 16, noise=False)]
    cast, focal = caster(room.vertices[room.faces]), room.focal * size[0]
    camera = Camera(*size, focal, focal, size[0] / 2, size[1] / 2)

    def pose(at: float) -> NDArray[np.float64]:
        a, b, share = ends[int(at // between)], ends[int(at // between) + 1], at % between / between
        found = np.eye(4)
        u, _, vt = np.linalg.svd((1 - share) * a[:3, :3] + share * b[:3, :3])
        found[:3, :3], found[:3, 3] = u @ vt, (1 - share) * a[:3, 3] + share * b[:3, 3]
        return found

    made = []
    for k in range(frames):
        frame = _frame(room, k, pose(k), camera, cast, True)
        made.append(frame._replace(world_from_camera=pose(max(0.0, k + 30 * late))))
    scene = of_frames(f"slow-{seed}-{index}", made)
    scene.times = [k / 30 for k in range(frames)]
    return scene


def turning_room_scene(seed: int, index: int, frames: int, size: tuple[int, int], sway: float = 0.0) -> MadeScene:
    """A camera that turns by 6 degrees a frame and moves by ``sway`` metres at most: no scale shows."""
    room = build_room(seed, index)
    place = render_room(room, 6, 16, 16, noise=False)[2].world_from_camera
    cast, focal = caster(room.vertices[room.faces]), room.focal * size[0]
    camera, rng = Camera(*size, focal, focal, size[0] / 2, size[1] / 2), np.random.default_rng(0)
    made = []
    for k in range(frames):
        angle, pose = np.radians(6 * k), place.copy()
        turn = np.array(((np.cos(angle), -np.sin(angle), 0), (np.sin(angle), np.cos(angle), 0), (0, 0, 1)))
        pose[:3, :3] = turn @ place[:3, :3]
        pose[:3, 3] += rng.uniform(-sway, sway, 3)
        made.append(_frame(room, k, pose, camera, cast, True))
    return of_frames(f"turning-{seed}-{index}", made)


def cropped(scene: Scene, left: int, top: int, width: int, height: int) -> MadeScene:
    """A part of the images: a longer focal length, and a centre beside the middle."""

    def load(index: int) -> Frame:
        frame = scene.frame(index)
        camera = frame.color_camera
        part = Camera(width, height, camera.fx, camera.fy, camera.cx - left, camera.cy - top)
        box = np.s_[top : top + height, left : left + width]
        return frame._replace(
            color=frame.color[box],
            depth=frame.depth[box],
            color_camera=part,
            depth_camera=part,
            label=None,
            instance=None,
            color_jpeg=None,
        )

    return MadeScene(f"{scene.id}-cropped", scene.names, load)


def coarser(scene: Scene, width: int, height: int) -> MadeScene:
    """Depth of another size than colour, as phones give it."""

    def load(index: int) -> Frame:
        frame = scene.frame(index)
        depth = resize_nearest(frame.depth, (width, height))
        return frame._replace(depth=depth, depth_camera=frame.depth_camera.resized(width, height))

    return MadeScene(f"{scene.id}-coarse-depth", scene.names, load)


def every(scene: Scene, step: int) -> MadeScene:
    """Every ``step``-th frame."""
    names = scene.names[::step]
    return MadeScene(f"{scene.id}-every-{step}", names, lambda index: scene.frame(index * step))


def first(scene: Scene, count: int) -> MadeScene:
    """The first frames."""
    return MadeScene(f"{scene.id}-first-{count}", scene.names[:count], scene.frame)


class Fault(NamedTuple):
    """A mistake: how it is made, and what `check` should say."""

    load: Load
    named: tuple[str, ...]  #: faults, or the one warning
    correct: str | None = None  #: what mends it; None where nothing does


def changed(**parts: Callable[[Frame], Any]) -> Load:
    """Every frame with fields replaced by what functions make of it."""
    return lambda scene, index: _with(scene.frame(index), parts)


def _with(frame: Frame, parts: dict[str, Callable[[Frame], Any]]) -> Frame:
    return frame._replace(**{name: make(frame) for name, make in parts.items()})


def late(field: str, frames: int) -> Load:
    """One stream stated ``frames`` frames late."""

    def load(scene: Scene, index: int) -> Frame:
        if not 0 <= index - frames < len(scene.names):
            raise FrameError(f"frame {index}: has no {field}.")
        return scene.frame(index)._replace(**{field: getattr(scene.frame(index - frames), field)})

    return load


def shuffled(field: str, seed: int = 0) -> Load:
    """One stream in random order."""

    def load(scene: Scene, index: int) -> Frame:
        order = np.random.default_rng(seed).permutation(len(scene.names))
        return scene.frame(index)._replace(**{field: getattr(scene.frame(int(order[index])), field)})

    return load


def both_cameras(make: Callable[[Camera], Camera]) -> Load:
    """Intrinsics of both cameras misstated."""
    return changed(color_camera=lambda f: make(f.color_camera), depth_camera=lambda f: make(f.depth_camera))


def of_size(camera: Camera, width: float, height: float) -> Camera:
    """The numbers that would be right at ``width`` x ``height`` times the image's size."""
    return camera._replace(fx=camera.fx * width, fy=camera.fy * height, cx=camera.cx * width, cy=camera.cy * height)


def scaled_focal(factor: float) -> Load:
    """Focal lengths misstated."""
    return both_cameras(lambda c: c._replace(fx=c.fx * factor, fy=c.fy * factor))


def scaled_depth(factor: float) -> Load:
    """Depth in another unit."""
    return changed(depth=lambda f: f.depth * np.float32(factor))


def along_rays(frame: Frame) -> NDArray[np.float32]:
    """Depth (h, w) as the length of the ray."""
    camera = frame.depth_camera
    x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
    return (frame.depth * np.sqrt(1 + x**2 + y[:, None] ** 2)).astype(np.float32)


def with_translation(frame: Frame, factor: float) -> NDArray[np.float64]:
    """Pose (4, 4) in another unit."""
    pose = frame.world_from_camera.copy()
    pose[:3, 3] *= factor
    return pose


def seen_by_another(frame: Frame) -> NDArray[np.uint8]:
    """Colour (H, W, 3) as a camera of a shorter focal length, 2 % of the width beside, would see it."""
    height, width = frame.color.shape[:2]
    factor = 0.885
    move = (1 / factor, 0, (width - width / factor) / 2 + 0.02 * width, 0, 1 / factor, (height - height / factor) / 2)
    image = Image.fromarray(frame.color).transform(
        (width, height), Image.Transform.AFFINE, move, Image.Resampling.BILINEAR
    )
    return np.array(image)


def blurred(frame: Frame) -> NDArray[np.uint8]:
    """Colour out of focus: a Gaussian of 3 pixels."""
    return np.asarray(ndimage.gaussian_filter(frame.color, (3, 3, 0)))


def hardly_any(frame: Frame) -> NDArray[np.float32]:
    """Depth of which one pixel in a hundred is left."""
    return frame.depth * (np.random.default_rng(1).random(frame.depth.shape) < 0.01)


_SCALED = "depth scale"
FAULTS = {
    "poses inverted": Fault(
        changed(world_from_camera=lambda f: invert_array(f.world_from_camera)), ("poses inverted",), "inverse"
    ),
    "axes of OpenGL": Fault(
        changed(world_from_camera=lambda f: f.world_from_camera @ OPENGL_FLIP), ("camera axes of OpenGL",), "opengl"
    ),
    "both": Fault(
        changed(world_from_camera=lambda f: invert_array(f.world_from_camera @ OPENGL_FLIP)),
        ("poses inverted", "camera axes of OpenGL"),
        "inverse,opengl",
    ),
    "translations in mm": Fault(
        changed(world_from_camera=lambda f: with_translation(f, 1000)),
        ("translations in another unit",),
        "translation=0.001",
    ),
    "depth x 5": Fault(scaled_depth(5), (_SCALED,), "depth=0.2"),
    "depth x 0.2": Fault(scaled_depth(0.2), (_SCALED,), "depth=5"),
    "depth x 1000": Fault(scaled_depth(1000), (_SCALED,), "depth=0.001"),
    "depth / 1000": Fault(scaled_depth(0.001), (_SCALED,), "depth=1000"),
    "depth x 0.5": Fault(scaled_depth(0.5), (_SCALED,), "depth=2"),
    "depth x 1.12": Fault(scaled_depth(1.12), (_SCALED,)),
    "length of the ray": Fault(changed(depth=along_rays), ("ray length",), "ray"),
    "inverted, ray, x 5": Fault(
        changed(
            world_from_camera=lambda f: invert_array(f.world_from_camera), depth=lambda f: along_rays(f) * np.float32(5)
        ),
        ("poses inverted", "ray length", _SCALED),
        "inverse,ray,depth=0.2",
    ),
    "intrinsics of 2x the size": Fault(
        both_cameras(lambda c: of_size(c, 2.025, 2.017)), ("intrinsics of another size",)
    ),
    "intrinsics of half the size": Fault(both_cameras(lambda c: of_size(c, 0.5, 0.5)), ("intrinsics of another size",)),
    "focal length x 1.2": Fault(scaled_focal(1.2), ("focal length",)),
    "focal length x 0.8": Fault(scaled_focal(0.8), ("focal length",)),
    "centre 2 % right": Fault(both_cameras(lambda c: c._replace(cx=c.cx + 0.0234 * c.width)), ("centre cx",)),
    "centre 6 % right": Fault(both_cameras(lambda c: c._replace(cx=c.cx + 0.0625 * c.width)), ("centre cx",)),
    "centre 6 % up": Fault(both_cameras(lambda c: c._replace(cy=c.cy - 0.0625 * c.width)), ("centre cy",)),
    "depth 1 frame late": Fault(late("depth", 1), ("depth of other frames",), "shift=1"),
    "depth 1 frame early": Fault(late("depth", -1), ("depth of other frames",), "shift=-1"),
    "poses 1 frame late": Fault(late("world_from_camera", 1), ("poses of other frames",)),
    "poses 1 frame early": Fault(late("world_from_camera", -1), ("poses of other frames",)),
    "colour 1 frame late": Fault(late("color", 1), ("colour of other frames",)),
    "colour 1 frame early": Fault(late("color", -1), ("colour of other frames",)),
    "poses shuffled": Fault(shuffled("world_from_camera"), ("poses do not fit",)),
    "colour shuffled": Fault(shuffled("color"), ("colour does not fit",)),
    "colour not registered": Fault(changed(color=seen_by_another), ("colour not registered",)),
    "hardly any depth": Fault(changed(depth=hardly_any), ("hardly any depth",)),
    "blurred": Fault(changed(color=blurred), ("blurred",)),
}


def faulty(scene: Scene, name: str) -> MadeScene:
    """The scene with a mistake of :data:`FAULTS`."""
    return MadeScene(f"{scene.id}: {name}", scene.names, lambda index: FAULTS[name].load(scene, index))

"""A scene's frames -> selected, registered, resampled and written; the depth of all of them for mining and fusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, radians
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid
from pri3d.geometry.resize import resize_color, resize_nearest
from pri3d.geometry.warping import register_depth
from pri3d.preparation.overlap import DepthStack
from pri3d.recordings import Recording, Scene
from pri3d.store import SceneWriter, millimetres
from pri3d.types import Camera, Frame, View

Select = Literal["every", "motion"]

#: Metres that a stretch spans at most. Half a metre away a point moves by 11 degrees: neighbouring stretches overlap
#: by most of the picture, and only one step of many looks the same twice. Scenes of an unknown unit are scaled to a
#: median depth of 2 m before, so that this is a twentieth of it.
MOVED = 0.1
TURNED = radians(10)  #: and that it turns by, a fifth to a sixth of the field of view of the usual cameras
LEAST = 30  #: frames of a scene that are taken at least: neighbours of few frames hardly overlap
LOOKED_AT = 5  #: frames of a stretch whose sharpness is compared; a shake lasts some tenths of a second
_COMPARED = 320  # pixels of width at which sharpness is measured: what blur of a pixel or less does is no harm
_NEAR_PIXELS, _NEAR = 4, 0.02  # pixels, and a fraction of a side, by which views of one scene may differ
_SAME_ASPECT = 0.01  # relative; ScanNet's 1296 x 968 counts as 4:3


class Picked(NamedTuple):
    """Which frames of a scene are looked at."""

    indices: list[int]
    total: int  #: frames of the scene
    rule: str  #: how they were picked, in words

    def __str__(self) -> str:
        few = len(self.indices) < self.total
        return f"{len(self.indices):,} of {self.total:,} frames ({self.rule})" if few else f"{self.total:,} frames"


class Stretch(NamedTuple):
    """Neighbouring frames that see nearly the same: one of them is prepared."""

    looked_at: list[int]  #: indices of the frames to choose from, in time order
    lost: dict[int, str]  #: index -> why a frame among or beside them has no pose
    toward: NDArray[np.float64] | None = None  #: (3,) of the world, where its first frame looks


class Prepared(NamedTuple):
    """One frame ready to be stored, and its depth as mining wants it."""

    view: View  #: colour and depth of the stored size
    label: NDArray[np.uint8] | None  #: (H, W) class ids, 255 = ignored
    instance: NDArray[np.uint16] | None  #: (H, W) instance ids, 0 = none
    depth: NDArray[np.uint16]  #: (h, w) millimetres in the colour camera at the depth's own resolution, 0 = invalid
    camera: Camera  #: intrinsics of ``depth``
    color_jpeg: bytes | None  #: the source's own JPEG of the colour, where its size stays


class SceneFrames(NamedTuple):
    """What the later steps need of the n frames of a scene that were kept, N being all."""

    rows: NDArray[np.int32]  #: (n,) rows of the frame table
    total: int  #: N
    reasons: list[str]  #: N - n reasons of rejection
    stack: DepthStack  #: depth at its own resolution
    views: list[View]  #: the stored frames; empty where they are not wanted


def stored_size(camera: Camera, wanted: tuple[int, int]) -> tuple[int, int]:
    """Width, height an image of ``camera`` is stored at: fitted into ``wanted``, aspect ratio kept, never enlarged.

    An aspect ratio that differs by less than 1 % from the wanted one is taken for equal: the intrinsics carry the
    two scales exactly, and all scenes of a data set get one size.
    """
    scale_x, scale_y = wanted[0] / camera.width, wanted[1] / camera.height
    if max(scale_x, scale_y) <= 1 and abs(scale_x / scale_y - 1) < _SAME_ASPECT:
        return wanted
    scale = min(scale_x, scale_y, 1.0)
    return max(1, round(camera.width * scale)), max(1, round(camera.height * scale))


def match_sizes(frame: Frame, color: tuple[int, int], depth: tuple[int, int]) -> Frame:
    """A frame whose images differ by a few pixels from a scene's, width x height, resampled to these.

    Undistortion and cropping give images that differ by 1 to 3 pixels; their intrinsics carry the two scales exactly.
    Raises FrameError where a side differs by more than 4 pixels and 2 %.
    """
    sizes = frame.color_camera[:2], frame.depth_camera[:2]
    if sizes == (color, depth):
        return frame
    for what, found, wanted in (("colour image", sizes[0], color), ("depth image", sizes[1], depth)):
        if any(abs(a - b) > max(_NEAR_PIXELS, _NEAR * b) for a, b in zip(found, wanted, strict=True)):
            raise FrameError(
                f"{frame.name}: its {what} is {found[0]}x{found[1]}, its size differs from the first frame's, "
                f"{wanted[0]}x{wanted[1]}; a scene has one image size. Put views of another shape into another scene."
            )
    return frame._replace(
        color=resize_color(frame.color, color),
        depth=resize_nearest(frame.depth, depth),
        color_camera=frame.color_camera.resized(*color),
        depth_camera=frame.depth_camera.resized(*depth),
        label=None if frame.label is None else resize_nearest(frame.label, color),
        instance=None if frame.instance is None else resize_nearest(frame.instance, color),
        confidence=None if frame.confidence is None else resize_nearest(frame.confidence, depth),
        color_jpeg=None if sizes[0] != color else frame.color_jpeg,
    )


def prepare_frame(
    frame: Frame,
    size: tuple[int, int],
    max_depth: float,
    reach: float = np.inf,
    min_confidence: int = 0,
    need_depth: bool = True,
) -> Prepared:
    """Check one frame, register its depth into the colour camera and resample everything to ``size`` at most.

    ``size`` is width, height in pixels, see :func:`stored_size`; depth beyond ``max_depth`` m becomes invalid, as does
    depth of less than ``min_confidence`` percent where the source says how far it can be trusted.
    The camera must lie within ``reach`` m of the origin along each axis: cells farther off cannot be told apart.
    Colour is resampled bilinearly with antialiasing, depth and labels take the nearest pixel. Raises FrameError with
    the reason where the frame is unusable, as one without valid depth is where it is needed.
    """
    check_images(frame)
    pose = check_rigid(frame.world_from_camera, frame.name)
    farthest = float(np.abs(pose[:3, 3]).max())
    if farthest > reach:
        raise FrameError(
            f"{frame.name}: the camera is {farthest:.6g} m from the origin, beyond the {reach:.6g} m that the cells "
            "reach; move the recording near the origin."
        )
    color_from_depth = check_rigid(frame.color_from_depth, f"{frame.name}: color_from_depth")
    depth = np.where(np.isfinite(frame.depth) & (frame.depth > 0), frame.depth, 0).astype(np.float32)
    if frame.confidence is not None:
        depth[frame.confidence < min_confidence] = 0
    camera = frame.color_camera.resized(frame.depth_camera.width, frame.depth_camera.height)
    registered = register_depth(depth, frame.depth_camera, camera, color_from_depth)
    registered = np.where(registered <= max_depth, registered, np.float32(0))
    if need_depth and not registered.any():
        raise FrameError(f"{frame.name}: no valid depth within {max_depth} m in the colour camera's view.")
    width, height = stored_size(frame.color_camera, size)
    color = resize_color(frame.color, (width, height))
    intrinsics = np.array(frame.color_camera.resized(width, height)[2:], np.float64)
    view = View(color, resize_nearest(registered, (width, height)), intrinsics, pose, frame.name)
    label = None if frame.label is None else resize_nearest(frame.label, (width, height)).astype(np.uint8)
    instance = None if frame.instance is None else resize_nearest(frame.instance, (width, height)).astype(np.uint16)
    jpeg = frame.color_jpeg if (width, height) == frame.color_camera[:2] else None
    return Prepared(view, label, instance, millimetres(registered), camera, jpeg)


def read_frames(
    scene: Scene,
    writer: SceneWriter,
    *,
    size: tuple[int, int],
    max_depth: float,
    select: Select,
    picked: Sequence[int],
    reach: float,
    min_confidence: int,
    keep_depth: bool,
    keep_views: bool,
    progress: Callable[[int, int], None],
) -> SceneFrames:
    """Read each frame ``picked`` (indices) once and write it, or the reason why it is left out.

    With ``select`` "motion" only the sharpest of each stretch of them is written, see :func:`stretches`.
    ``reach`` and ``min_confidence`` as in :func:`prepare_frame`; ``keep_depth`` keeps the depth for mining and fusion
    in memory, ``keep_views`` the stored images; ``progress`` is told stretches done and in all. A scene without poses
    may have frames without depth. Raises DataError where no frame is usable.
    """
    parts = stretches(scene, select, picked)
    rows: list[int] = []
    reasons: list[str] = []
    views: list[View] = []
    cameras, poses = [], []
    depth = np.zeros((0, 0, 0), np.uint16)
    posed = scene.posed
    sizes: list[tuple[tuple[int, int], tuple[int, int]]] = []  # of the first usable frame's images

    def load(index: int) -> Prepared:
        frame = scene.frame(index)
        check_images(frame)
        if sizes:
            frame = match_sizes(frame, *sizes[0])
        item = prepare_frame(frame, size, max_depth, reach, min_confidence, need_depth=posed)
        if not sizes:
            sizes.append((frame.color_camera[:2], frame.depth_camera[:2]))
        return item

    for done, stretch in enumerate(parts):
        progress(done, len(parts))
        for index, item in _sharpest(stretch, load):
            if isinstance(item, str):
                writer.reject(scene.names[index], item)
                reasons.append(item)
                continue
            depth = depth if rows else np.zeros((len(parts) if keep_depth else 0, *item.depth.shape), np.uint16)
            writer.size = item.view.color.shape[1], item.view.color.shape[0]
            writer.add(item.view, item.label, item.instance, item.color_jpeg)
            if keep_depth:
                depth[len(rows)] = item.depth
            rows.append(len(rows) + len(reasons))
            cameras.append(item.camera[2:])
            poses.append(item.view.world_from_camera)
            if keep_views:
                views.append(item.view)
    if not rows:
        why = f" The first: {reasons[0]}" if reasons else ""
        raise DataError(f"none of {len(reasons)} frames is usable.{why}")
    stack = DepthStack(depth[: len(rows)], np.array(cameras), np.array(poses))
    return SceneFrames(np.array(rows, np.int32), len(rows) + len(reasons), reasons, stack, views)


def pick_frames(scene: Scene, recording: Recording, select: Select, step: int | None) -> Picked:
    """Which frames to look at: every ``step``-th; without it as the recording and the times of the scene have it.

    Frames that were chosen before are all taken, as are those among which the camera's motion chooses. Of a video one
    is taken every :attr:`pri3d.recordings.Recording.frame_seconds`, where the times are known, else every
    ``frame_step``-th; but at least ``LEAST`` frames of a scene, where it has so many. Raises DataError where the scene
    cannot be opened.
    """
    count = len(scene.names)
    usual = 1 if select == "motion" else recording.frame_step
    times = scene.times if step is None and usual > 1 else None
    if times is not None:
        seconds = recording.frame_seconds
        # A hair early is in time: stamps jitter about the rate of the camera.
        early = seconds - min(float(np.median(np.diff(times))) / 2, seconds / 2) if count > 1 else seconds
        indices = [0] if count else []
        for index in range(1, count):
            if times[index] - times[indices[-1]] >= early:
                indices.append(index)
        rule = f"every {seconds:.2g} s"
    else:
        indices = list(range(0, count, step or usual))
        rule = f"one in {step or usual}"
    if step is None and len(indices) < min(LEAST, count):
        fewer = max(1, count // LEAST)
        indices, rule = list(range(0, count, fewer)), f"one in {fewer}"
    return Picked(indices, count, rule)


def stretches(scene: Scene, select: Select, picked: Sequence[int]) -> list[Stretch]:
    """Cut the frames ``picked`` (indices) of the scene into stretches of which one frame each is wanted.

    "every" makes each frame a stretch. With "motion" a new one begins where the camera has moved by more than
    ``MOVED`` metres or turned by more than ``TURNED`` since the first frame of the stretch; a camera that rests gives
    one stretch however long it rests. Only poses are read, where the scene can give them alone. Raises DataError
    for "motion" where the scene has no poses.
    """
    if select == "every":
        return [Stretch([index], {}) for index in picked]
    if not scene.posed:
        raise DataError("its frames have no poses, which --select motion needs. Leave it out.")
    found: list[Stretch] = []
    inside: list[int] = []
    lost: dict[int, str] = {}
    first = np.eye(4)
    for index in picked:
        try:
            pose = scene.pose(index)
        except FrameError as error:
            lost[index] = str(error)
            continue
        moved = float(np.linalg.norm(pose[:3, 3] - first[:3, 3]))
        cosine = (float(np.sum(first[:3, :3] * pose[:3, :3])) - 1) / 2
        if not inside or moved > MOVED or cosine < cos(TURNED):
            if inside:
                found.append(Stretch(_thinned(inside), lost, first[:3, 2]))
                inside, lost = [], {}
            first = pose
        inside.append(index)
    if inside or lost:
        found.append(Stretch(_thinned(inside), lost, first[:3, 2]))
    return found


def _thinned(inside: list[int]) -> list[int]:
    """The middle frames of equal parts of a stretch."""
    count = min(len(inside), LOOKED_AT)
    return [inside[(2 * k + 1) * len(inside) // (2 * count)] for k in range(count)]


def sharpness(view: View, toward: NDArray[np.float64]) -> float:
    """How sharp the part of a frame is that lies about the direction ``toward`` (3,) of the world; more is sharper.

    The variance of the Laplacian of the grey image over the variance of the image itself, which takes the exposure
    out. The part is half as wide and high as the image: of neighbouring frames it shows nearly the same, so that
    their values can be compared, and a patterned curtain at the border of one makes it no sharper.
    """
    height, width = view.color.shape[:2]
    scale = min(1.0, _COMPARED / width)
    size = max(3, round(width * scale)), max(3, round(height * scale))
    image = Image.fromarray(view.color).convert("L").resize(size, Image.Resampling.BILINEAR)
    grey = np.asarray(image, np.float64)
    x, y, z = view.world_from_camera[:3, :3].T @ toward
    fx, fy, cx, cy = view.intrinsics
    at = ((x / z * fx + cx) / width, (y / z * fy + cy) / height) if z > 0 else (0.5, 0.5)
    rows, columns = _middle(at[1], size[1]), _middle(at[0], size[0])
    part = grey[rows, columns]
    bent = part[:-2, 1:-1] + part[2:, 1:-1] + part[1:-1, :-2] + part[1:-1, 2:] - 4 * part[1:-1, 1:-1]
    return float(bent.var() / part.var()) if part.var() > 0 else 0.0


def _middle(at: float, size: int) -> slice:
    """Half of ``size`` pixels, three at least, about the share ``at`` of them, as near as the border lets."""
    half = max(3, size // 2)
    start = min(max(0, round(at * size - half / 2)), size - half)
    return slice(start, start + half)


def _sharpest(stretch: Stretch, load: Callable[[int], Prepared]) -> list[tuple[int, Prepared | str]]:
    """The sharpest frame of a stretch, and of every unusable one the reason, in time order."""
    found: dict[int, Prepared | str] = dict(stretch.lost)
    best, most = None, -1.0
    for index in stretch.looked_at:
        try:
            item = load(index)
        except FrameError as error:
            found[index] = str(error)
            continue
        sharp = 0.0 if stretch.toward is None else sharpness(item.view, stretch.toward)
        if sharp > most:
            best, most = (index, item), sharp
    if best is not None:
        found[best[0]] = best[1]
    return sorted(found.items(), key=lambda entry: entry[0])


def check_images(frame: Frame) -> None:
    """Raise FrameError where an image of the frame is not of its camera's size, or its ids cannot be."""
    for what, image, camera in (
        ("colour", frame.color, frame.color_camera),
        ("depth", frame.depth, frame.depth_camera),
        ("confidence", frame.confidence, frame.depth_camera),
        ("label", frame.label, frame.color_camera),
        ("instance", frame.instance, frame.color_camera),
    ):
        if image is not None and image.shape[:2] != (camera.height, camera.width):
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise FrameError(f"{frame.name}: {what} is {found}, its camera {camera.width} x {camera.height} pixels.")
    for what, ids, limit in (("label", frame.label, 255), ("instance", frame.instance, 65535)):
        if ids is not None and ids.size and not 0 <= ids.min() <= ids.max() <= limit:
            raise FrameError(f"{frame.name}: {what} ids reach from {ids.min()} to {ids.max()}, allowed are 0..{limit}.")

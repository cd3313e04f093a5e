"""The evidence: sampled frames of a scene, downscaled and stacked, and checks of single frames.

Which are lost, whether their cameras can be theirs, how blurred they are, and how much depth there is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pri3d.errors import DataError, FrameError, IntrinsicsError
from pri3d.geometry.pose import check_rigid
from pri3d.geometry.resize import resize_color, resize_nearest
from pri3d.preparation.frames import match_sizes, stored_size
from pri3d.recordings import Scene
from pri3d.types import Camera

LARGEST = (160, 120)  #: width and height, pixels, that a frame is reduced to
POINTS = 800  # pixels of a frame that are reprojected into others
_STEPS = (0, 1, 4, 12, 24)  # frames of a group, from its first: pairs of neighbours and pairs half a second apart
_EDGE = 0.08  # relative; a depth pixel whose neighbours differ by more lies beside an edge
_SHARP = (640, 480)  # width and height, pixels, at which sharpness is measured
_MOST_TURN = np.radians(40.0)  # views that turn by more seldom overlap
Verdict = Literal["ok", "warning", "fault", "unknown"]
_BLURRED = 0.62  # of blur_of: what a Gaussian of 1.5 pixels at 640 x 480 makes of a sharp image
_LITTLE, _HARDLY = 0.25, 0.03  # fraction of the pixels with depth
_OFF_CENTRE = (0.35, 0.65)  # of the image, within which its camera's centre lies
_FIELD = (0.35, 4.0)  # focal lengths in widths: 110 to 14 degrees


class Shot(NamedTuple):
    """One frame, reduced."""

    name: str
    color: NDArray[np.uint8]  #: (H, W, 3) RGB
    depth: NDArray[np.float32]  #: (h, w) metres in the depth camera, 0 = invalid
    color_camera: Camera  #: of ``color``
    depth_camera: Camera  #: of ``depth``
    color_from_depth: NDArray[np.float64]  #: (4, 4)
    world_from_camera: NDArray[np.float64]  #: (4, 4) of the colour camera
    valid: float  #: fraction of the depth pixels that are measured
    blur: float  #: 0 sharp .. 1 blurred


class Shots:
    """The frames of a scene by index, loaded when asked for and kept; what cannot be used is kept as its reason."""

    def __init__(self, scene: Scene) -> None:
        """Raises DataError where the scene cannot be opened."""
        self.scene = scene
        self.count = len(scene.names)
        self.asked: set[int] = set()
        self.reasons: dict[int, FrameError] = {}
        self._kept: dict[int, Shot] = {}
        self._sizes: tuple[tuple[int, int], tuple[int, int]] | None = None  # of the colour and the depth images
        self._cameras: tuple[Camera, Camera] | None = None

    @property
    def usable(self) -> bool:
        """Whether any frame could be used so far."""
        return bool(self._kept)

    @property
    def cameras(self) -> tuple[Camera, Camera]:
        """Colour and depth camera of the first usable frame, not reduced. Raises DataError where there is none."""
        if self._cameras is None:
            raise DataError(f"{self.scene.id}: no frame can be used.")
        return self._cameras

    def get(self, index: int) -> Shot | None:
        """Frame ``index`` reduced, None where there is none or it cannot be used; :attr:`reasons` tells why."""
        if index in self._kept or index in self.reasons or not 0 <= index < self.count:
            return self._kept.get(index)
        self.asked.add(index)
        try:
            self._kept[index] = self._load(index)
        except FrameError as error:
            self.reasons[index] = error
        return self._kept.get(index)

    def kept(self, index: int) -> Shot | None:
        """Frame ``index`` where it has been loaded, else None."""
        return self._kept.get(index)

    def _load(self, index: int) -> Shot:
        """Load a frame, reduced to :data:`LARGEST`. Raises FrameError: inconsistent, pose not rigid, another size."""
        frame = self.scene.frame(index)
        if self._sizes is not None:
            frame = match_sizes(frame, *self._sizes)
        for what, image, camera in (
            ("colour", frame.color, frame.color_camera),
            ("depth", frame.depth, frame.depth_camera),
        ):
            if image.shape[:2] != (camera.height, camera.width):
                size = f"{image.shape[1]}x{image.shape[0]}"
                raise IntrinsicsError(f"{frame.name}: {what} is {size}, its camera {camera.width}x{camera.height}.")
        pose = check_rigid(frame.world_from_camera, frame.name)
        color_camera = frame.color_camera.resized(*stored_size(frame.color_camera, LARGEST))
        depth_camera = frame.depth_camera.resized(*stored_size(frame.depth_camera, LARGEST))
        depth = np.where(np.isfinite(frame.depth) & (frame.depth > 0), frame.depth, 0).astype(np.float32)
        shot = Shot(
            frame.name,
            resize_color(frame.color, color_camera[:2]),
            resize_nearest(depth, depth_camera[:2]),
            color_camera,
            depth_camera,
            frame.color_from_depth,
            pose,
            float((depth > 0).mean()),
            measure_blur(frame.color),
        )
        if self._sizes is None:
            self._sizes = (frame.color_camera[:2], frame.depth_camera[:2])
            self._cameras = (frame.color_camera, frame.depth_camera)
        return shot


def measure_blur(color: NDArray[np.uint8]) -> float:
    """How blurred RGB (H, W, 3) is, 0..1: the fraction of its gradients that blurring it again leaves.

    After Crete et al., "The blur effect" (2007): a sharp image loses its gradients to a blur, a blurred one keeps them.
    """
    camera = Camera(color.shape[1], color.shape[0], 1, 1, 0, 0)
    gray = resize_color(color, stored_size(camera, _SHARP)).astype(np.float32).mean(axis=2)
    shares = []
    for axis in (0, 1):
        before = np.abs(np.diff(gray, axis=axis))
        after = np.abs(np.diff(ndimage.uniform_filter1d(gray, 9, axis=axis), axis=axis))
        shares.append(1 - float(np.maximum(before - after, 0).sum() / max(float(before.sum()), 1e-6)))
    return max(shares)


def choose_frames(count: int, frames: int) -> list[int]:
    """Indices of about ``frames`` of ``count`` frames: groups spread over the whole, each of several distances."""
    if count <= frames:
        return list(range(count))
    groups = max(1, frames // len(_STEPS))
    span = min(_STEPS[-1] + 1, count)
    starts = np.linspace(0, count - span, groups).astype(int)
    chosen = sorted({int(start) + step for start in starts for step in _STEPS if start + step < count})
    rest = [k for k in np.linspace(0, count - 1, frames).astype(int).tolist() if k not in chosen]
    return sorted({*chosen, *rest[: max(0, frames - len(chosen))]})


class Stack(NamedTuple):
    """Arrays of N reduced frames, rows in the order of their indices."""

    indices: NDArray[np.int64]  #: (N,) frame indices, ascending
    inverse: NDArray[np.float32]  #: (N, h, w) 1/m, 0 where nothing was measured or beside a depth edge
    texture: NDArray[np.float32]  #: (N, H, W) grey levels less their local mean, over their local spread
    depth_k: NDArray[np.float64]  #: (N, 4) fx, fy, cx, cy of the depth camera, pixels of (h, w)
    color_k: NDArray[np.float64]  #: (N, 4) of the colour camera, pixels of (H, W)
    color_from_depth: NDArray[np.float64]  #: (N, 4, 4)
    world_from_camera: NDArray[np.float64]  #: (N, 4, 4) of the colour camera
    points: NDArray[np.int64]  #: (N, POINTS) flat pixel numbers of ``inverse`` that are reprojected, -1 for none

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the frame indices, -1 for those that are not there."""
        at = np.searchsorted(self.indices, indices).clip(max=len(self.indices) - 1)
        return np.where(self.indices[at] == indices, at, -1)


def stack_shots(shots: Shots, indices: Iterable[int], seed: int) -> Stack:
    """Load and stack the frames that can be used. Raises FrameError where there is none."""
    found = [(index, shot) for index in sorted(set(indices)) if (shot := shots.get(index)) is not None]
    if not found:
        raise FrameError("no frame can be used.")
    inverses, textures = [], []
    for _, shot in found:
        # Inverse depth is affine on planes, so it interpolates; 0 beside a jump.
        plain = invert_depth(shot.depth)
        high = ndimage.maximum_filter(plain, 3)
        low = ndimage.minimum_filter(np.where(shot.depth > 0, plain, np.inf), 3)
        smooth = (shot.depth > 0) & (high - low < 2 * _EDGE * plain)
        inverses.append(np.where(smooth, plain, 0).astype(np.float32))
        # Grey levels less their local mean, over their local spread: exposure drops out.
        gray = ndimage.gaussian_filter(shot.color.astype(np.float32).mean(axis=2), 0.7)
        mean = ndimage.gaussian_filter(gray, 5.0)
        spread = np.sqrt(ndimage.gaussian_filter((gray - mean) ** 2, 5.0))
        textures.append(np.asarray((gray - mean) / (spread + 4.0), np.float32))
    inverse = np.stack(inverses)
    points = np.full((len(found), POINTS), -1)
    for row, (index, _) in enumerate(found):
        valid = np.flatnonzero(inverse[row])
        if len(valid):
            drawn = np.random.default_rng((seed, index)).choice(valid, POINTS, replace=len(valid) < POINTS)
            points[row] = np.sort(drawn)
    return Stack(
        indices=np.array([index for index, _ in found]),
        inverse=inverse,
        texture=np.stack(textures),
        depth_k=np.array([shot.depth_camera[2:] for _, shot in found]),
        color_k=np.array([shot.color_camera[2:] for _, shot in found]),
        color_from_depth=np.stack([shot.color_from_depth for _, shot in found]),
        world_from_camera=np.stack([shot.world_from_camera for _, shot in found]),
        points=points,
    )


def invert_depth(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse depth 1/m of depth in metres, of any shape; 0 where it is invalid."""
    return np.where(depth > 0, 1 / np.where(depth > 0, depth, 1), 0).astype(np.float32)


def rotation_angles(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles (N, N) in radians between the rotations of poses (N, 4, 4): the same for inverted poses and other axes."""
    rotation = poses[:, :3, :3]
    trace = np.einsum("aij,bij->ab", rotation, rotation)
    return np.asarray(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def choose_pairs(stack: Stack, pairs: int, seed: int) -> NDArray[np.int64]:
    """Frame indices (P, 2) of up to ``pairs`` pairs: half near in time, half farther apart, that turn little.

    Nothing but rotation angles and time is used: neither changes with the mistakes that are to be told apart.
    """
    turn = rotation_angles(stack.world_from_camera)
    a, b = np.triu_indices(len(stack.indices), 1)
    gap = stack.indices[b] - stack.indices[a]
    usable = (turn[a, b] < _MOST_TURN) & (stack.points[a, 0] >= 0) & (stack.points[b, 0] >= 0)
    a, b, gap = a[usable], b[usable], gap[usable]
    near = gap <= max(_STEPS[-1], 2)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(a))
    # Half of them near in time, taken in turn from each distance.
    candidates = order[near[order]]
    taken: dict[int, int] = {}
    place = []
    for step in gap[candidates].tolist():
        taken[step] = taken.get(step, 0) + 1
        place.append((taken[step], -step))
    in_turn = sorted(range(len(candidates)), key=place.__getitem__)
    first = candidates[np.array(in_turn[: pairs // 2], dtype=np.int64)]
    rest = np.setdiff1d(order, first)
    chosen = np.concatenate((first, rng.permutation(rest)[: pairs - len(first)]))
    return np.stack((stack.indices[a[chosen]], stack.indices[b[chosen]]), axis=1)


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str  #: what was looked at
    verdict: Verdict  #: unknown where it cannot be judged
    figure: str  #: what was measured
    fault: str = ""  #: name of the mistake, "" where there is none
    advice: str = ""  #: what to do


def check_intrinsics(shots: Shots) -> tuple[Finding, Camera, Camera] | None:
    """A fault where a camera cannot be that of its images, and both cameras as they should be; None where they can."""
    if not shots.usable:
        for error in shots.reasons.values():
            if isinstance(error, IntrinsicsError) and error.size is not None:
                mended = rescale_to_image(Camera(*error.size, *error.stated))
                return _wrong_size(str(error), mended), mended, mended
        return None
    wrong = [camera for camera in shots.cameras if not is_centred(camera)]
    if not wrong:
        return None
    color, depth = (camera if is_centred(camera) else rescale_to_image(camera) for camera in shots.cameras)
    figure = f"centre ({wrong[0].cx:g}, {wrong[0].cy:g}), f = {wrong[0].fx:g} of {wrong[0].width}x{wrong[0].height}"
    return _wrong_size(figure, rescale_to_image(wrong[0])), color, depth


def _wrong_size(figure: str, camera: Camera) -> Finding:
    advice = (
        f"They belong to another image size: f = {camera.fx:.1f}, centre ({camera.cx:.1f}, {camera.cy:.1f}) would fit."
    )
    return Finding("intrinsics", "fault", figure, "intrinsics of another size", advice)


def is_centred(camera: Camera) -> bool:
    """Whether the centre of the camera lies near that of its image."""
    low, high = _OFF_CENTRE
    return low < camera.cx / camera.width < high and low < camera.cy / camera.height < high


def rescale_to_image(camera: Camera) -> Camera:
    """The camera scaled from the size that its centre speaks of to that of its image."""
    x, y = camera.width / (2 * camera.cx), camera.height / (2 * camera.cy)
    return Camera(camera.width, camera.height, camera.fx * x, camera.fy * y, camera.width / 2, camera.height / 2)


def check_images(shots: Shots, chosen: list[int]) -> list[Finding]:
    """The cameras, blur of the colour images, and how much of the depth images is measured."""
    color, depth = shots.cameras
    angle = np.degrees(2 * np.arctan(color.width / 2 / color.fx))
    figure = f"colour {color.width}x{color.height}, f {color.fx:.1f} ({angle:.0f} degrees wide)"
    if depth != color:
        figure += f"; depth {depth.width}x{depth.height}, f {depth.fx:.1f}"
    result = [Finding("intrinsics", "ok", figure)]
    if not _FIELD[0] <= color.fx / color.width <= _FIELD[1]:
        advice = "Such a wide or narrow field of view is rare; check the focal length."
        result = [Finding("intrinsics", "warning", figure, advice=advice)]
    found = [shot for index in chosen if (shot := shots.get(index)) is not None]
    blur, valid = (float(np.median([getattr(shot, name) for shot in found])) for name in ("blur", "valid"))
    figure = f"{blur:.2f} (0 sharp, 1 blurred); {np.mean([s.blur > _BLURRED for s in found]):.0%} of the frames blurred"
    if blur > _BLURRED:
        result.append(
            Finding("blur", "warning", figure, "blurred", "Features of blurred images are poor; record slower.")
        )
    else:
        result.append(Finding("blur", "ok", figure))
    figure = f"{valid:.0%} of the pixels have depth"
    if valid == 0:
        advice = "prepare needs depth for points, pairs and the surface."
        return [*result, Finding("valid depth", "fault", figure, "no depth", advice)]
    if valid < _HARDLY:
        advice = "Is the depth scale or the reader wrong, or is depth missing? prepare needs it."
        return [*result, Finding("valid depth", "fault", figure, "hardly any depth", advice)]
    if valid < _LITTLE:
        return [*result, Finding("valid depth", "warning", figure, "little depth", "Pairs will have few matches.")]
    return [*result, Finding("valid depth", "ok", figure)]

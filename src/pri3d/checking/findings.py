"""What single frames say: which are lost, whether their cameras can be theirs, blur, and how much depth there is."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from pri3d.checking.shots import Shots
from pri3d.errors import IntrinsicsError
from pri3d.types import Camera

Verdict = Literal["ok", "warning", "fault", "unknown"]
_BLURRED = 0.62  # of blur_of: what a Gaussian of 1.5 pixels at 640 x 480 makes of a sharp image
_LITTLE, _HARDLY = 0.25, 0.03  # share of the pixels with depth
_OFF_CENTRE = (0.35, 0.65)  # of the image, within which its camera's centre lies
_FIELD = (0.35, 4.0)  # focal lengths in widths: 110 to 14 degrees


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str  #: what was looked at
    verdict: Verdict  #: unknown where it cannot be judged
    figure: str  #: what was measured
    fault: str = ""  #: name of the mistake, "" where there is none
    advice: str = ""  #: what to do


def of_losses(shots: Shots, chosen: list[int]) -> list[Finding]:
    """Frames that cannot be used."""
    lost = [shots.reasons[index] for index in chosen if index in shots.reasons]
    share = len(lost) / max(1, len(chosen))
    figure = f"{len(chosen) - len(lost)} of {len(chosen)} sampled frames are usable"
    if lost:
        figure += f"; the first of the others: {lost[0]}"
    if not lost or share <= 0.2:
        return [Finding("frames", "ok", figure)]
    if share <= 0.6:
        return [Finding("frames", "warning", figure, advice="prepare leaves them out.")]
    return [Finding("frames", "fault", figure, "frames unusable", "Mend what the reason names.")]


def of_intrinsics(shots: Shots) -> tuple[Finding, Camera, Camera] | None:
    """A fault where a camera cannot be that of its images, and both cameras as they should be; None where they can."""
    if not shots.usable:
        for error in shots.reasons.values():
            if isinstance(error, IntrinsicsError) and error.size is not None:
                mended = fitted(Camera(*error.size, *error.stated))
                return _wrong_size(str(error), mended), mended, mended
        return None
    wrong = [camera for camera in shots.cameras if not fits(camera)]
    if not wrong:
        return None
    color, depth = (camera if fits(camera) else fitted(camera) for camera in shots.cameras)
    figure = f"centre ({wrong[0].cx:g}, {wrong[0].cy:g}), f = {wrong[0].fx:g} of {wrong[0].width}x{wrong[0].height}"
    return _wrong_size(figure, fitted(wrong[0])), color, depth


def _wrong_size(figure: str, camera: Camera) -> Finding:
    advice = f"They belong to another size: f = {camera.fx:.1f}, centre ({camera.cx:.1f}, {camera.cy:.1f}) would fit."
    return Finding("intrinsics", "fault", figure, "intrinsics of another size", advice)


def stated_cameras(shots: Shots) -> Finding:
    """The cameras in words."""
    color, depth = shots.cameras
    angle = np.degrees(2 * np.arctan(color.width / 2 / color.fx))
    figure = f"colour {color.width}x{color.height}, f {color.fx:.1f} ({angle:.0f} degrees wide)"
    if depth != color:
        figure += f"; depth {depth.width}x{depth.height}, f {depth.fx:.1f}"
    if _FIELD[0] <= color.fx / color.width <= _FIELD[1]:
        return Finding("intrinsics", "ok", figure)
    return Finding("intrinsics", "warning", figure, advice="So wide or narrow a camera is rare; see the focal length.")


def fits(camera: Camera) -> bool:
    """Whether the centre of the camera lies near that of its image."""
    low, high = _OFF_CENTRE
    return low < camera.cx / camera.width < high and low < camera.cy / camera.height < high


def fitted(camera: Camera) -> Camera:
    """The camera scaled from the size that its centre speaks of to that of its image."""
    x, y = camera.width / (2 * camera.cx), camera.height / (2 * camera.cy)
    return Camera(camera.width, camera.height, camera.fx * x, camera.fy * y, camera.width / 2, camera.height / 2)


def of_images(shots: Shots, chosen: list[int]) -> list[Finding]:
    """Blur of the colour images, and how much of the depth images is measured."""
    found = [shot for index in chosen if (shot := shots.get(index)) is not None]
    blur, valid = (float(np.median([getattr(shot, name) for shot in found])) for name in ("blur", "valid"))
    figure = f"{blur:.2f} (0 sharp, 1 blurred); {np.mean([s.blur > _BLURRED for s in found]):.0%} of the frames blurred"
    result = [Finding("blur", "ok", figure)]
    if blur > _BLURRED:
        result = [Finding("blur", "warning", figure, "blurred", "Features of blurred images are poor; record slower.")]
    figure = f"{valid:.0%} of the pixels have depth"
    if valid == 0:
        advice = "prepare needs depth: point clouds, pairs and surface are made of it."
        return [*result, Finding("valid depth", "fault", figure, "no depth", advice)]
    if valid < _HARDLY:
        advice = "Is the depth scale or the reader wrong, or is depth missing? prepare needs it."
        return [*result, Finding("valid depth", "fault", figure, "hardly any depth", advice)]
    if valid < _LITTLE:
        return [*result, Finding("valid depth", "warning", figure, "little depth", "Pairs will have few matches.")]
    return [*result, Finding("valid depth", "ok", figure)]

"""Depth scale, focal length and principal point: best values, and how well the pairs determine them.

A parameter is varied over a range; every pair has an agreement at each value. How far the best value lies from the
one stated is judged by resampling the pairs (bootstrap): what they do not determine is not judged, and of several
parameters that seem to be off one is named, under which the frames agree most.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.checking.evidence import Finding, Shots, Stack
from pri3d.checking.hypotheses import (
    Hypothesis,
    agreement_under,
    both_directions,
    fit_factor,
    is_better,
    round_factor,
    scale_hypothesis,
)
from pri3d.checking.registration import advised_yaml
from pri3d.errors import FrameError
from pri3d.types import Camera

Parameter = Literal["depth", "focal", "right", "down"]
LARGE = 0.05  #: relative error of a factor that is a fault
_FACTORS: tuple[Parameter, ...] = ("depth", "focal")
_RESAMPLED = 200  # draws of the pairs
_INTERVAL = (2.5, 97.5)  # percentiles
_GAIN = 1.02  # factor by which the frames must agree better at another value
_STEPS = 25  # values that are tried
_LATEST = 0.12  # seconds by which poses are thought to come late or early
_SOON = 0.006  # seconds that harm nothing
_DETERMINED = 0.03  # seconds; the widest interval of an offset that the pairs determine
_KNOWN = 0.5  # fraction of the frames that need poses between those of the frames


class Bounds(NamedTuple):
    """What counts as an error of a parameter: of factors their logarithm, of the centre fractions of the width."""

    reach: float  #: largest error that is tried
    small: float  #: worth a warning
    large: float  #: a fault
    known: float  #: widest interval of a parameter that the pairs determine


_FACTOR = Bounds(0.24, 0.03, LARGE, 0.06)
_CENTRE = Bounds(0.12, 0.015, 0.025, 0.03)
BOUNDS: dict[Parameter, Bounds] = {"depth": _FACTOR, "focal": _FACTOR, "right": _CENTRE, "down": _CENTRE}


class ParameterEstimate(NamedTuple):
    """The best value of a parameter, as the error of the one stated, with its interval over the pairs."""

    value: float
    low: float
    high: float
    better: bool  #: whether the frames surely agree better there than as stated
    score: float  #: mean agreement there


def vary(hypothesis: Hypothesis, what: Parameter, by: float) -> Hypothesis:
    """Return the hypothesis with a parameter changed: a factor by exp(``by``), the centre by ``by`` widths."""
    if what in _FACTORS:
        return scale_hypothesis(hypothesis, what, float(np.exp(by)))
    return hypothesis._replace(**{what: getattr(hypothesis, what) + by})


def _estimate(steps: NDArray[np.float64], found: list[NDArray[np.float64]]) -> ParameterEstimate:
    """Estimate of a parameter from the agreement of directed pairs (2 P,) at each of its steps, the middle one 0."""
    values = np.array(found)
    number = values.shape[1] // 2
    curves = (values[:, :number] + values[:, number:]) / 2  # (steps, P); a pair counts once
    curves = curves[:, np.isfinite(curves).all(axis=0)]
    number = curves.shape[1]
    if number == 0:
        return ParameterEstimate(0.0, -np.inf, np.inf, False, 0.0)
    draws = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=_RESAMPLED) / number
    value = float(_peaks(steps, curves.mean(axis=1)[None])[0])
    low, high = np.percentile(_peaks(steps, draws @ curves.T), _INTERVAL)
    best, plain = curves[np.abs(steps - value).argmin()], curves[len(steps) // 2]
    return ParameterEstimate(value, float(low), float(high), is_better(plain, best, _GAIN), float(best.mean()))


def move_poses(shots: Shots, stack: Stack, seconds: float) -> tuple[Stack, float]:
    """The stack with the poses stated so many seconds after its frames, and the fraction of them that is known.

    Frames around which none is known keep their own.
    """
    poses, known = stack.world_from_camera.copy(), 0
    for row, index in enumerate(stack.indices.tolist()):
        try:
            poses[row] = shots.scene.pose_at(index, seconds)
        except FrameError:
            continue
        known += 1
    return stack._replace(world_from_camera=poses), known / len(poses)


def estimate_time(shots: Shots, stack: Stack, pairs: NDArray[np.int64], hypothesis: Hypothesis) -> float | None:
    """Seconds after its frame at which the right pose is stated, where that is surely not 0; else None."""
    directed = both_directions(pairs)
    steps = np.linspace(-_LATEST, _LATEST, _STEPS)
    if shots.scene.times is None or move_poses(shots, stack, _LATEST / 2)[1] < _KNOWN:
        return None
    moved = [move_poses(shots, stack, float(step))[0] if step else stack for step in steps]
    found = _estimate(steps, [agreement_under(each, directed, hypothesis) for each in moved])
    sure = found.low > _SOON or found.high < -_SOON
    return round(found.value, 3) if sure and found.better and found.high - found.low < _DETERMINED else None


def _peaks(steps: NDArray[np.float64], curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where curves (N, steps) are highest: the vertex of the parabola through the highest value and its neighbours."""
    at = curves.argmax(axis=1).clip(1, len(steps) - 2)
    rows = np.arange(len(curves))
    before, top, after = (curves[rows, at + step] for step in (-1, 0, 1))
    bend = before - 2 * top + after
    shift = np.where(bend < -1e-12, (before - after) / (2 * np.where(bend < -1e-12, bend, -1)), 0)
    return np.asarray(steps[at] + shift.clip(-1, 1) * (steps[1] - steps[0]))


def check_calibration(
    shots: Shots, stack: Stack, pairs: NDArray[np.int64], hypothesis: Hypothesis, blamed: bool, still: bool
) -> tuple[list[Finding], str, float | None]:
    """Judge scale, focal length and centre beyond ``hypothesis``; one of them at most is said to be wrong.

    ``blamed``: a fault has been found that explains why frames do not agree; ``still``: the camera hardly moves, so
    that no scale can be judged. Returns the findings, the cameras to write and the factor of the depth to correct by.
    """
    factor = hypothesis.correction.depth
    scaled = abs(np.log(round_factor(factor))) > LARGE  # has been named already
    if hypothesis.focal != 1:
        focal = hypothesis.focal * fit_factor(stack, both_directions(pairs), hypothesis, "focal")
        fx = shots.cameras[0].fx * focal
        advice = f"Set fx = {fx:.1f} in cameras.yaml, see below."
        found = Finding("focal length", "fault", f"x {focal:.3f} is right", "focal length", advice)
        return [found], advised_yaml(*_moved(shots, vary(Hypothesis(), "focal", float(np.log(focal))))), None
    directed, estimates = both_directions(pairs), {}
    for what, bounds in BOUNDS.items():
        steps = np.linspace(-bounds.reach, bounds.reach, _STEPS)
        curves = [agreement_under(stack, directed, vary(hypothesis, what, float(step))) for step in steps]
        estimates[what] = _estimate(steps, curves)
    stated = {**dict.fromkeys(BOUNDS, 0.0), "depth": 0.0 if scaled else float(np.log(factor))}
    off = [
        what
        for what, e in estimates.items()
        if (e.low + stated[what] > BOUNDS[what].small or e.high + stated[what] < -BOUNDS[what].small)
        and e.high - e.low < BOUNDS[what].known
        and (e.better or abs(stated[what]) > BOUNDS[what].small)
        and not (what == "depth" and (scaled or still))
    ]
    cause = max(off, key=lambda what: estimates[what].score, default=None)
    if blamed or scaled:
        cause = None
    findings, yaml, correct = [], "", None
    for what, estimate in estimates.items():
        value = estimate.value + stated[what]
        name, color = _NAMES[what], shots.cameras[0]
        figure = f"x {np.exp(value):.3f} agrees best"
        if what not in _FACTORS:  # but a centre: pixels of the colour image
            axis, pixels = ("cx", color.cx) if what == "right" else ("cy", color.cy)
            moved = value * color.width
            figure = f"{axis} {pixels + moved:.1f} agrees best, {moved:+.1f} px of {color.width}"
        if what == cause:
            verdict: Literal["fault", "warning"] = "fault" if abs(value) > BOUNDS[what].large else "warning"
            if verdict == "fault" and what == "depth":
                correct = float(f"{np.exp(value):.3g}")
                advice = f"--correct depth={correct:g}"
            elif verdict == "fault":
                yaml = advised_yaml(*_moved(shots, vary(Hypothesis(), what, value)))
                advice = "Use both cameras below; better: calibrate."
            else:
                advice = "Calibrate to improve this; the error is too small for a correction."
            findings.append(Finding(name, verdict, figure, name if verdict == "fault" else "", advice))
        elif what == "depth" and scaled:
            continue
        elif estimate.high - estimate.low > BOUNDS[what].known or (what == "depth" and still):
            findings.append(Finding(name, "unknown", "not determined by the frames"))
        else:
            findings.append(Finding(name, "ok", figure))
    return findings, yaml, correct


_NAMES: dict[Parameter, str] = {
    "depth": "depth scale",
    "focal": "focal length",
    "right": "centre cx",
    "down": "centre cy",
}


def _moved(shots: Shots, hypothesis: Hypothesis) -> tuple[Camera, Camera]:
    """Colour and depth camera as they are under the hypothesis."""
    color, depth = (
        camera._replace(
            fx=camera.fx * hypothesis.focal,
            fy=camera.fy * hypothesis.focal,
            cx=camera.cx + hypothesis.right * camera.width,
            cy=camera.cy + hypothesis.down * camera.width,
        )
        for camera in shots.cameras
    )
    return color, depth

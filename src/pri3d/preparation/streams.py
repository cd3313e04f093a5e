"""Whether colour, depth and poses were taken at the same time, and colour and depth from the same place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pri3d.preparation.alignment import (
    Edges,
    Registration,
    displacement,
    edge_agreement,
    find_edges,
    fit_registration,
    mean,
)
from pri3d.preparation.evidence import Guess, both_ways
from pri3d.preparation.findings import Finding
from pri3d.preparation.recamera import advised_yaml
from pri3d.preparation.search import average, better, photo, soft
from pri3d.preparation.shots import Shots, Stack, stack_shots

_FARTHEST = 5  # frames by which a stream is thought to come late
_SAME, _APART = (
    0.012,
    0.02,
)  # displacement in widths up to which colour counts as registered, and from which it does not
_FEW = 5  # frames with edges below which nothing is said of the registration
_UNRELATED = 0.12  # of edge_agreement and of the correlation, below which two images show different things


def of_times(
    shots: Shots, stack: Stack, pairs: NDArray[np.int64], guess: Guess, seed: int
) -> tuple[Stack, Guess, list[Finding]]:
    """Follow a shift between depth and poses, decide whose it is, and look for one of the colour.

    Returns the stack with the frames that were needed, the guess, and one finding.
    """
    directed = both_ways(pairs)
    shift = guess.correction.shift
    if shift:
        stack, guess = _follow(shots, stack, pairs, guess, seed)
        shift = guess.correction.shift
        of_poses = guess._replace(correction=guess.correction._replace(shift=0), pose_shift=-shift)
        if _together(shots, stack, directed, of_poses) > _together(shots, stack, directed, guess):
            late = f"poses {-shift:+d} frames"
            advice = "No correction mends it: give each frame its own pose (check how time stamps are matched)."
            return stack, of_poses, [Finding("time", "fault", late, "poses of other frames", advice)]
    base = photo(stack, directed, guess)
    for step in (-1, 1):
        other = guess._replace(color_shift=step)
        if _colour_is_late(shots, stack, base, photo(stack, directed, other), guess, step):
            advice = "No correction mends it: give each frame its own colour image (check how time stamps are matched)."
            found = Finding("time", "fault", f"colour {step:+d} frames", "colour of other frames", advice)
            return stack, other, [found]
    if shift:
        found = Finding(
            "time", "fault", f"depth {shift:+d} frames", "depth of other frames", f"--correct shift={shift}"
        )
        return stack, guess, [found]
    return stack, guess, [Finding("time", "ok", "colour, depth and poses agree best as they are")]


def _follow(shots: Shots, stack: Stack, pairs: NDArray[np.int64], guess: Guess, seed: int) -> tuple[Stack, Guess]:
    """Shift the depth on in the same direction while the frames agree better."""
    directed = both_ways(pairs)
    some = np.unique(pairs[: len(pairs) // 3 + 4])
    while abs(guess.correction.shift) < _FARTHEST:
        shift = guess.correction.shift + int(np.sign(guess.correction.shift))
        stack = stack_shots(shots, [*stack.indices.tolist(), *(int(k) + shift for k in some)], seed)
        other = guess._replace(correction=guess.correction._replace(shift=shift))
        if not better(soft(stack, directed, guess), soft(stack, directed, other)):
            break
        guess = other
    return stack, guess


def _together(shots: Shots, stack: Stack, directed: NDArray[np.int64], guess: Guess) -> float:
    """How well colour agrees with the depth of its own frame, and with that of others."""
    return average(photo(stack, directed, guess)) + mean(edge_agreement(_edges(shots, stack, guess), Registration()))


def _edges(shots: Shots, stack: Stack, guess: Guess) -> Edges:
    """Edges of the frames, each with the depth and the colour that the guess says are its."""
    depths, colors = [], []
    for index in stack.indices.tolist():
        depth, color = shots.kept(index + guess.correction.shift), shots.kept(index + guess.color_shift)
        if depth is not None and color is not None:
            depths.append(depth)
            colors.append(color)
    return find_edges(depths, colors, 0)


def _colour_is_late(
    shots: Shots, stack: Stack, base: NDArray[np.float64], other: NDArray[np.float64], guess: Guess, step: int
) -> bool:
    """Whether colour ``step`` frames on agrees better, pair by pair and edge by edge, and with one of them surely."""
    plain, moved = (
        edge_agreement(_edges(shots, stack, guess._replace(color_shift=k)), Registration()) for k in (0, step)
    )
    sure = better(base, other, 1.1)
    return bool(sure and mean(moved) > 1.05 * mean(plain))


def of_colour(shots: Shots, stack: Stack, pairs: NDArray[np.int64], guess: Guess) -> tuple[list[Finding], str]:
    """Whether colour is registered to depth; and, where it is not, the cameras to write."""
    edges = _edges(shots, stack, guess)
    plain = edge_agreement(edges, Registration())
    correlation = photo(stack, both_ways(pairs), guess) if len(pairs) else np.zeros(0)
    if np.isfinite(plain).sum() < _FEW:
        return [Finding("registration", "unknown", "too few depth edges to compare with the colour")], ""
    fit = fit_registration(edges)
    fitted = edge_agreement(edges, fit)
    moved = displacement(edges, fit)
    width = shots.cameras[0].width
    figure = f"edges agree by {mean(plain):.2f}, {mean(fitted):.2f} at best, {moved * width:.1f} px of {width} away"
    if np.isfinite(correlation).any():
        figure += f"; colours correlate by {average(correlation):.2f}"
    gained = better(plain, fitted, 1.15) and mean(fitted) > 2 * _UNRELATED
    if gained and moved > _APART:
        return _unregistered(shots, fit, figure)
    unrelated = mean(plain) < _UNRELATED and (average(correlation) < _UNRELATED or not len(correlation))
    if unrelated and not gained:
        advice = "The colour images do not show what the depth shows: colour of other frames, or of another camera."
        return [Finding("registration", "fault", figure, "colour does not fit", advice)], ""
    if gained and moved > _SAME:
        return [Finding("registration", "warning", figure, advice="Colour may be a little off the depth.")], ""
    return [Finding("registration", "ok", figure)], ""


def _unregistered(shots: Shots, fit: Registration, figure: str) -> tuple[list[Finding], str]:
    color, depth = shots.cameras
    moved = color._replace(
        fx=color.fx * fit.focal,
        fy=color.fy * fit.focal,
        cx=color.cx + fit.right * color.width,
        cy=color.cy + fit.down * color.width,
    )
    color_from_depth = first_transform(shots).copy()
    color_from_depth[0, 3] += fit.baseline
    advice = (
        f"Colour is not registered to depth: focal length x {fit.focal:.3f}, centre {fit.right * color.width:+.1f}, "
        f"{fit.down * color.width:+.1f} px, baseline {fit.baseline * 100:+.1f} cm. State both cameras, see below."
    )
    found = Finding("registration", "fault", figure, "colour not registered", advice)
    return [found], advised_yaml(moved, depth, color_from_depth)


def first_transform(shots: Shots) -> NDArray[np.float64]:
    """``color_from_depth`` (4, 4) of the first frame that is there."""
    return next(shot.color_from_depth for k in sorted(shots.asked) if (shot := shots.kept(k)) is not None)

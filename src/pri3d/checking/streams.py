"""Whether colour, depth and poses were taken at the same time, and colour and depth from the same place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pri3d.checking.alignment import (
    Edges,
    Registration,
    displacement,
    edge_agreement,
    find_edges,
    fit_registration,
    mean,
)
from pri3d.checking.evidence import Guess, both_ways
from pri3d.checking.findings import Finding
from pri3d.checking.recamera import advised_yaml
from pri3d.checking.search import average, better, photo, soft
from pri3d.checking.shots import Shots, Stack, stack_shots, turns

_FARTHEST = 5  # frames by which a stream is thought to come late
_SAME, _APART = 0.012, 0.02  # displacement in widths up to which colour is registered, and from which it is not
_RESOLVED = 2.0  # pixels of the reduced images below which a displacement is not seen
_TURN, _MOVE = np.radians(1.0), 0.01  # frames that turn, and move by a share of the depth, by less show the same
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
    """Whether colour ``step`` frames on agrees better: surely so pair by pair, and edge by edge too."""
    if not better(base, other, 1.1):
        return False
    plain, moved = (
        edge_agreement(_edges(shots, stack, guess._replace(color_shift=k)), Registration()) for k in (0, step)
    )
    return mean(moved) > 1.05 * mean(plain)


def of_colour(shots: Shots, stack: Stack, pairs: NDArray[np.int64], guess: Guess) -> tuple[list[Finding], str]:
    """Whether colour is registered to depth; and, where it is not, the cameras to write."""
    edges = _edges(shots, distinct(stack) if len(pairs) else stack, guess)
    plain = edge_agreement(edges, Registration())
    directed = both_ways(pairs)
    colours = photo(stack, directed, guess)
    if np.isfinite(plain).sum() < _FEW:
        return [Finding("registration", "unknown", "too few depth edges to compare with the colour")], ""
    fit = fit_registration(edges)
    fitted = edge_agreement(edges, fit)
    moved = displacement(edges, fit)
    width, seen = shots.cameras[0].width, _RESOLVED / min(stack.texture.shape[2], stack.inverse.shape[2])
    figure = f"edges agree by {mean(plain):.2f}, {mean(fitted):.2f} at best, {moved * width:.1f} px of {width} away"
    if np.isfinite(colours).any():
        figure += f"; colours correlate by {average(colours):.2f}"
    gained = mean(fitted) > 2 * _UNRELATED and better(plain, fitted, 1.25, 2.0)
    if np.isfinite(colours).sum() >= _FEW:  # edges may agree by chance somewhere; colours of other views then do not
        gained = gained and better(colours, photo(_refitted(stack, fit), directed, guess))
    else:
        gained = gained and better(plain, fitted, 1.25)
    if gained and moved > max(_APART, seen):
        return _unregistered(shots, fit, figure)
    # Edges of other frames of the same room agree a little: it has horizontal and vertical ones everywhere.
    unrelated = mean(plain) < (2 if len(pairs) else 1) * _UNRELATED and average(colours) < _UNRELATED
    if unrelated and not gained:
        advice = "The colour images do not show what the depth shows: colour of other frames, or of another camera."
        return [Finding("registration", "fault", figure, "colour does not fit", advice)], ""
    if gained and moved > max(_SAME, seen):
        return [Finding("registration", "warning", figure, advice="Colour may be a little off the depth.")], ""
    return [Finding("registration", "ok", figure)], ""


def distinct(stack: Stack) -> Stack:
    """The frames that do not show what an earlier one shows: only these are evidence of their own."""
    turn = turns(stack.world_from_camera)
    place = stack.world_from_camera[:, :3, 3]
    move = np.linalg.norm(place[:, None] - place, axis=-1) * float(np.median(stack.inverse[stack.inverse > 0]))
    same = (turn < _TURN) & (move < _MOVE)
    kept: list[int] = []
    for row in range(len(same)):
        if not same[row, kept].any():
            kept.append(row)
    return Stack._make(field[kept] for field in stack)


def _refitted(stack: Stack, fit: Registration) -> Stack:
    """The stack with the colour cameras that the edges ask for."""
    width = stack.texture.shape[2]
    color_k = stack.color_k * (fit.focal, fit.focal, 1, 1) + np.array((0, 0, fit.right * width, fit.down * width))
    moved = stack.color_from_depth.copy()
    moved[:, 0, 3] += fit.baseline
    poses = stack.world_from_camera @ stack.color_from_depth @ np.linalg.inv(moved)  # those of depth stay
    return stack._replace(color_k=color_k, color_from_depth=moved, world_from_camera=poses)


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

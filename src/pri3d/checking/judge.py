"""A scene -> what is right and wrong about its poses, depth, colour and cameras, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.checking import streams
from pri3d.checking.evidence import Guess, Score, both_ways, carry, depth_poses, geometric
from pri3d.checking.findings import Finding, of_images, of_intrinsics, of_losses, stated_cameras
from pri3d.checking.recamera import advised_yaml, recamered
from pri3d.checking.search import alternatives, estimate, explain, rounded
from pri3d.checking.shots import Shots, Stack, choose_frames, choose_pairs, stack_shots
from pri3d.recordings import Scene
from pri3d.recordings._shared.correction import Correction

Tell = Callable[[str, int, int], None]  #: told a step's name, how much of it is done, and how much there is
_GOOD, _POOR = 0.85, 0.7  # share of the points that do not contradict the depth measured where they land
_SMALL, _LARGE = 0.03, 0.05  # relative errors of a factor that are worth a warning, and a fault
_NEAREST, _FARTHEST = 0.2, 20.0  # metres; median depth of a recording indoors
_STILL = 0.01  # share of the depth below which movement between frames tells nothing about scale
_FEWEST = 6  # pairs below which nothing is said


class Evidence(NamedTuple):
    """What a verdict rests on, for its pictures."""

    shots: Shots
    stack: Stack
    pairs: NDArray[np.int64]  #: (P, 2) frame indices
    guess: Guess  #: under which the frames agree best


class Judgement(NamedTuple):
    """The verdict on one scene."""

    scene: str
    findings: list[Finding]
    correct: str = ""  #: what to give to ``--correct``
    cameras: str = ""  #: what to write into a cameras.yaml
    alternatives: dict[str, float] | None = None  #: how well the frames agree under other assumptions
    evidence: Evidence | None = None

    @property
    def faults(self) -> list[Finding]:
        """Findings that must be mended before the recording is of use."""
        return [finding for finding in self.findings if finding.verdict == "fault"]

    @property
    def verdict(self) -> Literal["ok", "warning", "fault"]:
        """The worst of the findings."""
        verdicts = {finding.verdict for finding in self.findings}
        return "fault" if "fault" in verdicts else "warning" if "warning" in verdicts else "ok"


def judge(
    scene: Scene,
    frames: int = 40,
    pairs: int = 60,
    seed: int = 0,
    tell: Tell = lambda _step, _done, _total: None,
) -> Judgement:
    """Sample ``frames`` frames and ``pairs`` pairs of a scene and judge them; beside them, neighbours in time are read.

    Raises DataError where the scene cannot be opened.
    """
    shots = Shots(scene)
    chosen = choose_frames(shots.count, frames)
    for done, index in enumerate(chosen):
        tell("frames", done, len(chosen))
        shots.get(index)
    findings = of_losses(shots, chosen)
    wrong = of_intrinsics(shots)
    if wrong is not None:
        finding, color, depth = wrong
        inner = judge(recamered(scene, color, depth), frames, pairs, seed, tell) if shots.usable else None
        rest = [f for f in inner.findings if f.check not in ("intrinsics", "frames")] if inner else []
        yaml = inner.cameras if inner and inner.cameras else advised_yaml(color, depth)
        more = (inner.correct, yaml, inner.alternatives, inner.evidence) if inner else ("", yaml)
        lost = [] if inner is None else findings  # all frames are lost to this very fault
        return Judgement(scene.id, [*lost, finding, *rest], *more)
    if not shots.usable:
        return Judgement(scene.id, findings)
    findings += [stated_cameras(shots), *of_images(shots, chosen)]
    return _judge_streams(shots, chosen, pairs, seed, findings, tell)


def _judge_streams(
    shots: Shots, chosen: list[int], pairs: int, seed: int, findings: list[Finding], tell: Tell
) -> Judgement:
    """Judge how poses, depth and colour go together."""
    stack = stack_shots(shots, chosen, seed)
    scene = shots.scene
    if any(f.fault in ("hardly any depth", "no depth") for f in findings):
        return Judgement(scene.id, findings)
    posed = scene.posed
    picked = choose_pairs(stack, pairs, seed) if posed else np.zeros((0, 2), np.int64)
    if len(picked) < _FEWEST:
        if posed:
            few = f"only {len(picked)} pairs of frames look the same way"
            findings.append(Finding("poses", "warning", few, advice="Too few to judge poses, depth scale and axes."))
        else:
            findings.append(Finding("poses", "unknown", "the format states no poses"))
        found, yaml = streams.of_colour(shots, stack, np.zeros((0, 2), np.int64), Guess())
        return Judgement(scene.id, findings + found, cameras=yaml)
    stack = with_neighbours(shots, stack, picked, seed, tell)
    trials = explain(stack, picked, Guess(), lambda done, total: tell("alternatives", done, total))
    guess = trials[-1].guess
    tell("time", 0, 1)
    stack, guess, late = streams.of_times(shots, stack, picked, guess, seed)
    score = geometric(carry(stack, both_ways(picked), guess))
    # A factor that makes the movement vanish explains nothing: it only leaves the rotations.
    empty = rounded(guess.correction.depth) != 1 and (
        movement(stack, picked, guess.correction) < _STILL * guess.correction.depth * median_depth(shots)
    )
    share = 0.0 if empty else share_of(score)
    findings.append(of_agreement(score, share))
    correct, yaml = Correction(), ""
    if share >= _POOR:  # else nothing that the guess says is sure
        correct, faults = of_guess(shots, guess)
        fine, yaml = of_factors(shots, stack, picked, guess)
        colour, two_cameras = streams.of_colour(shots, stack, picked, guess)
        findings += [*faults, *fine, *late, *of_size(shots, stack, picked, correct), *colour]
        yaml = yaml or two_cameras
    tell("alternatives", 3, 3)
    figures = alternatives(stack, picked, guess)
    evidence = Evidence(shots, stack, picked, guess if share >= _POOR else Guess())
    findings += of_overlap(picked, score)
    return Judgement(scene.id, findings, str(correct), yaml, figures, evidence)


def with_neighbours(shots: Shots, stack: Stack, pairs: NDArray[np.int64], seed: int, tell: Tell) -> Stack:
    """The stack, and the frames before and after some of its pairs, to find out whether a stream comes late."""
    some = np.unique(pairs[: len(pairs) // 3 + 4])
    wanted = sorted({int(k) + step for k in some for step in (-1, 1)} - set(stack.indices.tolist()))
    for done, index in enumerate(wanted):
        tell("neighbours", done, len(wanted))
        shots.get(index)
    return stack_shots(shots, [*stack.indices.tolist(), *wanted], seed)


def share_of(score: Score) -> float:
    """Share of the carried points in view that agree with the depth measured where they land."""
    return float(score.agree.sum() / max(1, score.agree.sum() + score.front.sum()))


def of_agreement(score: Score, share: float) -> Finding:
    """Whether poses and depth belong together at all; ``share`` of the points in view agree."""
    landed = score.landed.sum() / max(1, score.points.sum())
    figure = f"{share:.0%} of {score.landed.sum():,} carried points agree ({landed:.0%} of all land)"
    if share >= _GOOD:
        return Finding("poses and depth", "ok", figure)
    if share >= _POOR:
        return Finding("poses and depth", "warning", figure, advice="Look at the sheet: poses may drift.")
    return Finding(
        "poses and depth",
        "fault",
        figure,
        "poses do not fit",
        "No direction, axes, factor or shift of time makes the frames agree: poses of other frames, lost tracking, or "
        "several mistakes at once. Check which pose belongs to which frame.",
    )


def of_guess(shots: Shots, guess: Guess) -> tuple[Correction, list[Finding]]:
    """Name the mistakes that the best guess corrects; return what mends them."""
    given = guess.correction
    factor = rounded(given.depth)
    correct = Correction(given.inverse, given.opengl, given.ray, 1.0, given.shift)
    found = []
    if given.inverse:
        found.append(Finding("direction", "fault", "world to camera", "poses inverted", _say("inverse")))
    if given.opengl:
        found.append(Finding("axes", "fault", "y up, z backward", "camera axes of OpenGL", _say("opengl")))
    if given.ray:
        found.append(Finding("depth along", "fault", "the ray", "ray length", _say("ray")))
    names = (("direction", "camera to world"), ("axes", "x right, y down, z forward"), ("depth along", "z"))
    found += [Finding(name, "ok", figure) for name, figure in names if name not in {f.check for f in found}]
    if abs(np.log(factor)) <= _LARGE:
        return correct, found
    median = median_depth(shots)
    metric = shots.scene.metric
    if metric and plausible(median) and not plausible(median * factor):
        figure = f"{1 / factor:.4g} of them is a metre of the depth"
        correct = correct._replace(translation=float(f"{1 / factor:.4g}"))
        advice = _say(f"translation={correct.translation:g}")
        return correct, [*found, Finding("translations", "fault", figure, "translations in another unit", advice)]
    correct = correct._replace(depth=factor)
    advice = _say(f"depth={factor:g}")
    return correct, [*found, Finding("depth scale", "fault", f"x {factor:g} is right", "depth scale", advice)]


def of_factors(shots: Shots, stack: Stack, pairs: NDArray[np.int64], guess: Guess) -> tuple[list[Finding], str]:
    """Small errors of the depth's scale and of the focal length; and the cameras to write."""
    directed = both_ways(pairs)
    depth, focal = (estimate(stack, directed, guess, what) for what in ("depth", "focal"))
    found: list[Finding] = []
    yaml = ""
    if guess.focal != 1:
        factor = guess.focal * focal
        figure = f"x {factor:.3f} is right"
        color, depth_camera = (c._replace(fx=c.fx * factor, fy=c.fy * factor) for c in shots.cameras)
        yaml = advised_yaml(color, depth_camera)
        advice = f"State fx = {shots.cameras[0].fx * factor:.1f} in cameras.yaml, see below."
        found.append(Finding("focal length", "fault", figure, "focal length", advice))
    elif abs(np.log(focal)) > _SMALL and abs(np.log(focal)) > abs(np.log(depth)):
        advice = f"Calibrate: fx = {shots.cameras[0].fx * focal:.1f} would agree better."
        found.append(Finding("focal length", "warning", f"x {focal:.3f} agrees best", advice=advice))
    else:
        found.append(Finding("focal length", "ok", f"x {focal:.3f} agrees best"))
    if abs(np.log(rounded(guess.correction.depth))) > _LARGE:
        return found, yaml
    factor = guess.correction.depth * depth
    if abs(np.log(factor)) > _SMALL and found[-1].verdict == "ok":
        found.append(
            Finding("depth scale", "warning", f"x {factor:.3f} agrees best", advice=_say(f"depth={factor:.3f}"))
        )
    else:
        found.append(Finding("depth scale", "ok", f"x {factor:.3f} agrees best"))
    return found, yaml


def of_size(shots: Shots, stack: Stack, pairs: NDArray[np.int64], correct: Correction) -> list[Finding]:
    """Whether lengths are those of rooms and the camera moves: a unit that is wrong everywhere shows only here."""
    median, moved = median_depth(shots) * correct.depth, movement(stack, pairs, correct)
    parallax = moved / max(median, 1e-9)
    found = []
    if parallax < _STILL:
        figure = f"{parallax:.1%} of the depth between the frames of a pair"
        found.append(Finding("motion", "warning", figure, advice="The camera hardly moves: scale cannot be judged."))
    if not shots.scene.metric:
        return [*found, Finding("size", "unknown", "the unit of this format is not known")]
    figure = f"median depth {median:.3g} m, {moved:.2g} m between the frames of a pair"
    if plausible(median):
        return [*found, Finding("size", "ok", figure)]
    advice = "Rooms are seen from 0.2 to 20 m. If depth and poses share another unit, state depth= and translation=."
    return [*found, Finding("size", "warning", figure, advice=advice)]


def movement(stack: Stack, pairs: NDArray[np.int64], correct: Correction) -> float:
    """Median distance between the cameras of a pair, in metres where ``correct`` makes them metres."""
    places = depth_poses(stack, correct)[stack.rows(pairs)][:, :, :3, 3] * correct.translation
    return float(np.median(np.linalg.norm(places[:, 1] - places[:, 0], axis=-1)))


def of_overlap(pairs: NDArray[np.int64], score: Score) -> list[Finding]:
    """How much neighbouring frames of the sample see of each other."""
    count = len(pairs)
    overlap = (score.agree[:count] + score.agree[count:]) / np.maximum(1, score.points[:count] + score.points[count:])
    enough = float((overlap >= 0.3).mean())
    low, middle, high = np.percentile(overlap, (10, 50, 90))
    figure = (
        f"{enough:.0%} of the pairs overlap by 30 % (10th, 50th, 90th percentile {low:.2f}, {middle:.2f}, {high:.2f})"
    )
    if enough >= 0.15:
        return [Finding("overlap", "ok", figure)]
    return [Finding("overlap", "warning", figure, advice="Take frames nearer in time, or record more slowly.")]


def median_depth(shots: Shots) -> float:
    """Median of the valid depth of all frames, in the unit stated."""
    values = [shot.depth[shot.depth > 0][::7] for k in sorted(shots.asked) if (shot := shots.get(k)) is not None]
    joined = np.concatenate(values) if values else np.zeros(0)
    return float(np.median(joined)) if len(joined) else 0.0


def plausible(depth: float) -> bool:
    """Whether a median depth in metres is that of a room."""
    return _NEAREST <= depth <= _FARTHEST


def _say(text: str) -> str:
    return f"--correct {text}"

"""A scene -> results of all checks of its poses, depth, colour and cameras, with fixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.checking.calibration import LARGE, check_calibration, estimate_time, move_poses
from pri3d.checking.evidence import (
    Finding,
    Shots,
    Stack,
    check_images,
    check_intrinsics,
    choose_frames,
    choose_pairs,
    stack_shots,
)
from pri3d.checking.hypotheses import (
    Agreement,
    Hypothesis,
    agreement_under,
    both_directions,
    correlation_under,
    depth_poses,
    is_better,
    mean_finite,
    measure_agreement,
    measure_residual,
    reproject,
    round_factor,
    score_alternatives,
    search_hypotheses,
)
from pri3d.checking.registration import (
    RecameredScene,
    Registration,
    advised_yaml,
    check_colour_registration,
    edge_score,
    stream_edges,
)
from pri3d.recordings import Scene
from pri3d.recordings._shared.correction import Correction

Tell = Callable[[str, int, int], None]  #: told a step's name, how much of it is done, and how much there is
_GOOD, _POOR = 0.85, 0.7  # fraction of the points that do not contradict the depth measured where they land
_NEAREST, _FARTHEST = 0.2, 20.0  # metres; median depth of a recording indoors
_STILL = 0.01  # fraction of the depth below which movement between frames tells nothing about scale
_AS_GOOD = 0.97  # fraction of the agreement of another explanation that counts as the same
_FEWEST = 6  # pairs below which nothing is said
_LATEST = 5  # frames by which a stream is thought to come late


class Evidence(NamedTuple):
    """What a verdict rests on, for its pictures."""

    shots: Shots
    stack: Stack
    pairs: NDArray[np.int64]  #: (P, 2) frame indices
    hypothesis: Hypothesis  #: under which the frames agree best
    moved: Stack | None = None  #: the stack with poses of other times, where that is advised


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
        """Findings that must be fixed before the recording is of use."""
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
    lost = [shots.reasons[index] for index in chosen if index in shots.reasons]
    share = len(lost) / max(1, len(chosen))
    figure = f"{len(chosen) - len(lost)} of {len(chosen)} sampled frames are usable"
    if lost:
        figure += f"; the first of the others: {str(lost[0]).removesuffix('.')}"
    findings = [Finding("frames", "ok", figure, advice="prepare leaves them out." if lost else "")]
    if share > 0.6:
        findings = [Finding("frames", "fault", figure, "frames unusable", "Fix the stated reason.")]
    elif share > 0.2:
        findings = [Finding("frames", "warning", figure, advice="prepare skips them.")]
    wrong = check_intrinsics(shots)
    if wrong is not None and shots.usable:  # a crop has its centre beside the middle: then the frames agree as stated
        stated = _judge_streams(shots, chosen, pairs, seed, [*findings, *check_images(shots, chosen)], tell)
        if stated.evidence is not None and not stated.faults:
            return stated
    if wrong is not None:
        finding, color, depth = wrong
        inner = judge(RecameredScene(scene, color, depth), frames, pairs, seed, tell) if shots.usable else None
        rest = [f for f in inner.findings if f.check not in ("intrinsics", "frames")] if inner else []
        yaml = inner.cameras if inner and inner.cameras else advised_yaml(color, depth)
        more = (inner.correct, yaml, inner.alternatives, inner.evidence) if inner else ("", yaml)
        frames_lost = [] if inner is None else findings  # all frames are lost to this very fault
        return Judgement(scene.id, [*frames_lost, finding, *rest], *more)
    if not shots.usable:
        return Judgement(scene.id, findings)
    findings += check_images(shots, chosen)
    if scene.assumed:
        findings.append(
            Finding("camera", "warning", "assumed", advice=f"{scene.assumed} Give the right one if it differs.")
        )
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
            few = f"only {len(picked)} pairs of frames have similar viewing directions"
            findings.append(Finding("poses", "warning", few, advice="Too few to check poses, depth scale and axes."))
        else:
            findings.append(Finding("poses", "unknown", "the format states no poses"))
        found, yaml = check_colour_registration(shots, stack, np.zeros((0, 2), np.int64), Hypothesis())
        return Judgement(scene.id, findings + found, cameras=yaml)
    # The frames before and after those of some pairs tell whether a stream comes late.
    some = np.unique(picked[: len(picked) // 3 + 4])
    neighbours = sorted({int(k) + step for k in some for step in (-1, 1)} - set(stack.indices.tolist()))
    for done, index in enumerate(neighbours):
        tell("neighbours", done, len(neighbours))
        shots.get(index)
    stack = stack_shots(shots, [*stack.indices.tolist(), *neighbours], seed)
    trials = search_hypotheses(stack, picked, Hypothesis(), lambda done, total: tell("alternatives", done, total))
    hypothesis = trials[-1].hypothesis
    tell("time", 0, 1)
    stated = stack
    stack, hypothesis, late, seconds = check_time_sync(shots, stack, picked, hypothesis, seed)
    score = measure_agreement(reproject(stack, both_directions(picked), hypothesis))
    # A factor that makes the movement vanish explains nothing: it only leaves the rotations.
    empty = round_factor(hypothesis.correction.depth) != 1 and (
        median_baseline(stack, picked, hypothesis.correction)
        < _STILL * hypothesis.correction.depth * median_depth(shots)
    )
    consistent = 0.0 if empty else float(score.agree.sum() / max(1, score.agree.sum() + score.front.sum()))
    apart = measure_residual(reproject(stack, both_directions(picked), hypothesis)) if scene.metric else np.nan
    findings.append(check_agreement(score, consistent, apart))
    correct, yaml = Correction(), ""
    if consistent >= _POOR:  # else nothing that the hypothesis says is sure
        correct, faults = check_conventions(shots, hypothesis)
        blamed = any(finding.verdict == "fault" for finding in [*faults, *late])
        parallax = median_baseline(stack, picked, correct) / max(median_depth(shots) * correct.depth, 1e-9)
        fine, yaml, factor = check_calibration(shots, stack, picked, hypothesis, blamed, parallax < _STILL)
        correct = correct._replace(depth=factor or correct.depth, time=seconds)
        colour, two_cameras = check_colour_registration(shots, stack, picked, hypothesis)
        findings += [*faults, *fine, *late, *check_metric_size(shots, stack, picked, correct), *colour]
        yaml = yaml or two_cameras
    tell("alternatives", 3, 3)
    figures = score_alternatives(stack, picked, hypothesis)
    sure = consistent >= _POOR
    moved = stack if seconds and sure else None
    evidence = Evidence(shots, stated if seconds else stack, picked, hypothesis if sure else Hypothesis(), moved)
    findings += check_overlap(picked, score)
    return Judgement(scene.id, findings, str(correct), yaml, figures, evidence)


def check_time_sync(
    shots: Shots, stack: Stack, pairs: NDArray[np.int64], hypothesis: Hypothesis, seed: int
) -> tuple[Stack, Hypothesis, list[Finding], float]:
    """Follow a shift between depth and poses, decide whose it is, and look for one of the colour.

    An offset of the poses in seconds goes before a shift by whole frames, which parts depth from its colour, unless
    that fits better. Returns the stack with the frames and poses that were needed, the hypothesis, one finding, and
    the seconds.
    """
    directed = both_directions(pairs)
    shift = hypothesis.correction.shift
    together = hypothesis._replace(correction=hypothesis.correction._replace(shift=0))
    seconds = estimate_time(shots, stack, pairs, together)
    if seconds is not None:
        later, _ = move_poses(shots, stack, seconds)
        values = [
            mean_finite(agreement_under(with_poses, directed, assumed))
            for with_poses, assumed in ((later, together), (stack, hypothesis))
        ]
        fits = [
            _frame_agreement(shots, with_poses, directed, assumed)
            for with_poses, assumed in ((later, together), (stack, hypothesis))
        ]
        if not shift or (values[0] > _AS_GOOD * values[1] and fits[0] > fits[1]):
            figure = f"poses {1000 * seconds:+.0f} ms fit best"
            advice = f"--correct time={seconds:g}"
            return later, together, [Finding("time", "fault", figure, "time offset of the poses", advice)], seconds
    if shift:
        # Shift the depth on in the same direction while the frames agree better.
        some = np.unique(pairs[: len(pairs) // 3 + 4])
        while abs(shift) < _LATEST:
            farther = shift + int(np.sign(shift))
            stack = stack_shots(shots, [*stack.indices.tolist(), *(int(k) + farther for k in some)], seed)
            other = hypothesis._replace(correction=hypothesis.correction._replace(shift=farther))
            if not is_better(agreement_under(stack, directed, hypothesis), agreement_under(stack, directed, other)):
                break
            hypothesis, shift = other, farther
        of_poses = hypothesis._replace(correction=hypothesis.correction._replace(shift=0), pose_shift=-shift)
        if _frame_agreement(shots, stack, directed, of_poses) > _frame_agreement(shots, stack, directed, hypothesis):
            late = f"poses {-shift:+d} frames"
            advice = "No --correct fixes this: give each frame its own pose (check the matching of time stamps)."
            return stack, of_poses, [Finding("time", "fault", late, "poses of other frames", advice)], 0.0
    base = correlation_under(stack, directed, hypothesis)
    for step in (-1, 1):
        other = hypothesis._replace(color_shift=step)
        if not is_better(base, correlation_under(stack, directed, other), 1.1):
            continue
        # Colour of other frames agrees better pair by pair; it must do so edge by edge too.
        plain, moved = (
            mean_finite(edge_score(stream_edges(shots, stack, hypothesis._replace(color_shift=k)), Registration()))
            for k in (0, step)
        )
        if moved > 1.05 * plain:
            advice = (
                "No --correct fixes this: give each frame its own colour image (check the matching of time stamps)."
            )
            found = Finding("time", "fault", f"colour {step:+d} frames", "colour of other frames", advice)
            return stack, other, [found], 0.0
    if shift:
        found = Finding(
            "time", "fault", f"depth {shift:+d} frames", "depth of other frames", f"--correct shift={shift}"
        )
        return stack, hypothesis, [found], 0.0
    return stack, hypothesis, [Finding("time", "ok", "colour, depth and poses are most consistent as stated")], 0.0


def _frame_agreement(shots: Shots, stack: Stack, directed: NDArray[np.int64], hypothesis: Hypothesis) -> float:
    """How well colour agrees with the depth of its own frame, and with that of others."""
    return mean_finite(correlation_under(stack, directed, hypothesis)) + mean_finite(
        edge_score(stream_edges(shots, stack, hypothesis), Registration())
    )


def check_agreement(score: Agreement, consistent: float, apart: float) -> Finding:
    """Whether poses and depth belong together at all.

    ``consistent`` is the fraction of the reprojected points in view that agree with the depth where they land;
    ``apart`` their median distance from it, metres, nan where it is not known.
    """
    landed = score.landed.sum() / max(1, score.points.sum())
    figure = f"{consistent:.0%} of {score.landed.sum():,} reprojected points are consistent ({landed:.0%} in view)"
    if np.isfinite(apart):
        figure += f", {100 * apart:.1f} cm off in the median"
    if consistent >= _GOOD:
        return Finding("poses and depth", "ok", figure)
    if consistent >= _POOR:
        return Finding("poses and depth", "warning", figure, advice="Look at sheet.png: poses may drift.")
    return Finding(
        "poses and depth",
        "fault",
        figure,
        "poses do not fit",
        "No direction, axes, factor or shift of time makes the frames consistent: poses of other frames, lost "
        "tracking, or "
        "several mistakes at once. Check which pose belongs to which frame.",
    )


def check_conventions(shots: Shots, hypothesis: Hypothesis) -> tuple[Correction, list[Finding]]:
    """Name the mistakes that the best hypothesis corrects; return the correction."""
    given = hypothesis.correction
    factor = round_factor(given.depth)
    correct = Correction(given.inverse, given.opengl, given.ray, 1.0, given.shift)
    found = []
    if given.inverse:
        found.append(Finding("direction", "fault", "world to camera", "poses inverted", "--correct inverse"))
    if given.opengl:
        found.append(Finding("axes", "fault", "y up, z backward", "camera axes of OpenGL", "--correct opengl"))
    if given.ray:
        found.append(Finding("depth along", "fault", "the ray", "ray length", "--correct ray"))
    names = (("direction", "camera to world"), ("axes", "x right, y down, z forward"), ("depth along", "z"))
    found += [Finding(name, "ok", figure) for name, figure in names if name not in {f.check for f in found}]
    if abs(np.log(factor)) <= LARGE:
        return correct, found
    median = median_depth(shots)
    metric = shots.scene.metric
    if metric and is_room_size(median) and not is_room_size(median * factor):
        figure = f"{1 / factor:.4g} of them is a metre of the depth"
        correct = correct._replace(translation=float(f"{1 / factor:.4g}"))
        advice = f"--correct translation={correct.translation:g}"
        return correct, [*found, Finding("translations", "fault", figure, "translations in another unit", advice)]
    correct = correct._replace(depth=factor)
    advice = f"--correct depth={factor:g}"
    return correct, [*found, Finding("depth scale", "fault", f"x {factor:g} is right", "depth scale", advice)]


def check_metric_size(shots: Shots, stack: Stack, pairs: NDArray[np.int64], correct: Correction) -> list[Finding]:
    """Whether lengths are those of rooms and the camera moves: a unit that is wrong everywhere shows only here."""
    median, moved = median_depth(shots) * correct.depth, median_baseline(stack, pairs, correct)
    parallax = moved / max(median, 1e-9)
    found = []
    if parallax < _STILL:
        figure = f"{parallax:.1%} of the depth between the frames of a pair"
        found.append(
            Finding("motion", "warning", figure, advice="The camera hardly moves: the scale cannot be checked.")
        )
    if not shots.scene.metric:
        return [*found, Finding("size", "unknown", "the unit of this format is not known")]
    figure = f"median depth {median:.3g} m, {moved:.2g} m between the frames of a pair"
    if is_room_size(median):
        return [*found, Finding("size", "ok", figure)]
    advice = (
        "Depths in rooms are 0.2 to 20 m. If depth and poses have the same wrong unit, give depth= and translation=."
    )
    return [*found, Finding("size", "warning", figure, advice=advice)]


def median_baseline(stack: Stack, pairs: NDArray[np.int64], correct: Correction) -> float:
    """Median distance between the cameras of a pair, in metres where ``correct`` makes them metres."""
    places = depth_poses(stack, correct)[stack.rows(pairs)][:, :, :3, 3] * correct.translation
    return float(np.median(np.linalg.norm(places[:, 1] - places[:, 0], axis=-1)))


def check_overlap(pairs: NDArray[np.int64], score: Agreement) -> list[Finding]:
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
    return [Finding("overlap", "warning", figure, advice="Use frames closer in time, or record more slowly.")]


def median_depth(shots: Shots) -> float:
    """Median of the valid depth of all frames, in the unit stated."""
    values = [shot.depth[shot.depth > 0][::7] for k in sorted(shots.asked) if (shot := shots.get(k)) is not None]
    joined = np.concatenate(values) if values else np.zeros(0)
    return float(np.median(joined)) if len(joined) else 0.0


def is_room_size(depth: float) -> bool:
    """Whether a median depth in metres is that of a room."""
    return _NEAREST <= depth <= _FARTHEST

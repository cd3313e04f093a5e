"""`pri3d check`: validates a recording before hours are spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.progress import Progress
from rich.text import Text

from pri3d.api.check import CheckOptions
from pri3d.api.results import Record
from pri3d.checking.evidence import Shot, Stack, invert_depth
from pri3d.checking.hypotheses import (
    TOLERANCE,
    Hypothesis,
    correlate_colours,
    measure_agreement,
    project,
    reproject,
    sample,
)
from pri3d.checking.registration import find_depth_edges
from pri3d.checking.verdict import Evidence, Judgement, judge
from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import replacing, write_atomic
from pri3d.preparation.frames import pick_frames
from pri3d.recordings import Scene, name_left_out, open_recording
from pri3d.recordings._shared.text import absolute, clean_id
from pri3d.runs import write_json
from pri3d.terminal import Terminal

#: result of a check in verdict.json -> its word and its colour on the terminal
_WORDS = {"ok": "ok", "warning": "warning", "fault": "error", "unknown": "unknown"}
_COLORS = {"ok": "green", "warning": "yellow", "fault": "red", "unknown": "dim"}
_WIDTH = 240  # pixels of a picture
_MARGIN, _LINE = 6, 18  # pixels
_INK, _PAPER, _RED, _BLUE, _GREEN = (30,) * 3, (250,) * 3, (210, 30, 30), (70, 80, 150), (40, 255, 90)
_SAID = Hypothesis()  # the recording as it is stated


def check(options: CheckOptions) -> Record:
    """Tell whether a recording's poses, axes, depth, cameras and times are right, and what to do where they are not.

    See :func:`pri3d.check` for the options.
    """
    recording = Path(options.recording)
    cameras = None if options.cameras is None else Path(options.cameras)
    out = None if options.out is None else Path(options.out)
    name = clean_id(absolute(recording).name) + (f"-{clean_id(options.scene)}" if options.scene else "")
    folder = out or Path(f"check-{name}")
    if recording.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"--out {folder}: is inside the recording. Choose a folder outside of {recording}.")
    opened = open_recording(recording, options.reader, cameras, options.split, options.correct)
    scenes = opened.scenes()
    chosen = _choose(scenes, options.scene)
    with Progress(console=Terminal(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)

        def tell(step: str, done: int, total: int) -> None:
            progress.update(bar, description=f"{chosen.id}: {step}", completed=done, total=total)

        judgement = judge(chosen, options.max_frames, options.max_pairs, options.seed, tell)
        advice = judgement
        if judgement.faults and options.correct:  # what to say instead is found on the recording as it lies
            raw = open_recording(recording, options.reader, cameras, options.split).scenes()
            advice = judge(_choose(raw, chosen.id), options.max_frames, options.max_pairs, options.seed, tell)
    verdict = {
        "recording": str(recording),
        "scene": judgement.scene,
        "corrected": options.correct,
        "verdict": judgement.verdict,
        "faults": [finding.fault for finding in judgement.faults],
        "correct": advice.correct if judgement.faults else options.correct,
        "cameras": advice.cameras if judgement.faults else "",
        "findings": [finding._asdict() for finding in judgement.findings],
        "agreement": judgement.alternatives,
        "prepare": f"prepare takes {pick_frames(chosen, opened, 'every', None)}",
        "left_out": name_left_out(recording),
    }
    _write(folder, verdict, judgement)
    _show(verdict, judgement, folder, len(scenes))
    if judgement.faults:
        advice_lines = "".join(f" {line[0].upper()}{line[1:]}." for line in _advice(verdict, folder))
        faults = ", ".join(finding.fault for finding in judgement.faults)
        raise DataError(f"{recording}: scene {judgement.scene} has errors: {faults}.{advice_lines} Images: {folder}")
    return Record(folder, verdict)


def _choose(scenes: Any, wanted: str | None) -> Scene:
    """The scene that is wanted, else the first that can be opened."""
    if wanted is not None:
        found: list[Scene] = [scene for scene in scenes if scene.id == wanted]
        if not found:
            some = ", ".join(scene.id for scene in scenes[:8]) + ", ..." * (len(scenes) > 8)
            raise ConfigError(f"--scene {wanted}: the recording has {len(scenes)} scenes: {some}")
        return found[0]
    first: DataError | None = None
    for scene in scenes:
        try:
            if len(scene.names):
                opened: Scene = scene
                return opened
        except DataError as error:
            first = first or error
    raise DataError(f"none of {len(scenes)} scenes can be opened." + (f" The first: {first}" if first else ""))


def _write(folder: Path, verdict: dict[str, Any], judgement: Judgement) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "verdict.json", verdict)
    for name in ("cameras.yaml", "sheet.png"):  # of an earlier call
        (folder / name).unlink(missing_ok=True)
    if verdict["cameras"]:
        write_atomic(folder / "cameras.yaml", f"# advised by pri3d check\n{verdict['cameras']}".encode())
    if judgement.evidence is not None:
        faults = "; ".join(verdict["faults"]) or "no error"
        title = [
            f"{judgement.scene}: {_WORDS[verdict['verdict']]} ({faults})",
            *_advice(verdict, folder),
        ]
        write_sheet(folder / "sheet.png", judgement.evidence, title)


def _advice(verdict: dict[str, Any], folder: Path) -> list[str]:
    """The options to give to check and prepare, in words."""
    if verdict["verdict"] != "fault":
        return []
    words = [f"--correct {verdict['correct']}"] * bool(verdict["correct"])
    words += [f"--cameras {folder / 'cameras.yaml'}"] * bool(verdict["cameras"])
    if words:
        return [f"re-run check with {' '.join(words)}; if it passes, use the same in prepare"]
    return [f"leave out --correct {verdict['corrected']}"] * bool(verdict["corrected"])


def _show(verdict: dict[str, Any], judgement: Judgement, folder: Path, scenes: int) -> None:
    console = Terminal()
    whole = not console.is_terminal  # lines of a file are not wrapped
    console.print(f"{verdict['recording']}: scene {judgement.scene}", soft_wrap=whole)
    passed = [finding for finding in judgement.findings if finding.verdict == "ok" and not finding.advice]
    for worst in ("fault", "warning", "unknown", "ok"):
        for finding in (found for found in judgement.findings if found.verdict == worst and found not in passed):
            name = f"{finding.check}: {finding.fault}" if finding.fault else finding.check
            words = ". ".join(part for part in (f"{name} ({finding.figure})", finding.advice) if part)
            console.print(Text(_WORDS[worst], _COLORS[worst]), words, soft_wrap=whole)
    if passed:  # of these the figure that most rests on
        names = [f"{f.check} ({f.figure})" if f.check == "poses and depth" else f.check for f in passed]
        console.print(Text("ok", _COLORS["ok"]), f"{', '.join(names)}; all values in verdict.json", soft_wrap=whole)
    for line in filter(None, (verdict["prepare"], verdict["left_out"])):
        console.print(line, soft_wrap=whole)
    more = f"; one of {scenes} scenes was checked, --scene selects another" if scenes > 1 else ""
    console.print(f"{_WORDS[verdict['verdict']]}: see {folder}{more}", soft_wrap=whole)


class ReprojectedView(NamedTuple):
    """One frame as another sees it."""

    reprojected: NDArray[np.uint8]  #: (h, w, 3) RGB; red in front of what was measured, blue behind it, grey: unknown
    difference: NDArray[np.uint8]  #: (h, w, 3)
    caption: str


def write_sheet(path: Path, evidence: Evidence, title: list[str], rows: int = 6) -> None:
    """Draw ``rows`` pairs: both frames, the first reprojected into the second, and the difference of their colours.

    Where a correction is advised the last two are drawn as the recording states them and as advised.
    """
    stack = evidence.stack  # with every pixel that has depth, those beside edges too
    depth = np.stack([shot.depth for k in stack.indices.tolist() if (shot := evidence.shots.kept(k)) is not None])
    inverse = invert_depth(depth)
    numbers = np.arange(inverse[0].size)
    stack = stack._replace(inverse=inverse, points=np.where(inverse.reshape(len(inverse), -1) > 0, numbers, -1))
    columns = [("as stated", _SAID, stack)]
    if evidence.hypothesis != _SAID or evidence.moved is not None:
        poses = (stack if evidence.moved is None else evidence.moved).world_from_camera
        columns.append(("as advised", evidence.hypothesis, stack._replace(world_from_camera=poses)))
    # Pairs that see much of the same but not from the same place: from every sixth of those by overlap.
    score = measure_agreement(reproject(evidence.stack, evidence.pairs, evidence.hypothesis))
    order = np.argsort(-score.agree / np.maximum(score.points, 1), kind="stable")
    best = order[: max(rows, int(0.8 * len(order)))]
    pairs: NDArray[np.int64] = evidence.pairs[best[np.unique(np.linspace(0, len(best) - 1, rows).astype(int))]]
    height = round(_WIDTH * stack.inverse.shape[1] / stack.inverse.shape[2])
    wide = (2 + 2 * len(columns)) * (_WIDTH + _MARGIN) + _MARGIN
    top = _MARGIN + _LINE * (len(title) + 1)
    sheet = Image.new("RGB", (wide, top + len(pairs) * (height + _LINE + _MARGIN)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, line in enumerate(title):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, _INK, font)
    heads = ["frame a, its depth edges in green", "frame b"]
    for name, _, _ in columns:
        heads += [f"a reprojected into b, {name}", "difference; red: impossible, blue: hidden"]
    for number, head in enumerate(heads):
        draw.text((_MARGIN + number * (_WIDTH + _MARGIN), top - _LINE), head, _INK, font)
    for row, (a, b) in enumerate(pairs.tolist()):
        shots = evidence.shots.kept(a), evidence.shots.kept(b)
        if shots[0] is None or shots[1] is None:
            continue
        pictures = [(with_edges(shots[0]), f"{shots[0].name}"), (shots[1].color, f"{shots[1].name}")]
        for _, hypothesis, as_posed in columns:
            picture = reproject_view(evidence, as_posed, a, b, hypothesis)
            pictures += [(picture.reprojected, picture.caption), (picture.difference, "")]
        y = top + row * (height + _LINE + _MARGIN)
        for number, (image, caption) in enumerate(pictures):
            x = _MARGIN + number * (_WIDTH + _MARGIN)
            sheet.paste(Image.fromarray(image).resize((_WIDTH, height), Image.Resampling.BILINEAR), (x, y))
            draw.text((x, y + height), caption, _INK, font)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        sheet.save(part, format="PNG")


def with_edges(shot: Shot) -> NDArray[np.uint8]:
    """Colour (h, w, 3) of a frame, of the size of its depth, with the depth's edges drawn on it as they are stated."""
    height, width = shot.depth.shape
    image = np.array(Image.fromarray(shot.color).resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = np.divmod(find_depth_edges(shot.depth), width)
    z, k = shot.depth[rows, columns].astype(np.float64), shot.depth_camera
    points = np.stack(((columns + 0.5 - k.cx) / k.fx * z, (rows + 0.5 - k.cy) / k.fy * z, z), axis=-1)
    m = shot.color_from_depth
    camera = np.array([shot.color_camera.resized(width, height)[2:]])
    u, v = project((points @ m[:3, :3].T + m[:3, 3])[None], camera)
    with np.errstate(invalid="ignore"):
        inside = (u[0] >= 0) & (v[0] >= 0) & (u[0] < width) & (v[0] < height)
    image[v[0][inside].astype(int), u[0][inside].astype(int)] = _GREEN
    return image


def reproject_view(evidence: Evidence, stack: Stack, a: int, b: int, hypothesis: Hypothesis) -> ReprojectedView:
    """What frame ``b`` should show by the colours of frame ``a`` (indices), at the pixels of b's depth image."""
    reprojected = reproject(stack, np.array([[b, a]]), hypothesis)
    shape = stack.inverse.shape[1:]
    from_a, own = (
        _colors(evidence, stack, points, row)
        for points, row in ((reprojected.target, reprojected.rows[1]), (reprojected.source, reprojected.rows[0]))
    )
    residual = reprojected.residual[0]
    with np.errstate(invalid="ignore"):
        agree = np.abs(residual) <= 2 * TOLERANCE
        tints = ((residual < -2 * TOLERANCE, _RED), (residual > 2 * TOLERANCE, _BLUE))
    gap = np.abs(from_a - own).mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    pictures = []
    for values in (from_a, gap):
        image = np.full((*values.shape[:1], 3), 128.0)
        image[agree] = values[agree]
        for where, tint in tints:
            image[where] = 0.4 * np.nan_to_num(values[where], nan=128) + 0.6 * np.array(tint)
        pictures.append(np.nan_to_num(image, nan=128).clip(0, 255).astype(np.uint8).reshape(*shape, 3))
    score = measure_agreement(reprojected)
    share = score.agree[0] / max(1, score.landed[0])
    caption = f"{share:.0%} agree of {score.landed[0] / max(1, score.points[0]):.0%} in view"
    color = correlate_colours(evidence.stack, reprojected)[0]
    caption += f", colours {color:.2f}" if np.isfinite(color) else ""
    return ReprojectedView(pictures[0], pictures[1], caption)


def _colors(
    evidence: Evidence, stack: Stack, points: NDArray[np.float64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """RGB (M, 3) of depth-camera points (1, M, 3) in the colour image of a row (1,); nan outside."""
    shot = evidence.shots.kept(int(stack.indices[rows[0]])) if rows[0] >= 0 else None
    if shot is None:
        return np.full((points.shape[1], 3), np.nan)
    m = stack.color_from_depth[rows]
    u, v = project(points @ m[:, :3, :3].transpose(0, 2, 1) + m[:, None, :3, 3], stack.color_k[rows])
    channels = [shot.color[None, ..., c].astype(np.float32) for c in range(3)]
    zero = np.zeros(1, np.int64)
    return np.stack([sample(image, zero, u, v, holes=False)[0] for image in channels], axis=-1)

"""The contact sheet of `check`: what one frame shows, carried into another."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pri3d.checking.alignment import depth_edges
from pri3d.checking.evidence import TOLERANCE, Carried, Guess, carry, geometric, photometric, project, sample
from pri3d.checking.judge import Evidence
from pri3d.checking.shots import Shot, Stack
from pri3d.files.atomic import replacing

_WIDTH = 240  # pixels of a picture
_MARGIN, _LINE = 6, 18  # pixels
_INK, _PAPER, _RED, _BLUE, _GREEN = (30,) * 3, (250,) * 3, (210, 30, 30), (70, 80, 150), (40, 255, 90)
_SAID = Guess()  # the recording as it is stated


class Picture(NamedTuple):
    """One frame as another sees it."""

    carried: NDArray[np.uint8]  #: (h, w, 3) RGB; red in front of what was measured, blue behind it, grey: unknown
    difference: NDArray[np.uint8]  #: (h, w, 3)
    caption: str


def write_sheet(path: Path, evidence: Evidence, title: list[str], rows: int = 6) -> None:
    """Draw ``rows`` pairs: both frames, the first carried into the second, and the difference of their colours.

    Where a correction is advised the last two are drawn as the recording states them and as advised.
    """
    stack = _whole(evidence)
    columns = [("as stated", _SAID)] + [("as advised", evidence.guess)] * (evidence.guess != _SAID)
    pairs = _telling(evidence, rows)
    height = round(_WIDTH * stack.inverse.shape[1] / stack.inverse.shape[2])
    wide = (2 + 2 * len(columns)) * (_WIDTH + _MARGIN) + _MARGIN
    top = _MARGIN + _LINE * (len(title) + 1)
    sheet = Image.new("RGB", (wide, top + len(pairs) * (height + _LINE + _MARGIN)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, line in enumerate(title):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, _INK, font)
    heads = ["frame a, its depth edges in green", "frame b"]
    for name, _ in columns:
        heads += [f"a carried into b, {name}", "difference; red: impossible, blue: hidden"]
    for number, head in enumerate(heads):
        draw.text((_MARGIN + number * (_WIDTH + _MARGIN), top - _LINE), head, _INK, font)
    for row, (a, b) in enumerate(pairs.tolist()):
        shots = evidence.shots.kept(a), evidence.shots.kept(b)
        if shots[0] is None or shots[1] is None:
            continue
        pictures = [(with_edges(shots[0]), f"{shots[0].name}"), (shots[1].color, f"{shots[1].name}")]
        for _, guess in columns:
            picture = carried_picture(evidence, stack, a, b, guess)
            pictures += [(picture.carried, picture.caption), (picture.difference, "")]
        y = top + row * (height + _LINE + _MARGIN)
        for number, (image, caption) in enumerate(pictures):
            x = _MARGIN + number * (_WIDTH + _MARGIN)
            sheet.paste(Image.fromarray(image).resize((_WIDTH, height), Image.Resampling.BILINEAR), (x, y))
            draw.text((x, y + height), caption, _INK, font)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        sheet.save(part, format="PNG")


def _whole(evidence: Evidence) -> Stack:
    """The stack with every pixel that has depth, those beside edges too."""
    stack = evidence.stack
    depth = np.stack([shot.depth for k in stack.indices.tolist() if (shot := evidence.shots.kept(k)) is not None])
    inverse = np.where(depth > 0, 1 / np.where(depth > 0, depth, 1), 0).astype(np.float32)
    numbers = np.arange(inverse[0].size)
    return stack._replace(inverse=inverse, points=np.where(inverse.reshape(len(inverse), -1) > 0, numbers, -1))


def _telling(evidence: Evidence, rows: int) -> NDArray[np.int64]:
    """Pairs (R, 2) that see much of the same but not from the same place: from every sixth of those by overlap."""
    score = geometric(carry(evidence.stack, evidence.pairs, evidence.guess))
    order = np.argsort(-score.agree / np.maximum(score.points, 1), kind="stable")
    best = order[: max(rows, int(0.8 * len(order)))]
    chosen: NDArray[np.int64] = evidence.pairs[best[np.unique(np.linspace(0, len(best) - 1, rows).astype(int))]]
    return chosen


def with_edges(shot: Shot) -> NDArray[np.uint8]:
    """Colour (h, w, 3) of a frame, of the size of its depth, with the depth's edges drawn on it as they are stated."""
    height, width = shot.depth.shape
    image = np.array(Image.fromarray(shot.color).resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = np.divmod(depth_edges(shot.depth), width)
    z, k = shot.depth[rows, columns].astype(np.float64), shot.depth_camera
    points = np.stack(((columns + 0.5 - k.cx) / k.fx * z, (rows + 0.5 - k.cy) / k.fy * z, z), axis=-1)
    m = shot.color_from_depth
    camera = np.array([shot.color_camera.resized(width, height)[2:]])
    u, v = project((points @ m[:3, :3].T + m[:3, 3])[None], camera)
    with np.errstate(invalid="ignore"):
        inside = (u[0] >= 0) & (v[0] >= 0) & (u[0] < width) & (v[0] < height)
    image[v[0][inside].astype(int), u[0][inside].astype(int)] = _GREEN
    return image


def carried_picture(evidence: Evidence, stack: Stack, a: int, b: int, guess: Guess) -> Picture:
    """What frame ``b`` should show by the colours of frame ``a`` (indices), at the pixels of b's depth image."""
    carried = carry(stack, np.array([[b, a]]), guess)
    shape = stack.inverse.shape[1:]
    from_a, own = (
        _colors(evidence, stack, points, row)
        for points, row in ((carried.target, carried.rows[1]), (carried.source, carried.rows[0]))
    )
    residual = carried.residual[0]
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
    return Picture(pictures[0], pictures[1], _caption(evidence, carried))


def _caption(evidence: Evidence, carried: Carried) -> str:
    score = geometric(carried)
    share = score.agree[0] / max(1, score.landed[0])
    color = photometric(evidence.stack, carried)[0]
    shown = f", colours {color:.2f}" if np.isfinite(color) else ""
    return f"{share:.0%} agree of {score.landed[0] / max(1, score.points[0]):.0%} in view{shown}"


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

"""Interactive parts of a page: a rotatable scene, and a pair of frames with similarity maps."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from pri3d.errors import DataError
from pri3d.files.archive import encode
from pri3d.geometry.resize import resize_nearest
from pri3d.reporting.cutaway import up_direction
from pri3d.reporting.figures import MatchedPair, spread
from pri3d.reporting.html import picture_address

#: name, world_from_camera (4, 4), intrinsics (4,) in pixels of the size, size (width, height)
Camera = tuple[str, NDArray[np.float64], NDArray[np.float64], tuple[int, int]]

_HEADROOM = 0.45  #: metres above the highest camera where the drawing starts cut open: below most ceilings
_MATCH = (255, 176, 0)
_STEPS = 32767  #: of a 16-bit coordinate on each side of the middle

#: how a scene looks; the same text in every widget
SCENE_STYLE = """
.pri3d-scene canvas{display:none;width:100%;height:min(62vh,34rem);background:#10131a;border-radius:10px;
cursor:grab;touch-action:none}
.pri3d-scene canvas:active{cursor:grabbing}
.pri3d-scene canvas:focus-visible{outline:3px solid #56b4e9}
.pri3d-scene.pri3d-on canvas{display:block}
.pri3d-scene.pri3d-on .pri3d-static{display:none}
.pri3d-help{display:block;opacity:.8}
.pri3d-bar{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;align-items:center;margin:.4rem 0;font-size:.9rem}
.pri3d-bar select{max-width:16rem}
.pri3d-scene:not(.pri3d-on) .pri3d-help{display:none}
"""
MOST_CELLS = 4800  #: of a map in the page: 80 x 60
MOST_CHANNELS = 32  #: a place in the page
_MOST_MATCHES = 1500
_MOST_WIDTH = 320  #: pixels of a frame in the page
_BLEND = 0.72  #: share of the colours over the grey frame

#: how the widget looks
SIMILARITY_STYLE = """
.pri3d-similarity .pri3d-grid{display:grid;grid-template-columns:auto 1fr 1fr;gap:.35rem;align-items:center}
.pri3d-similarity .pri3d-grid span{writing-mode:vertical-rl;rotate:180deg;text-align:center;font-weight:600;
font-size:.9rem;max-height:14rem;overflow:hidden}
.pri3d-similarity img,.pri3d-similarity canvas{display:block;width:100%;height:auto;padding:0;border:0;
border-radius:6px;image-rendering:auto}
.pri3d-similarity canvas{cursor:crosshair}
.pri3d-similarity canvas:focus-visible{outline:3px solid #56b4e9}
.pri3d-similarity.pri3d-on img,.pri3d-similarity:not(.pri3d-on) .pri3d-help{display:none}
"""


class _Frame(NamedTuple):
    """What the script's coordinates are: z up, around the middle of the scene, in whole steps."""

    rotation: NDArray[np.float64]  #: (3, 3) scene_from_world
    middle: NDArray[np.float64]  #: (3,) world, metres
    step: float  #: metres

    def place(self, points: ArrayLike) -> NDArray[np.float64]:
        """World (..., 3) -> scene, metres."""
        placed: NDArray[np.float64] = (np.asarray(points, np.float64) - self.middle) @ self.rotation.T
        return placed

    def encode(self, points: ArrayLike) -> str:
        """World (..., 3) -> base64 of little-endian int16 steps; what lies outside is put on the border."""
        steps = np.rint(self.place(points) / self.step).clip(-_STEPS, _STEPS)
        return base64.b64encode(steps.astype("<i2").tobytes()).decode("ascii")


def scene_widget(
    points: NDArray[np.floating[Any]],
    colors: NDArray[np.uint8],
    cameras: Sequence[Camera] = (),
    matches: NDArray[np.floating[Any]] | None = None,
    *,
    title: str,
    alt: str,
    match_colors: NDArray[np.uint8] | None = None,
    path: NDArray[np.floating[Any]] | None = None,
    most: int = 60_000,
) -> str:
    """Return a ``<figure>`` with its script: orbit, zoom and pan by mouse, touch and keyboard, no other file.

    Args:
        points: (N, 3) world, metres; of more than ``most`` points, means over cells of even size are drawn.
        colors: (N, 3) RGB of the points.
        cameras: name, world_from_camera (4, 4), intrinsics (4,) and size (width, height) of each.
        matches: (M, 2, 3) segments, world, metres.
        title: caption, plain text.
        alt: what is to be seen, for who cannot see it, and for a page whose scripts do not run.
        match_colors: (M, 3) RGB of the segments; amber where not given.
        path: (K, 3) camera trajectory, world, metres.
        most: points to draw at most.

    Raises DataError where there is neither a point nor a camera, where a value is not finite, or where shapes differ.
    """
    segments = np.zeros((0, 2, 3)) if matches is None else np.asarray(matches, np.float64)
    way = np.zeros((0, 3)) if path is None else np.asarray(path, np.float64)
    paint = np.tile(np.array(_MATCH, np.uint8), (len(segments), 1)) if match_colors is None else match_colors
    _check(title, points, colors, cameras, segments, way, paint)
    points, colors = thin(np.asarray(points, np.float64), colors, most)
    poses = np.array([pose for _, pose, _, _ in cameras]).reshape(-1, 4, 4)
    frame = _frame(points, poses)
    height = frame.place(points)[:, 2] if len(points) else np.zeros(1)
    centres = frame.place(poses[:, :3, 3])
    ahead = (poses[:, :3, 2] @ frame.rotation.T).sum(axis=0)
    size = frame.step * _STEPS
    spacing = 0.02 * size  # metres from a point to its nearest neighbour, the median over some of them
    if len(points) > 1:
        some = points[:: -(-len(points) // 100)]
        gaps = [np.partition(((points - point) ** 2).sum(axis=1), 1)[1] for point in some]
        spacing = max(float(np.sqrt(np.median(gaps))), 1e-3 * size)
    open_at = centres[:, 2].max() + _HEADROOM if len(poses) else height.max()
    data = {
        "points": frame.encode(points),
        "colors": _base64(np.asarray(colors, np.uint8)),
        "matches": frame.encode(segments),
        "matchColors": _base64(np.asarray(paint, np.uint8)),
        "cameras": [_camera(frame, camera, size) for camera in cameras],
        "path": _rounded(frame.place(way)),
        "step": frame.step,
        "spacing": spacing,
        "radius": _radius(frame.place(points) if len(points) else centres),
        "yaw": float(np.arctan2(ahead[1], ahead[0])) if len(poses) else 0.66,
        "low": float(height.min()),
        "high": float(height.max()),
        "cut": float(min(open_at, height.max())),
    }
    said = f"{escape(alt)} ({len(points):,} points, {len(cameras):,} cameras. To rotate it, open this file in a browser"
    inside = (
        f'<canvas tabindex="0" role="img" aria-label="{escape(alt)}"></canvas><div class="pri3d-bar"></div>'
        f'<p class="pri3d-static">{said} that runs its script.)</p>'
    )
    usage = (
        "Drag or arrow keys rotate, with Shift they move; + and −, a pinch, or the wheel after a click zoom; a click "
        "on a camera shows its view; 0 resets."
    )
    return _widget_html("scene", SCENE_STYLE, "scene3d", data, inside, title, usage)


def script(name: str) -> str:
    """Return the script of every widget of a kind, ``scene3d`` or ``similarity``: a page may allow it by its hash."""
    return files("pri3d.reporting").joinpath(f"{name}.js").read_text(encoding="utf-8")


def thin(
    points: NDArray[np.float64], colors: NDArray[np.uint8], most: int
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """At most ``most`` points (K, 3) and their colours: means over cubes as small as that allows, within 10 %."""
    if len(points) <= most:
        return points, colors
    low = points.min(axis=0)
    edge = max(float(np.ptp(points, axis=0).max()) / most ** (1 / 2), 1e-9)  # a surface fills about edge^-2 cubes
    cell = _cells(points, low, edge)
    while cell.max() + 1 > most:
        edge *= max(np.sqrt((cell.max() + 1) / most), 1.05)
        cell = _cells(points, low, edge)
    count = np.bincount(cell)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.stack([np.bincount(cell, values[:, k]) / count for k in range(3)], axis=1)

    return mean(points), np.rint(mean(colors)).astype(np.uint8)


def _cells(points: NDArray[np.float64], low: NDArray[np.float64], edge: float) -> NDArray[np.int64]:
    """Number of the occupied cube that each point (N, 3) falls into, 0..K-1."""
    x, y, z = ((points - low) / edge).astype(np.int64).T
    _, number = np.unique((x << 42) | (y << 21) | z, return_inverse=True)
    return number.astype(np.int64)


def _frame(points: NDArray[np.float64], poses: NDArray[np.float64]) -> _Frame:
    """Up is the cameras' up, z without cameras; the middle is of all but the outermost hundredths of the points."""
    up = up_direction(poses) if len(poses) else np.array((0.0, 0.0, 1.0))
    up = up / np.linalg.norm(up) if np.linalg.norm(up) > 1e-6 else np.array((0.0, 0.0, 1.0))
    aside = np.cross(up, np.eye(3)[int(np.abs(up).argmin())])
    aside = aside / np.linalg.norm(aside)
    everything = np.concatenate((points, poses[:, :3, 3]))
    low, high = np.percentile(points if len(points) else everything, (1, 99), axis=0)
    middle = (low + high) / 2
    reach = max(float(np.linalg.norm(everything - middle, axis=1).max()), 0.1)
    return _Frame(np.stack((np.cross(aside, up), aside, up)), middle, reach / _STEPS)


def _camera(frame: _Frame, camera: Camera, size: float) -> dict[str, Any]:
    """Name, centre, corners of the image in a small pyramid, direction and focal length in image heights."""
    name, pose, (fx, fy, cx, cy), (width, height) = camera
    far = min(max(0.04 * size, 0.05), 0.3)  # metres
    edges = ((0, 0), (width, 0), (width, height), (0, height))
    corners = np.array([((u - cx) / fx, (v - cy) / fy, 1.0) for u, v in edges]) * far
    return {
        "name": name,
        "centre": _rounded(frame.place(pose[:3, 3])),
        "corners": _rounded(frame.place(corners @ pose[:3, :3].T + pose[:3, 3])),
        "ahead": _rounded(frame.rotation @ pose[:3, 2]),
        "focal": float(fy / height),
    }


def _radius(placed: NDArray[np.float64]) -> float:
    """Metres around the middle that hold nine tenths of the points."""
    return max(float(np.percentile(np.linalg.norm(placed, axis=1), 90)), 0.1)


def _check(
    title: str,
    points: NDArray[Any],
    colors: NDArray[Any],
    cameras: Sequence[Camera],
    segments: NDArray[Any],
    way: NDArray[Any],
    paint: NDArray[Any],
) -> None:
    shapes = points.shape == colors.shape == (len(points), 3) and segments.shape == (len(segments), 2, 3)
    if not (shapes and paint.shape == (len(segments), 3) and way.shape == (len(way), 3)):
        stated = ", ".join(str(values.shape) for values in (points, colors, segments, paint, way))
        raise DataError(f"scene {title!r}: points, colours, matches, their colours and path have shapes {stated}.")
    if not len(points) and not len(cameras):
        raise DataError(f"scene {title!r}: no point and no camera to draw. Was it prepared without a surface?")
    numbers = [points, segments, way, *(values for _, pose, focal, _ in cameras for values in (pose, focal))]
    if not all(np.isfinite(values).all() for values in numbers):
        raise DataError(f"scene {title!r}: a point, camera or match is not finite. Prepare its recording again.")


def _rounded(values: NDArray[np.float64]) -> Any:
    return np.round(values, 4).tolist()


def _widget_html(
    kind: str, style: str, program: str, data: Mapping[str, Any], inside: str, caption: str, usage: str
) -> str:
    """A figure of a kind that holds the ``data`` of its script, with HTML ``inside``; the caption is plain text."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return (
        f'<style>{style}</style><figure class="pri3d-{kind}" data-{kind}="{escape(text)}">{inside}'
        f'<figcaption>{escape(caption)} <span class="pri3d-help">{usage}</span></figcaption>'
        f"</figure><script>{script(program)}</script>"
    )


class Packed(NamedTuple):
    """Maps of both frames, small."""

    values: NDArray[np.int8]  #: (2, h, w, D); a place's direction is what counts
    kept: float  #: fraction of the features' variation, around zero, that the D numbers keep

    def cosines(self, frame: int, row: int, column: int) -> NDArray[np.float64]:
        """Cosine similarity (2, h, w) of one place with all places of both frames; what the script computes."""
        values = self.values.astype(np.float64)
        unit = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1)
        similarity: NDArray[np.float64] = unit @ unit[frame, row, column]
        return similarity

    def errors(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance (N,) from the most similar place of the second frame to the true one.

        points (N, 4): x, y in the first and in the second frame, as fractions of width and height; distances are
        fractions of the width.
        """
        _, rows, columns, _ = self.values.shape
        unit = self.values.reshape(2, rows * columns, -1).astype(np.float32)
        unit /= np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1)
        cells = (points * np.tile((columns, rows), 2)).astype(int).clip(0, np.tile((columns, rows), 2) - 1)
        best = (unit[0, cells[:, 1] * columns + cells[:, 0]] @ unit[1].T).argmax(axis=1)
        gap = np.stack((best % columns + 0.5, best // columns + 0.5), axis=1) - points[:, 2:] * (columns, rows)
        return np.asarray(np.hypot(gap[:, 0], gap[:, 1]) / columns, np.float64)


def pack(features: Tensor, grid: tuple[int, int]) -> Packed:
    """Maps (2, C, h, w) of one network -> means over ``grid`` (rows, columns), 32 numbers a place, 8 bits each.

    The numbers are coordinates in the directions in which both frames' unit features vary most around zero, so cosines
    stay those of the features where these directions keep all of them.
    """
    small = F.adaptive_avg_pool2d(F.normalize(features.detach().double(), dim=1), grid)
    rows = F.normalize(small.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
    kept = 1.0
    if rows.shape[1] > MOST_CHANNELS:
        energy, vectors = torch.linalg.eigh(rows.T @ rows)
        rows = rows @ vectors[:, -MOST_CHANNELS:]
        kept = float(energy[-MOST_CHANNELS:].sum() / energy.sum())
    steps = 127 * rows / rows.abs().amax().clamp_min(1e-12)
    return Packed(steps.round().to(torch.int8).numpy().reshape(2, *grid, -1), kept)


def similarity_widget(pair: MatchedPair, networks: Mapping[str, Tensor], caption: str) -> str:
    """Return a ``<figure>`` with its script: a click in either frame colours both by similarity, network by network.

    Args:
        pair: the two frames, and where points of the first are in the second.
        networks: what to call it -> maps (2, C, h, w) of both frames.
        caption: plain text.
    """
    height, width = next(iter(networks.values())).shape[-2:]
    shrink = max(1.0, (height * width / MOST_CELLS) ** 0.5)
    grid = (max(1, int(height / shrink)), max(1, int(width / shrink)))
    packed = {name: pack(features, grid) for name, features in networks.items()}
    # Frames (2, H, W, 3) of at most 320 pixels width, and the matches (N, 4) in their pixels.
    every = -(-pair.colors.shape[2] // _MOST_WIDTH)
    colors = torch.from_numpy(pair.colors).permute(0, 3, 1, 2).double()
    small = F.avg_pool2d(colors, every, ceil_mode=True) if every > 1 else colors
    points = pair.points * np.array((small.shape[3] / pair.colors.shape[2], small.shape[2] / pair.colors.shape[1]) * 2)
    frames: NDArray[np.uint8] = small.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    size = frames.shape[2], frames.shape[1]
    column, row = grid[1] // 2, grid[0] // 2
    if len(points):
        errors = {name: one.errors(points / np.tile(size, 2)) * size[0] for name, one in packed.items()}
        first, *others = errors.values()
        gains = first - others[-1] if others else first
        typical = np.argsort(gains, kind="stable")[len(gains) // 2]
        column, row = (points[typical, :2] / size * grid[::-1]).astype(int)
        medians = ", ".join(f"{name} {np.median(of):.1f}" for name, of in errors.items())
        opened = "improvement, first network to last" if others else "distance"
        caption += (
            f" Of {len(points):,} points that both frames see, the median distance from the most similar place to the "
            f"true one is, in pixels of frames {size[0]} wide: {medians}. It opens at a point of median {opened}."
        )
    shown = [*frames]
    for one in packed.values():
        # Each frame in grey under the colours of its map (h, w), as the script draws it.
        for frame, similarity in zip(frames, one.cosines(0, row, column), strict=True):
            large = resize_nearest(np.rint(255 * similarity.clip(0, 1)).astype(np.uint8), size)
            grey = frame @ np.array((0.299, 0.587, 0.114))
            shown.append(np.rint(_BLEND * _palette()[large] + (1 - _BLEND) * grey[..., None]).astype(np.uint8))
    data = {
        "grid": grid,
        "size": size,
        "start": int(row * grid[1] + column),
        "blend": _BLEND,
        "palette": _base64(_palette()),
        "matches": np.round(points[spread(points[:, :2], _MOST_MATCHES)], 1).tolist(),
        "networks": [{"name": name, "features": _base64(one.values)} for name, one in packed.items()],
    }
    kept = min(one.kept for one in packed.values())
    if kept < 0.9995:
        caption += f" The page holds {kept:.1%} of the features' variance."
    cells = []
    for k, image in enumerate(shown):
        name, which = ["image", *packed][k // 2], ("first", "second")[k % 2]
        alt = f"{which} frame" if k < 2 else f"similarity in the {which} frame, {name}"
        cells += [f"<span>{escape(name)}</span>"] if k % 2 == 0 else []
        cells.append(f'<img alt="{escape(alt)}" src="{picture_address(encode(image, "JPEG"))}">')
    usage = "Click into an image, or select a frame with Tab and move with the arrow keys; 0 resets."
    inside = f'<div class="pri3d-grid">{"".join(cells)}</div>'
    return _widget_html("similarity", SIMILARITY_STYLE, "similarity", data, inside, caption, usage)


def _palette() -> NDArray[np.uint8]:
    """RGB (256, 3) of similarity 0..1."""
    colors: NDArray[np.uint8] = np.rint(255 * mpl.colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)
    return colors


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")

"""A pair of frames to click into: how similar the features of every other place are, network by network.

The page holds the features themselves, small, and a script that compares them; without scripts it shows the maps of one
point.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pri3d.files.archive import encode
from pri3d.geometry.images import resize_nearest
from pri3d.reporting.figures import MatchedPair, spread
from pri3d.reporting.html import picture_address

MOST_CELLS = 4800  #: of a map in the page: 80 x 60
MOST_CHANNELS = 32  #: a place in the page
_MOST_MATCHES = 1500
_MOST_WIDTH = 320  #: pixels of a frame in the page
_BLEND = 0.72  #: share of the colours over the grey frame

#: how the widget looks
STYLE = """
.pri3d-similarity .pri3d-grid{display:grid;grid-template-columns:auto 1fr 1fr;gap:.35rem;align-items:center}
.pri3d-similarity .pri3d-grid span{writing-mode:vertical-rl;rotate:180deg;text-align:center;font-weight:600;
font-size:.9rem;max-height:14rem;overflow:hidden}
.pri3d-similarity img,.pri3d-similarity canvas{display:block;width:100%;height:auto;padding:0;border:0;
border-radius:6px;image-rendering:auto}
.pri3d-similarity canvas{cursor:crosshair}
.pri3d-similarity canvas:focus-visible{outline:3px solid #56b4e9}
.pri3d-similarity.pri3d-on img,.pri3d-similarity:not(.pri3d-on) .pri3d-help{display:none}
"""


class Packed(NamedTuple):
    """Maps of both frames, small."""

    values: NDArray[np.int8]  #: (2, h, w, D); a place's direction is what counts
    kept: float  #: share of the features' variation, around zero, that the D numbers keep

    def cosines(self, frame: int, row: int, column: int) -> NDArray[np.float64]:
        """Cosine similarity (2, h, w) of one place with all places of both frames; what the script computes."""
        values = self.values.astype(np.float64)
        unit = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1)
        similarity: NDArray[np.float64] = unit @ unit[frame, row, column]
        return similarity


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
    frames, points = _shrunk(pair)
    size = frames.shape[2], frames.shape[1]
    column, row = (points[spread(points[:, :2], 1), :2] / size * grid[::-1]).astype(int)[0] if len(points) else (
        grid[1] // 2, grid[0] // 2)  # fmt: skip
    shown = [*frames]
    for one in packed.values():
        shown += [_shaded(frame, part) for frame, part in zip(frames, one.cosines(0, row, column), strict=True)]
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
    small = f" The page holds {kept:.1%} of the features' variation." if kept < 0.9995 else ""
    return _html(data, shown, ["image", *packed], caption + small)


def script() -> str:
    """Return the script of every widget."""
    return files("pri3d.reporting").joinpath("similarity.js").read_text(encoding="utf-8")


def _shrunk(pair: MatchedPair) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Frames (2, H, W, 3) of at most 320 pixels width, and the matches (N, 4) in their pixels."""
    every = -(-pair.colors.shape[2] // _MOST_WIDTH)
    frames = torch.from_numpy(pair.colors).permute(0, 3, 1, 2).double()
    small = F.avg_pool2d(frames, every, ceil_mode=True) if every > 1 else frames
    scale = np.array((small.shape[3] / pair.colors.shape[2], small.shape[2] / pair.colors.shape[1]) * 2)
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), pair.points * scale


def _shaded(frame: NDArray[np.uint8], similarity: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A frame (H, W, 3) in grey under the colours of a map (h, w), as the script draws it."""
    large = resize_nearest(np.rint(255 * similarity.clip(0, 1)).astype(np.uint8), (frame.shape[1], frame.shape[0]))
    grey = frame @ np.array((0.299, 0.587, 0.114))
    shaded: NDArray[np.uint8] = np.rint(_BLEND * _palette()[large] + (1 - _BLEND) * grey[..., None]).astype(np.uint8)
    return shaded


def _palette() -> NDArray[np.uint8]:
    """RGB (256, 3) of similarity 0..1."""
    colors: NDArray[np.uint8] = np.rint(255 * mpl.colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)
    return colors


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _html(data: Mapping[str, Any], shown: list[NDArray[np.uint8]], names: list[str], caption: str) -> str:
    cells = []
    for k, image in enumerate(shown):
        name, frame = names[k // 2], ("first", "second")[k % 2]
        alt = f"{frame} frame" if k < 2 else f"similarity in the {frame} frame, {name}"
        cells += [f"<span>{escape(name)}</span>"] if k % 2 == 0 else []
        cells.append(f'<img alt="{escape(alt)}" src="{picture_address(encode(image, "JPEG"))}">')
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return (
        f'<style>{STYLE}</style><figure class="pri3d-similarity" data-similarity="{escape(text)}">'
        f'<div class="pri3d-grid">{"".join(cells)}</div>'
        f'<figcaption>{escape(caption)} <span class="pri3d-help">Click into a picture, or choose a frame with Tab and '
        "move with the arrow keys; 0 goes back.</span></figcaption>"
        f"</figure><script>{script()}</script>"
    )

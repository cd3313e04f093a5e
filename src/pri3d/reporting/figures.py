"""Figures of data and networks as PNG bytes. Pure functions: arrays in, bytes out, without captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pri3d.drawing import palette
from pri3d.reporting.cutaway import Chunk, draw_chunk
from pri3d.reporting.style import ACCENT, DPI, MUTED, image_grid, png, series_label, show, style

SHOWN_MATCHES = 32
_SHEET_WIDTH, _LEFT_COLUMN, _MARGIN, _BETWEEN, _TITLE_ROW = 13.6, 6.0, 0.05, 0.07, 0.42  # inches
_LEGEND_ROW = 0.55


class MatchedPair(NamedTuple):
    """Two frames and all their matches."""

    colors: NDArray[np.uint8]  #: (2, H, W, 3) RGB
    points: NDArray[np.float64]  #: (N, 4) u, v in the first and u, v in the second frame, pixels of (H, W)
    overlap: float  #: fraction 0..1
    angle: float  #: radians between the viewing directions
    name: str  #: scene/frame+frame


class PredictedFrame(NamedTuple):
    """One image, and what is true and predicted of it, as a task draws them (:meth:`pri3d.tasks.Task.panels`)."""

    name: str
    panels: Mapping[str, NDArray[np.uint8]]  #: image, ground truth or a method -> RGB (h, w, 3)


def pair_figure(pair: MatchedPair) -> bytes:
    """Return a PNG of the two frames side by side with at most 32 of their matches as coloured lines."""
    with style():
        height, width = pair.colors.shape[1:3]
        views = f"{np.degrees(pair.angle):.0f}° between the views"
        title = f"overlap {pair.overlap:.0%}   ·   {len(pair.points):,} matches   ·   {views}"
        figure, axes = image_grid([""], [title], (2 * width + _gap(width)) / height)
        draw_pair(axes[0][0], pair)
        return png(figure)


def draw_pair(axes: Axes, pair: MatchedPair, shown: int = SHOWN_MATCHES) -> None:
    """Draw both frames in one axes, whose data units are pixels of the first frame, and ``shown`` spread matches.

    The second frame starts at u = W + W / 40.
    """
    height, width = pair.colors.shape[1:3]
    shift = width + _gap(width)
    for k, color in enumerate(pair.colors):
        left = k * shift
        axes.imshow(color, interpolation="bicubic", extent=(left, left + width, height, 0), interpolation_stage="rgba")
    axes.set_xlim(0, shift + width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    points = pair.points[spread(pair.points[:, :2], shown)]
    ends: Any = np.stack((points[:, :2], points[:, 2:] + (shift, 0)), axis=1)
    # Neighbouring lines get unlike colours: the hue follows the order of the left ends from top to bottom.
    rank = np.argsort(np.argsort(points[:, 1])) / max(len(points) - 1, 1)
    colors = mpl.colormaps["hsv"](rank * 0.93)
    axes.add_collection(LineCollection(ends, colors="black", linewidths=2.0, alpha=0.35))
    axes.add_collection(LineCollection(ends, colors=colors, linewidths=1.1))
    dots = ends.reshape(-1, 2)
    axes.scatter(
        dots[:, 0], dots[:, 1], s=26, c=np.repeat(colors, 2, axis=0), edgecolors="white", linewidths=0.9, zorder=3
    )


def spread(points: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Rows of at most ``count`` of the points (N, 2), far from each other: farthest-point sampling from the middle."""
    if len(points) == 0:
        return np.zeros(0, np.int64)
    gap = np.full(len(points), np.inf)
    rows = [int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmin())]
    while len(rows) < min(count, len(points)):
        gap = np.minimum(gap, np.linalg.norm(points - points[rows[-1]], axis=1))
        rows.append(int(gap.argmax()))
    return np.array(rows, np.int64)


def chunk_figure(chunk: Chunk) -> bytes:
    """Return a PNG of a frame beside the part of the scene's surface that its frustum's box holds."""
    with style():
        wide, high, left = 10.0, 4.7, 4.1
        tall = left * chunk.color.shape[0] / chunk.color.shape[1]
        figure = Figure(figsize=(wide, high))
        image = figure.add_axes((0.02 / wide, 1 - (0.3 + tall) / high, left / wide, tall / high))
        show(image, chunk.color, smooth=True)
        image.set_title(chunk.name, size=10, pad=5)
        figure.text((left + 0.35) / wide, 1 - 0.23 / high, "the surface in its view", weight="bold", size=10)
        figure.legend(
            handles=[
                Patch(facecolor=mpl.colormaps["viridis"](0.55), label="the chunk, by height"),
                Patch(facecolor="0.93", edgecolor="0.8", label="rest of the scene"),
                Line2D([], [], color=ACCENT, linewidth=1.2, label="camera and its view"),
                Line2D([], [], color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), label="box that cuts it out"),
            ],
            loc="upper left",
            bbox_to_anchor=(0, 1 - (0.45 + tall) / high),
            ncols=2,
            borderaxespad=0,
        )
        draw_chunk(figure.add_axes(((left + 0.15) / wide, 0.005, 1 - (left + 0.17) / wide, 1 - 0.2 / high)), chunk)
        return png(figure)


def pca_colors(features: Tensor) -> NDArray[np.float64]:
    """Feature maps (K, C, h, w) of one network -> RGB (K, h, w, 3) in 0..1.

    The first three principal components of the L2-normalised features, one basis and one scale (2nd to 98th percentile
    a component) for all K maps: within one call equal colours mean equal features.
    """
    rows = F.normalize(features.detach().double(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    rows = rows - rows.mean(dim=0)
    _, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    basis = vectors.flip(-1)[:, :3]
    # An eigenvector's sign is arbitrary: its largest entry is made positive.
    basis = basis * basis.gather(0, basis.abs().argmax(dim=0, keepdim=True)).sign()
    scores = F.pad(rows @ basis, (0, 3 - basis.shape[1])).numpy()
    low, high = np.percentile(scores, (2, 98), axis=0)
    wide = high - low > 1e-6
    scaled = np.where(wide, (scores - low) / np.where(wide, high - low, 1.0), 0.5)
    count, _, height, width = features.shape
    colors: NDArray[np.float64] = np.clip(scaled, 0, 1).reshape(count, height, width, 3)
    return colors


def features_figure(pairs: Sequence[MatchedPair], networks: Mapping[str, Tensor]) -> bytes:
    """Return a PNG of P pairs' frames and, a row per network, their maps (2 * P, C, h, w) as :func:`pca_colors`.

    The two frames of a pair share basis and scale.
    """
    colors = [color for pair in pairs for color in pair.colors]
    names = [f"{pair.name.split('/')[0]}  {frame}" for pair in pairs for frame in pair.name.split("/")[1].split("+")]
    with style():
        aspect = colors[0].shape[1] / colors[0].shape[0]
        figure, axes = image_grid(["image", *networks], names, aspect)
        for cell, color in zip(axes[0], colors, strict=True):
            show(cell, color, smooth=True)
        for row, maps in zip(axes[1:], networks.values(), strict=True):
            for cell, color in zip(row, np.concatenate([pca_colors(two) for two in torch.split(maps, 2)]), strict=True):
                show(cell, color, smooth=False)
        return png(figure)


def predictions_figure(frames: Sequence[PredictedFrame], class_names: Sequence[str]) -> bytes:
    """Return a PNG with a row of pictures a frame; below, the colours of ``class_names``, where there are any."""
    per_row = 8
    lines = -(-(len(class_names) + 1) // per_row)
    first = next(iter(frames[0].panels.values()))
    with style():
        columns = [series_label(column) for column in frames[0].panels]
        below = 0.22 * lines + 0.14 if class_names else 0.0
        figure, axes = image_grid([""] * len(frames), columns, first.shape[1] / first.shape[0], below=below)
        for row, frame in zip(axes, frames, strict=True):
            for cell, (column, image) in zip(row, frame.panels.items(), strict=True):
                show(cell, image, smooth=column == "image" or not class_names)
        if class_names:
            figure.legend(
                handles=class_patches(class_names),
                loc="lower center",
                ncols=min(per_row, len(class_names) + 1),
                handlelength=1.1,
                handleheight=1.1,
                columnspacing=1.4,
                borderaxespad=0.2,
            )
        return png(figure)


def class_patches(class_names: Sequence[str]) -> list[Patch]:
    """Legend entries of the classes, and of ignored pixels."""
    entries = [*zip(class_names, palette(class_names) / 255.0, strict=True), ("not labelled", np.zeros(3))]
    return [Patch(facecolor=tuple(color), label=name) for name, color in entries]


def _gap(width: int) -> float:
    """Pixels between the two frames."""
    return width / 40


class _Sheet(NamedTuple):
    """A figure measured in inches from its upper left corner."""

    figure: Figure
    height: float

    def axes(self, left: float, top: float, wide: float, high: float) -> Axes:
        """Axes of that place and size."""
        box = left / _SHEET_WIDTH, 1 - (top + high) / self.height, wide / _SHEET_WIDTH, high / self.height
        axes: Axes = self.figure.add_axes(box)
        return axes

    def title(self, left: float, top: float, text: str, remark: str) -> None:
        """Bold text and a remark behind it, above what begins at ``top``."""
        y = 1 - (top - 0.12) / self.height
        words = self.figure.text(left / _SHEET_WIDTH, y, text, weight="bold", size=12)
        right = words.get_window_extent().x1 / self.figure.dpi + 0.14
        self.figure.text(right / _SHEET_WIDTH, y, remark, color=MUTED, size=10)


def overview_picture(
    pair: MatchedPair,
    chunk: Chunk,
    maps: Mapping[str, Tensor],
    frames: Sequence[PredictedFrame],
    class_names: Sequence[str],
) -> bytes:
    """Return a PNG: at the left a pair and its feature maps before and after, at the right chunk and segmentations.

    ``maps``: network -> (2, C, h, w) of the pair's frames; ``frames``: a row of pictures each, two fit well.
    """
    height, width = pair.colors.shape[1:3]
    tall = _LEFT_COLUMN * height / (2 * width + _gap(width))
    with style():
        total = (_TITLE_ROW + tall) * (1 + len(maps)) + 0.1
        sheet = _Sheet(Figure(figsize=(_SHEET_WIDTH, total), dpi=DPI), total)
        sheet.title(_MARGIN, _TITLE_ROW, "1  Pair", f"points that both frames see, overlap {pair.overlap:.0%}")
        draw_pair(sheet.axes(_MARGIN, _TITLE_ROW, _LEFT_COLUMN, tall), pair, shown=20)
        cell = tall * width / height
        for k, (name, features) in enumerate(maps.items()):
            top = (k + 2) * _TITLE_ROW + (k + 1) * tall
            sheet.title(_MARGIN, top, f"{k + 3}  Features {name} pre-training", "equal colours: equal features")
            for x, color in zip((_MARGIN, _MARGIN + _LEFT_COLUMN - cell), pca_colors(features), strict=True):
                show(sheet.axes(x, top, cell, tall), color, smooth=False)
        left = _LEFT_COLUMN + 0.45
        # Rows of pictures from `top` on, above a legend in the lower right corner.
        columns = [series_label(column) for column in frames[0].panels]
        first = next(iter(frames[0].panels.values()))
        wide = (_SHEET_WIDTH - _MARGIN - left - _BETWEEN * (len(columns) - 1)) / len(columns)
        high = wide * first.shape[0] / first.shape[1]
        top = sheet.height - _LEGEND_ROW - len(frames) * (high + _BETWEEN)
        for r, frame in enumerate(frames):
            for c, image in enumerate(frame.panels.values()):
                axes = sheet.axes(left + c * (wide + _BETWEEN), top + r * (high + _BETWEEN), wide, high)
                show(axes, image, smooth=c == 0)
                if r == 0:
                    axes.set_title(columns[c], size=9.5, weight="normal", pad=4)
        sheet.figure.legend(
            handles=class_patches(class_names),
            loc="lower left",
            bbox_to_anchor=(left / _SHEET_WIDTH, 0),
            ncols=-(-(len(class_names) + 1) // 2),
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.6,
            borderpad=0,
            borderaxespad=0.5,
            fontsize=9,
        )
        sheet.title(
            left, top - _TITLE_ROW + 0.18, f"{len(maps) + 3}  Fine-tuning", "semantic segmentation, held-out frames"
        )
        sheet.title(left, _TITLE_ROW, "2  Surface", "the voxels in the view of the first frame")
        draw_chunk(sheet.axes(left, _TITLE_ROW, _SHEET_WIDTH - _MARGIN - left, top - 2 * _TITLE_ROW - 0.3), chunk)
        return png(sheet.figure)

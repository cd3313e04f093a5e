"""Pictures of data and networks as PNG bytes. Pure: arrays in, bytes out; captions are the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pri3d.drawing import color_labels, draw_detections, palette
from pri3d.reporting.cutaway import Chunk, chunk_handles, draw_chunk
from pri3d.reporting.style import image_grid, png, series_label, show, style
from pri3d.types import Detections

SHOWN_MATCHES = 32


class MatchedPair(NamedTuple):
    """Two frames and all their matches."""

    colors: NDArray[np.uint8]  #: (2, H, W, 3) RGB
    points: NDArray[np.float64]  #: (N, 4) u, v in the first and u, v in the second frame, pixels of (H, W)
    overlap: float  #: share 0..1
    angle: float  #: radians between the viewing directions
    name: str  #: scene/frame+frame


class Segmented(NamedTuple):
    """One labelled frame and what networks say of it."""

    color: NDArray[np.uint8]  #: (H, W, 3) RGB
    label: NDArray[np.integer]  #: (H, W) class ids, 255 = ignored
    predicted: Mapping[str, NDArray[np.integer]]  #: method -> (H, W) class ids
    name: str  #: scene/frame


class Detected(NamedTuple):
    """One image with its objects and what networks find."""

    color: NDArray[np.uint8]  #: (H, W, 3) RGB
    truth: Detections  #: with scores of 1
    found: Mapping[str, Detections]  #: method -> objects
    name: str


def pair_figure(pair: MatchedPair) -> bytes:
    """Return a PNG of the two frames side by side with at most 32 of their matches as coloured lines."""
    with style():
        figure, axes = image_grid([""], [pair_title(pair)], _pair_aspect(pair))
        draw_pair(axes[0][0], pair)
        return png(figure)


def pair_title(pair: MatchedPair) -> str:
    """Overlap, number of matches and angle in words."""
    degrees = np.degrees(pair.angle)
    return f"overlap {pair.overlap:.0%}   ·   {len(pair.points):,} matches   ·   {degrees:.0f}° between the views"


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
            handles=chunk_handles(),
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


def segmentation_figure(frames: Sequence[Segmented], class_names: Sequence[str]) -> bytes:
    """Return a PNG with a row a frame: image, ground truth, each method's prediction; below, the classes' colours.

    Pixels without ground truth are black in the predictions too: there, right and wrong are not defined.
    """
    methods = list(frames[0].predicted)
    per_row = 8
    lines = -(-(len(class_names) + 1) // per_row)
    with style():
        columns = ["image", "ground truth", *map(series_label, methods)]
        aspect = frames[0].color.shape[1] / frames[0].color.shape[0]
        figure, axes = image_grid([""] * len(frames), columns, aspect, below=0.22 * lines + 0.14)
        for row, frame in zip(axes, frames, strict=True):
            for c, (cell, image) in enumerate(zip(row, segmented_images(frame, class_names), strict=True)):
                show(cell, image, smooth=c == 0)
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


def detection_figure(frames: Sequence[Detected], class_names: Sequence[str]) -> bytes:
    """Return a PNG with a row an image: its objects, and what each method finds, with the scores in percent."""
    methods = list(frames[0].found)
    with style():
        aspect = frames[0].color.shape[1] / frames[0].color.shape[0]
        figure, axes = image_grid([""] * len(frames), ["ground truth", *map(series_label, methods)], aspect)
        for row, frame in zip(axes, frames, strict=True):
            show(row[0], draw_detections(frame.color, frame.truth, class_names, with_scores=False), smooth=True)
            for cell, method in zip(row[1:], methods, strict=True):
                show(cell, draw_detections(frame.color, frame.found[method], class_names), smooth=True)
        return png(figure)


def segmented_images(frame: Segmented, class_names: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Image, ground truth, predictions as RGB (H, W, 3); what has no ground truth is black in all but the image."""
    labels = [frame.label, *(np.where(frame.label == 255, 255, label) for label in frame.predicted.values())]
    return [frame.color, *(color_labels(label, class_names) for label in labels)]


def class_patches(class_names: Sequence[str]) -> list[Patch]:
    """Legend entries of the classes, and of ignored pixels."""
    entries = [*zip(class_names, palette(class_names) / 255.0, strict=True), ("not labelled", np.zeros(3))]
    return [Patch(facecolor=tuple(color), label=name) for name, color in entries]


def _pair_aspect(pair: MatchedPair) -> float:
    height, width = pair.colors.shape[1:3]
    return float((2 * width + _gap(width)) / height)


def _gap(width: int) -> float:
    """Pixels between the two frames."""
    return width / 40

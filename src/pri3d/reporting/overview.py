"""The whole method in one wide picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pri3d.reporting.cutaway import Chunk, draw_chunk
from pri3d.reporting.figures import MatchedPair, Segmented, class_patches, draw_pair, pca_colors, segmented_images
from pri3d.reporting.style import DPI, MUTED, png, series_label, show, style

_WIDTH, _LEFT, _EDGE, _GAP, _TITLE = 13.6, 6.0, 0.05, 0.07, 0.42  # inches
_LEGEND = 0.55


class _Sheet(NamedTuple):
    """A figure measured in inches from its upper left corner."""

    figure: Figure
    height: float

    def axes(self, left: float, top: float, wide: float, high: float) -> Axes:
        """Axes of that place and size."""
        box = left / _WIDTH, 1 - (top + high) / self.height, wide / _WIDTH, high / self.height
        axes: Axes = self.figure.add_axes(box)
        return axes

    def title(self, left: float, top: float, text: str, remark: str) -> None:
        """Bold text and a remark behind it, above what begins at ``top``."""
        y = 1 - (top - 0.12) / self.height
        words = self.figure.text(left / _WIDTH, y, text, weight="bold", size=12)
        right = words.get_window_extent().x1 / self.figure.dpi + 0.14
        self.figure.text(right / _WIDTH, y, remark, color=MUTED, size=10)


def overview_picture(
    pair: MatchedPair,
    chunk: Chunk,
    maps: Mapping[str, Tensor],
    frames: Sequence[Segmented],
    class_names: Sequence[str],
) -> bytes:
    """Return a PNG: at the left a pair and its feature maps before and after, at the right chunk and segmentations.

    ``maps``: network -> (2, C, h, w) of the pair's frames; ``frames``: a row of pictures each, two fit well.
    """
    height, width = pair.colors.shape[1:3]
    tall = _LEFT * height / (2 * width + width / 40)
    with style():
        total = (_TITLE + tall) * (1 + len(maps)) + 0.1
        sheet = _Sheet(Figure(figsize=(_WIDTH, total), dpi=DPI), total)
        sheet.title(_EDGE, _TITLE, "1  Pair", f"points that both frames see, overlap {pair.overlap:.0%}")
        draw_pair(sheet.axes(_EDGE, _TITLE, _LEFT, tall), pair, shown=20)
        cell = tall * width / height
        for k, (name, features) in enumerate(maps.items()):
            top = (k + 2) * _TITLE + (k + 1) * tall
            sheet.title(_EDGE, top, f"{k + 3}  Features {name} pre-training", "equal colours: equal features")
            for x, color in zip((_EDGE, _EDGE + _LEFT - cell), pca_colors(features), strict=True):
                show(sheet.axes(x, top, cell, tall), color, smooth=False)
        left = _LEFT + 0.45
        top = _draw_segmented(sheet, left, frames, class_names)
        sheet.title(
            left, top - _TITLE + 0.18, f"{len(maps) + 3}  Fine-tuning", "semantic segmentation, held-out frames"
        )
        sheet.title(left, _TITLE, "2  Surface", "the voxels in the view of the first frame")
        draw_chunk(sheet.axes(left, _TITLE, _WIDTH - _EDGE - left, top - 2 * _TITLE - 0.3), chunk)
        return png(sheet.figure)


def _draw_segmented(sheet: _Sheet, left: float, frames: Sequence[Segmented], class_names: Sequence[str]) -> float:
    """Rows of pictures above a legend in the lower right corner; returns where the rows begin."""
    columns = ["image", "ground truth", *map(series_label, frames[0].predicted)]
    wide = (_WIDTH - _EDGE - left - _GAP * (len(columns) - 1)) / len(columns)
    high = wide * frames[0].color.shape[0] / frames[0].color.shape[1]
    begin: float = sheet.height - _LEGEND - len(frames) * (high + _GAP)
    for r, frame in enumerate(frames):
        for c, image in enumerate(segmented_images(frame, class_names)):
            axes = sheet.axes(left + c * (wide + _GAP), begin + r * (high + _GAP), wide, high)
            show(axes, image, smooth=c == 0)
            if r == 0:
                axes.set_title(columns[c], size=9.5, weight="normal", pad=4)
    sheet.figure.legend(
        handles=class_patches(class_names),
        loc="lower left",
        bbox_to_anchor=(left / _WIDTH, 0),
        ncols=-(-(len(class_names) + 1) // 2),
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.6,
        borderpad=0,
        borderaxespad=0.5,
        fontsize=9,
    )
    return begin

"""The whole method in one wide picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pri3d.report.cutaway import Chunk, draw_chunk
from pri3d.report.figures import MatchedPair, Segmented, class_patches, draw_pair, pca_colors, segmented_images
from pri3d.report.style import MUTED, png, series_label, show, style

_WIDTH, _LEFT, _GAP, _TITLE = 13.6, 6.0, 0.07, 0.42  # inches


def overview_picture(
    pair: MatchedPair,
    chunk: Chunk,
    maps: Mapping[str, Tensor],
    frames: Sequence[Segmented],
    class_names: Sequence[str],
) -> bytes:
    """Return a PNG: at the left a pair and its feature maps before and after, at the right chunk and segmentations.

    ``maps``: network -> (2, C, h, w) of the pair's frames; ``frames``: one row of pictures each, two fit well.
    """
    height, width = pair.colors.shape[1:3]
    unit = _LEFT / (2 * width + width / 40)  # inches a pixel
    tall, cell = height * unit, width * unit
    total = _TITLE * (1 + len(maps)) + tall * (1 + len(maps)) + 0.1
    with style():
        figure = Figure(figsize=(_WIDTH, total))

        def place(left: float, top: float, wide: float, high: float) -> Axes:
            """Axes at inches from the upper left corner."""
            return figure.add_axes((left / _WIDTH, 1 - (top + high) / total, wide / _WIDTH, high / total))

        def title(left: float, top: float, text: str, remark: str) -> None:
            y = 1 - (top - 0.12) / total
            words = figure.text(left / _WIDTH, y, text, weight="bold", size=12)
            right = words.get_window_extent().x1 / figure.dpi + 0.12
            figure.text(right / _WIDTH, y, remark, color=MUTED, size=10)

        title(0.05, _TITLE, "1  Pair", f"points that both frames see, overlap {pair.overlap:.0%}")
        draw_pair(place(0.05, _TITLE, _LEFT, tall), pair)
        for k, (name, features) in enumerate(maps.items()):
            top = (k + 2) * _TITLE + (k + 1) * tall
            title(0.05, top, f"{k + 3}  Features {name} pre-training", "equal colour: equal feature")
            for x, color in zip((0.05, 0.05 + _LEFT - cell), pca_colors(features), strict=True):
                show(place(x, top, cell, tall), color, smooth=False)
        left = _LEFT + 0.45
        room = _WIDTH - left - 0.05
        columns = ["image", "ground truth", *map(series_label, frames[0].predicted)]
        small = (room - _GAP * (len(columns) - 1)) / len(columns)
        rows_top = total - 0.62 - len(frames) * (small * height / width + _GAP)
        title(left, _TITLE, "2  Surface", "the voxels that the first frame sees")
        draw_chunk(place(left, _TITLE, room, rows_top - 2 * _TITLE - 0.3), chunk)
        title(left, rows_top - 0.24, f"{len(maps) + 3}  Fine-tuning", "semantic segmentation of rooms held out")
        for r, frame in enumerate(frames):
            for c, image in enumerate(segmented_images(frame, len(class_names))):
                axes = place(
                    left + c * (small + _GAP),
                    rows_top + r * (small * height / width + _GAP),
                    small,
                    small * height / width,
                )
                show(axes, image, smooth=c == 0)
                if r == 0:
                    axes.set_title(columns[c], size=9.5, weight="normal", pad=4)
        figure.legend(
            handles=class_patches(class_names),
            loc="lower left",
            bbox_to_anchor=(left / _WIDTH, 0.0),
            ncols=-(-(len(class_names) + 1) // 2),
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.1,
            borderpad=0,
            borderaxespad=0.3,
            fontsize=8.5,
        )
        return png(figure)

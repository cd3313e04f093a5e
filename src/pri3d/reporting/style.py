"""Common style of all figures: fonts, colours, grids of images, PNG encoding. No pyplot, no state."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

DPI = 144
INK, MUTED, GRID, ACCENT = "#1d2330", "#697080", "#e4e7ec", "#c2334d"

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # matplotlib brings it, so pictures are alike everywhere
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
}

#: of Okabe and Ito those that are told apart with any colour vision, then further ones
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f4fc9", "#8c564b", "#808080", "#a3a300")
_KNOWN = {"pri3d": ("Pri3D", "#0072b2"), "scratch": ("from scratch", "#e69f00"), "imagenet": ("ImageNet", "#009e73")}


def style() -> AbstractContextManager[None]:
    """Context in which every figure is made and saved."""
    context: AbstractContextManager[None] = mpl.rc_context(_STYLE)
    return context


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG at 144 dots an inch; call inside :func:`style`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def series_colors(names: Iterable[str]) -> dict[str, str]:
    """Colour of each method or objective: fixed for the known names, the others get what is left in order.

    Ten are told apart; of more, the colours repeat.
    """
    every = list(dict.fromkeys(names))
    taken = {_KNOWN[name][1] for name in every if name in _KNOWN}
    free = [color for color in _SERIES if color not in taken] or list(_SERIES)
    others = (name for name in every if name not in _KNOWN)
    chosen = {name: free[k % len(free)] for k, name in enumerate(others)}
    return {name: _KNOWN[name][1] if name in _KNOWN else chosen[name] for name in every}


def series_label(name: str) -> str:
    """What to call a method in text."""
    return _KNOWN[name][0] if name in _KNOWN else name


def show(axes: Axes, image: NDArray[Any], smooth: bool) -> None:
    """Fill ``axes`` with an image (H, W, 3): photographs are enlarged smoothly, labels and features cell by cell."""
    height, width = image.shape[:2]
    axes.imshow(
        image,
        interpolation="bicubic" if smooth else "nearest",
        extent=(0, width, height, 0),
        interpolation_stage="rgba",
    )
    axes.set_axis_off()


def image_grid(
    rows: Sequence[str], columns: Sequence[str], aspect: float, width: float = 10.0, below: float = 0.05
) -> tuple[Figure, list[list[Axes]]]:
    """Figure with a tight grid of axes of shape ``aspect`` (width / height), named at the left and on top.

    ``width`` and ``below`` (free room under the grid) are inches. Returns the figure and axes[row][column].
    """
    gap, left, top = 0.07, 0.28 if any(rows) else 0.02, 0.3 if any(columns) else 0.02
    cell = (width - left - 0.02 - gap * (len(columns) - 1)) / len(columns)
    tall = cell / aspect
    height = top + tall * len(rows) + gap * (len(rows) - 1) + below
    figure = Figure(figsize=(width, height))
    grid = []
    for r, row in enumerate(rows):
        y = height - top - (r + 1) * tall - r * gap
        places = [(left + c * (cell + gap), y) for c in range(len(columns))]
        grid.append([figure.add_axes((x / width, y / height, cell / width, tall / height)) for x, y in places])
        middle = (y + tall / 2) / height
        figure.text(0.1 / width, middle, row, rotation=90, va="center", ha="center", weight="bold", size=9.5)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(_fit(figure, column, cell), loc="left", size=10, pad=5)
    return figure, grid


def _fit(figure: Figure, title: str, wide: float) -> str:
    """A column's title cut at its beginning to ``wide`` inches: of paths the end tells them apart."""
    text = figure.text(0, 0, title, size=10, weight="bold")
    while text.get_window_extent().width > wide * figure.dpi and len(title) > 2:
        title = f"…{title[2:]}"
        text.set_text(title)
    text.remove()
    return title

"""The picture of ``pri3d probe``: recall of correspondences by the angle between the views."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from pri3d.reporting.style import MUTED, png, series_colors, style

#: network -> bin of degrees, such as "15-30" -> recall 0..1, NaN where the bin is empty
Curves = Mapping[str, Mapping[str, float]]


def recall_figure(panels: Mapping[str, Curves]) -> bytes:
    """Return a PNG with one panel for each title: a line a network over the bins of viewing angle.

    Bins in which no network has a value are left out.
    """
    colors = series_colors(dict.fromkeys(name for curves in panels.values() for name in curves))
    with style():
        figure = Figure(figsize=(5 * len(panels), 3.6), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for area, (title, curves) in zip(axes, panels.items(), strict=True):
            bins = list(dict.fromkeys(name for curve in curves.values() for name in curve))
            bins = [b for b in bins if not all(math.isnan(curve.get(b, math.nan)) for curve in curves.values())]
            for name, curve in curves.items():
                values = [curve.get(b, math.nan) for b in bins]
                area.plot(range(len(bins)), values, color=colors[name], marker="o", markersize=5, label=name)
            area.set_title(title)
            area.set_xticks(range(len(bins)), [f"{b}°" for b in bins])
            area.set_xlim(-0.3, max(len(bins), 1) - 0.7)
            area.set_ylim(0, 1.02)
            area.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            area.set_xlabel("angle between the views", color=MUTED)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=min(4, max(1, len(handles[0]))))
        return png(figure)

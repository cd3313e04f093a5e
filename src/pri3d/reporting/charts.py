"""Curves and scores as PNG bytes: rows of numbers in, bytes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from pri3d.intervals import mean_interval
from pri3d.reporting.style import INK, MUTED, png, series_colors, series_label, style

Rows = Sequence[Mapping[str, float]]
_DASHES = ("-", "--", ":", "-.")
#: network -> bin of degrees, such as "15-30" -> recall 0..1, NaN where the bin is empty
Curves = Mapping[str, Mapping[str, float]]


def training_figure(rows: Rows, weights: Mapping[str, float]) -> bytes:
    """Return a PNG of a pre-training run: loss against chance, match recall and learning rate over the steps.

    ``rows`` are those of metrics.csv: ``step``, ``loss``, ``lr`` and, an objective, ``NAME/loss``, ``NAME/recall`` and
    ``NAME/chance``. ``weights`` are the objectives' (1 where not given). Chance is the loss of a network that cannot
    tell points apart, ln of the number of points. Thin lines are single batches, thick ones their running mean.
    """
    names = [
        key.removesuffix("/loss") for key in dict.fromkeys(k for row in rows for k in row) if key.endswith("/loss")
    ]
    with style():
        figure = _wide(3.3)
        loss, recall, rate = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 0.8))
        _title(loss, "Loss", "dotted: chance")
        _title(recall, "Matching recall", "partner is the most similar point")
        _title(rate, "Learning rate", "")
        if len(names) > 1:
            total = sum(weights.get(name, 1.0) * _column(rows, f"{name}/chance") for name in names)
            _curve(loss, rows, "loss", INK, "total")
            loss.plot(_column(rows, "step"), total, color=INK, linestyle=":", linewidth=1.2)
        for name, color in series_colors(names).items():
            _curve(loss, rows, f"{name}/loss", color, name)
            loss.plot(_column(rows, "step"), _column(rows, f"{name}/chance"), color=color, linestyle=":", linewidth=1.2)
            _curve(recall, rows, f"{name}/recall", color, name)
        rate.plot(_column(rows, "step"), _column(rows, "lr"), color=MUTED)
        loss.set_ylim(bottom=0)
        recall.set_ylim(bottom=0)
        recall.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        for axes in (loss, recall, rate):
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        handles = loss.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]))
        return png(figure)


def compared_training_figure(curves: Mapping[str, Rows]) -> bytes:
    """Return a PNG of several pre-training runs: match recall of each objective over the steps, a colour a run.

    ``curves``: run -> rows as of :func:`training_figure`. Of a run with several objectives each has a line style.
    """
    with style():
        figure = _wide(3.6)
        axes = figure.subplots()
        _title(axes, "Matching recall", "of each objective's own points; partner is the most similar one")
        for name, color in series_colors(curves).items():
            rows = curves[name]
            keys = [key for key in dict.fromkeys(k for row in rows for k in row) if key.endswith("/recall")]
            for key, dash in zip([key for key in keys if not key.startswith("heldout/")], _DASHES, strict=False):
                values = running_mean(_column(rows, key), max(1, len(rows) // 20))
                label = f"{series_label(name)}, {key.removesuffix('/recall')}"
                axes.plot(_column(rows, "step"), values, color=color, linestyle=dash, label=label)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        handles = axes.get_legend_handles_labels()
        if handles[0]:
            figure.legend(*handles, loc="outside lower center", ncols=min(len(handles[0]), 4))
        return png(figure)


#: what pre-training measures on held-out frames -> title of its curve
HELD_OUT = {
    "recall": "Held-out recall",
    "alignment": "Held-out alignment",
    "uniformity": "Held-out uniformity",
    "rank": "Held-out rank",
    "encoder_recall": "Encoder: recall",
    "depth_rmse": "Encoder: depth, m",
    "normal_error": "Encoder: normals, °",
    "cosine": "Encoder: cosine to initial",
}


def heldout_figure(history: Rows) -> bytes:
    """Return a PNG of what pre-training measures on held-out frames: of the U-Net's features and of the encoder's maps.

    ``history`` has rows with ``step`` and the names of ``HELD_OUT``; a name that no row has is left out.
    """
    names = [name for name in HELD_OUT if np.isfinite(_column(history, name)).any()]
    with style():
        rows = 1 + (len(names) > 4)
        figure = _wide(2.7 * rows)
        panels = figure.subplots(rows, max(1, -(-len(names) // rows)), squeeze=False).flatten()
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(panels, names, strict=False):
            axes.plot(_column(history, "step"), _column(history, name), color=INK, marker="o", markersize=4)
            _title(axes, HELD_OUT[name], "")
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if name in ("recall", "encoder_recall"):
                axes.set_ylim(bottom=0)
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        return png(figure)


def validation_figure(
    histories: Mapping[str, Sequence[Rows]], losses: Mapping[str, Sequence[Rows]], key: str = "miou", name: str = "mIoU"
) -> bytes:
    """Return a PNG of fine-tuning runs by method: a validation score and the training loss over the steps.

    ``histories`` have rows with ``step`` and ``key`` (0..1, called ``name``), ``losses`` rows with ``step`` and
    ``loss``; one list a seed. Thin lines are seeds, the thick one is their mean. Runs that were validated once, at
    their end, have no curve of the score.
    """
    curves = {(f"Validation {name}", "on held-out images"): (histories, key), ("Training loss", ""): (losses, "loss")}
    if all(len(history) < 2 for seeds in histories.values() for history in seeds):
        del curves[next(iter(curves))]
    with style():
        figure = _wide(3.4)
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (title, (runs, column)) in zip(panels, curves.items(), strict=True):
            for method, color in series_colors(runs).items():
                _seeds(axes, runs[method], column, color, series_label(method))
            axes.set_xlabel("fine-tuning step")
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            _title(axes, *title)
            if column == key:
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=min(len(handles[0]), 5))
        return png(figure)


def classes_figure(scores: Mapping[str, Mapping[str, float]], name: str = "IoU") -> bytes:
    """Return a PNG of a score by class: a dot a method, joined by lines; ``scores``: method -> class -> fraction 0..1.

    Classes stand in their own order; a NaN (the class neither occurs nor is predicted) leaves its dot out.
    """
    classes = list(dict.fromkeys(name for values in scores.values() for name in values))
    table = np.array([[values.get(name, np.nan) for name in classes] for values in scores.values()], float)
    with style():
        figure = _wide(0.29 * len(classes) + 1.1)
        axes = figure.subplots()
        rows = np.arange(len(classes))
        present = np.flatnonzero(np.isfinite(table).any(axis=0))
        low, high = np.nanmin(table[:, present], axis=0), np.nanmax(table[:, present], axis=0)
        axes.hlines(present, low, high, color="#c3c8d1", linewidth=3.5)
        for k, (method, color) in enumerate(series_colors(scores).items()):
            axes.scatter(table[k], rows, s=130 / (k + 1.3), color=color, edgecolors="white", linewidths=1, zorder=3 + k,
                         label=series_label(method))  # fmt: skip
        axes.set_yticks(rows, classes, color=INK)
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(-0.02, max(0.1, float(np.nanmax(table, initial=0.0))) * 1.06)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(f"{name}, mean over seeds")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(scores), 5))
        return png(figure)


def bars_figure(
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    axis: str,
    reference: Mapping[str, Mapping[str, float]] | None = None,
    scale: float = 100.0,
) -> bytes:
    """Return a PNG of grouped bars: a bar to the mean, a dot a seed, a whisker over the 95 % interval of the mean.

    Args:
        rows: group (named at the left, from top to bottom) -> series (a colour) -> values, one a seed. A group may lack
            a series; NaN values are left out; a single value has no whisker.
        axis: what the values are, with their unit; stands below.
        reference: group -> series -> a value to compare with, such as the paper's; a hollow diamond.
        scale: what values and references are multiplied by: 100 for shares 0..1 in percent.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    colors = series_colors(series)
    thick = 0.82 / max(len(series), 1)
    with style():
        figure = _wide(max(1.6, 0.9 + len(rows) * (0.14 + 0.25 * len(series))))
        axes = figure.subplots()
        for g, (group, row) in enumerate(rows.items()):
            for k, name in enumerate(series):
                y = g + (k + 0.5) * thick - 0.41
                color, known = colors[name], [scale * v for v in row.get(name, ()) if np.isfinite(v)]
                if known:
                    mean, half = mean_interval(known)
                    axes.barh(y, mean, height=0.86 * thick, color=color, alpha=0.38)
                    ends = [y - 0.43 * thick, y + 0.43 * thick]
                    axes.plot([mean, mean], ends, color=color, linewidth=2.5, solid_capstyle="butt")
                    if np.isfinite(half):
                        axes.errorbar(mean, y, xerr=half, color=color, capsize=3, linewidth=1.3, zorder=3)
                    shift = np.linspace(-0.2, 0.2, len(known)) * thick if len(known) > 1 else np.zeros(1)
                    axes.scatter(known, y + shift, s=22, color=color, edgecolors="white", linewidths=0.7, zorder=4)
                    right = max(mean + (half if np.isfinite(half) else 0), *known)
                    axes.annotate(
                        f"{mean:.1f}", (right, y), (7, 0), textcoords="offset points", va="center", size=8.5, color=INK
                    )
                stated = (reference or {}).get(group, {}).get(name, np.nan)
                axes.scatter(scale * stated, y, s=44, marker="D", facecolors="white", edgecolors=INK, zorder=5)
        axes.set_yticks(range(len(rows)), list(rows), color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.1)
        negative = any(value < 0 for row in rows.values() for values in row.values() for value in values)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]) if negative else 0.0)
        axes.set_xlabel(axis)
        handles: list[Artist] = [Patch(color=colors[name], alpha=0.45, label=series_label(name)) for name in series]
        if reference:
            handles.append(Line2D([], [], marker="D", ls="", mfc="white", mec=INK, label="the paper"))
        if len(handles) > 1:
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
        return png(figure)


def efficiency_figure(
    curves: Mapping[str, Mapping[float, Sequence[float]]],
    axis: str,
    reference: Mapping[str, Mapping[float, float]] | None = None,
    scale: float = 100.0,
) -> bytes:
    """Return a PNG of scores over the fraction of the labels: lines through the means, bands over their 95 % intervals.

    Args:
        curves: method -> fraction of the labels 0..1 -> values, one a seed; NaN values are left out.
        axis: what the values are, with their unit; stands at the left.
        reference: method -> share -> a value to compare with, such as the paper's; a dashed line of hollow diamonds.
        scale: what values and references are multiplied by: 100 for shares 0..1 in percent.
    """
    names = list(dict.fromkeys((*curves, *(reference or {}))))
    colors = series_colors(names)
    with style():
        figure = _wide(4.0)
        axes = figure.subplots()
        for name, curve in curves.items():
            known = {share: [scale * v for v in of if np.isfinite(v)] for share, of in sorted(curve.items())}
            known = {share: of for share, of in known.items() if of}
            shares = [100 * share for share in known]
            mean, half = np.array([mean_interval(of) for of in known.values()]).reshape(-1, 2).T
            axes.fill_between(shares, mean - half, mean + half, color=colors[name], alpha=0.15, linewidth=0)
            axes.plot(shares, mean, color=colors[name], marker="o", label=series_label(name))
            across = [100 * share for share, of in known.items() for _ in of]
            axes.scatter(across, [v for of in known.values() for v in of], s=14, color=colors[name], alpha=0.5)
        for name, points in (reference or {}).items():
            xy = np.array([(100 * share, scale * value) for share, value in sorted(points.items())]).reshape(-1, 2).T
            axes.plot(*xy, color=colors[name], ls="--", lw=1.1, marker="D", mfc="white",
                      label=f"{series_label(name)}, the paper")  # fmt: skip
        shown = sorted({100 * s for curve in (*curves.values(), *(reference or {}).values()) for s in curve})
        axes.set_xticks(shown, [f"{share:g}%" for share in shown])
        axes.set_xlabel("fraction of the labelled images")
        axes.set_ylabel(axis)
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=min(max(len(handles[0]), 1), 5))
        return png(figure)


def running_mean(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Mean of each value (N,) and its up to ``reach`` neighbours on either side, NaN left out."""
    known = np.isfinite(values)
    window = np.ones(2 * reach + 1)
    total = np.convolve(np.where(known, values, 0), window, "full")[reach : reach + len(values)]
    count = np.convolve(known, window, "full")[reach : reach + len(values)]
    mean: NDArray[np.float64] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def _wide(height: float) -> Figure:
    """Figure of the report's width and ``height`` inches, with room between its panels."""
    return Figure(figsize=(10, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))


def _curve(axes: Axes, rows: Rows, key: str, color: str, label: str) -> None:
    steps, values = _column(rows, "step"), _column(rows, key)
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
    axes.plot(steps, running_mean(values, max(1, len(values) // 40)), color=color, label=label)


def _seeds(axes: Axes, seeds: Sequence[Rows], key: str, color: str, label: str) -> None:
    """Thin line a seed, thick mean over the steps that all seeds have; loss is smoothed."""
    smooth, marked = (2, False) if key == "loss" else (0, True)
    curves = []
    for rows in seeds:
        values = running_mean(_column(rows, key), smooth)
        steps = _column(rows, "step")
        curves.append(dict(zip(steps.tolist(), values.tolist(), strict=True)))
        axes.plot(steps, values, color=color, linewidth=0.9, alpha=0.5, marker="." if marked else None)
    common = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    mean = [float(np.mean([curve[step] for curve in curves])) for step in common]
    axes.plot(common, mean, color=color, linewidth=2.4, label=label, marker="o" if marked else None, markersize=4)


def _column(rows: Rows, key: str) -> NDArray[np.float64]:
    """One number a row, NaN where it has none."""
    return np.array([row.get(key, np.nan) for row in rows], float)


def _title(axes: Axes, title: str, remark: str) -> None:
    axes.set_title(title)
    if remark:
        axes.set_title(remark, loc="right", size=8.5, weight="normal", color=MUTED)


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

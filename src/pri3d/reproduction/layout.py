"""Entries -> the paper's table as Markdown and CSV, and its figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from pri3d.intervals import interval_text
from pri3d.reporting.charts import bars_figure, efficiency_figure
from pri3d.reproduction.matrix import Experiment, Matrix
from pri3d.reproduction.scores import Entry, printed_delta, readings
from pri3d.reproduction.work import Place

TITLES = {"scratch": "Scratch", "imagenet": "ImageNet"}
NETWORKS = {"resnet50": "ResNet-50", "resnet18": "ResNet-18"}


def markdown(place: Place, experiment: Experiment, matrix: Matrix, entries: Sequence[Entry]) -> str:
    """The page: what was run, our table, what it shows, the paper's table beside."""
    fractions = list(dict.fromkeys(entry.fraction for entry in entries))
    names = list(experiment.scores.values())
    columns = [(f, name) for f in fractions for name in names]
    heads = [_head(name, f, len(fractions) > 1) for f, name in columns]
    printed = [
        (encoder, f, k)
        for encoder in experiment.encoders
        for f in _printed_at(experiment, encoder, fractions)
        for k in range(len(names))
    ]
    heads += [f"paper, {NETWORKS[e]}: {_head(names[k], f, f < 1)}" for e, f, k in printed]
    found = {(entry.row, entry.fraction, entry.score): entry for entry in entries}
    lines = [_line(["start of the encoder", *heads]), _line(["---", *["---:"] * len(heads)])]
    for row in _in_order(experiment, entries):
        ours = [_ours(found.get((row, *column))) for column in columns]
        lines.append(_line([row, *ours, *(_paper(experiment, row, *column) for column in printed)]))
    remarks = [reading.text() for reading in readings(experiment, entries)]
    remarks += [f"Not run: {'; '.join(rows)} ({why})." for why, rows in _by_reason(matrix).items()]
    notes = place.study.settings.get("notes", {})
    remarks += [notes[start] for start in dict.fromkeys(cell.start for cell in matrix.cells) if start in notes]
    parts = [
        f"# {experiment.title}, on {place.study.on}",
        _what(place, experiment, matrix, entries),
        "\n".join(lines),
        "\n".join(f"- {remark}" for remark in remarks),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table_csv(experiment: Experiment, entries: Sequence[Entry]) -> str:
    """One line a row of the table, share of the labels and score; numbers in %, unknown ones empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paper = [f"paper_{encoder}{suffix}" for encoder in experiment.encoders for suffix in ("", "_delta")]
    writer.writerow(["row", "fraction", "score", "mean", "half_interval_95", "delta", "runs", "values", *paper])
    names = list(experiment.scores.values())
    for entry in entries:
        k = names.index(entry.score)
        beside: list[float] = []
        for encoder in experiment.encoders:
            figures = printed_delta(experiment, entry.row, encoder, entry.fraction)
            beside += figures[k] if figures else (math.nan, math.nan)
        numbers = [entry.mean, entry.half, entry.delta]
        values = " ".join(f"{value:.3f}" for value in entry.values)
        writer.writerow(
            [
                entry.row,
                entry.fraction,
                entry.score,
                *map(_number, numbers),
                len(entry.values),
                values,
                *map(_number, beside),
            ]
        )
    return text.getvalue()


def figure(experiment: Experiment, entries: Sequence[Entry]) -> bytes:
    """PNG: scores over the share of the labels where the paper's figure has several shares, else bars."""
    found = [entry for entry in entries if entry.values]
    rows = dict.fromkeys(entry.row for entry in found)
    if len(experiment.fractions) > 1:
        curves = {row: {entry.fraction: entry.values for entry in found if entry.row == row} for row in rows}
        return efficiency_figure(curves, f"{found[0].score}, %", scale=1.0)
    several = len({entry.fraction for entry in found}) > 1
    bars = {row: {_head(e.score, e.fraction, several): e.values for e in found if e.row == row} for row in rows}
    return bars_figure(bars, f"{found[0].score if len(experiment.scores) == 1 else 'score'}, %", scale=1.0)


def _in_order(experiment: Experiment, entries: Sequence[Entry]) -> list[str]:
    """Rows in the paper's order, those that are ours alone in front."""
    return [*dict.fromkeys(e.row for e in entries if e.row not in experiment.rows), *experiment.rows]


def _by_reason(matrix: Matrix) -> dict[str, list[str]]:
    reasons = dict.fromkeys(matrix.left_out.values())
    return {why: [row for row, other in matrix.left_out.items() if other == why] for why in reasons}


def _what(place: Place, experiment: Experiment, matrix: Matrix, entries: Sequence[Entry]) -> str:
    """What the figures are, in words."""
    study, runs = place.study, sum(len(cell.runs) for cell in matrix.cells)
    missing = runs - sum(len(entry.values) for entry in entries if entry.score == entries[0].score)
    seeds = max(len(cell.runs) for cell in matrix.cells)
    mean = f"mean of {seeds} seeds and its 95 % interval (Student's t)" if seeds > 1 else "one seed"
    lost = f" {missing} of {runs} runs have no scores." if missing else ""
    call = f"pri3d reproduce {experiment.name} --on {study.on} --size {study.size}"
    made = list(dict.fromkeys(run.options["seed"] for run in matrix.runs))
    if made != list(study.settings["seeds"]):
        call += f" --seeds {','.join(map(str, made))}"
    if (encoder := matrix.runs[0].options["encoder"]) != study.settings["encoder"]:
        call += f" --encoder {encoder}"
    fractions = list(dict.fromkeys(entry.fraction for entry in entries))
    if fractions != list(experiment.fractions):
        call += f" --fractions {','.join(f'{fraction:g}' for fraction in fractions)}"
    return (
        f"`{call}`: {mean}, in %, scores of the last step; in brackets the points from "
        f"{TITLES[study.base(experiment)]}. Beside them what the paper prints, of its own data; in brackets our own "
        f"subtraction, from {TITLES[experiment.base]}.{lost}"
    )


def _printed_at(experiment: Experiment, encoder: str, fractions: Sequence[float]) -> list[float]:
    """Shares of the labels of ours at which the paper has figures of an encoder."""
    return [f for f in fractions if any(experiment.printed(row, encoder, f) for row in experiment.rows)]


def _head(name: str, fraction: float, with_share: bool) -> str:
    return f"{name}, {100 * fraction:g} % of labels" if with_share else name


def _ours(entry: Entry | None) -> str:
    if entry is None or not entry.values:
        return "–"
    return f"{interval_text(entry.mean, entry.half)}{_delta(entry.delta)}"


def _paper(experiment: Experiment, row: str, encoder: str, fraction: float, k: int) -> str:
    figures = printed_delta(experiment, row, encoder, fraction) if row in experiment.rows else None
    return f"{figures[k][0]:.1f}{_delta(figures[k][1])}" if figures else "–"


def _delta(points: float) -> str:
    return "" if math.isnan(points) else f" ({round(points, 1) + 0.0:+.1f})"  # no -0.0


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

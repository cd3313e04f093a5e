"""Results of ``pri3d probe`` as tables of the terminal and of markdown, as CSV, and as JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from pri3d.data.pairs import ANGLE_NAMES
from pri3d.files.atomic import write_atomic
from pri3d.networks.readout import DepthScore, NormalScore, SegmentationScore
from pri3d.probing.differences import Difference
from pri3d.probing.pairs import THRESHOLDS, Correspondence, Recall
from pri3d.probing.retention import Retention
from pri3d.reporting.charts import Curves, recall_figure
from pri3d.reporting.sections import PROBE_MEASURES
from pri3d.runs import leaves, write_json, write_text
from pri3d.terminal import Terminal


class Scores(NamedTuple):
    """What was measured of one network; None where it was not."""

    weights: str  #: file, folder or name it came from
    features: str  #: which of its features, and their channels
    matching: Recall | None = None
    correspondence: Correspondence | None = None
    depth: DepthScore | None = None
    normals: NormalScore | None = None
    segmentation: SegmentationScore | None = None
    retention: Retention | None = None
    guard: dict[str, SegmentationScore] | None = None  #: of labelled images of another kind, by their name
    intervals: dict[str, float] | None = None  #: "TASK / MEASURE" -> half width of its 95 % interval, NaN: not known
    differences: dict[str, dict[str, Difference]] | None = None  #: compared network -> "TASK / MEASURE" -> difference


class Sheet(NamedTuple):
    """One table; a row's first cell says what it is of, a network or a measure."""

    title: str
    columns: list[str]
    rows: list[list[str]]


Results = Mapping[str, Scores]


def plain(value: Any) -> Any:
    """Named tuples as dictionaries, all the way down, without what was not measured."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return value


def write_results(out: Path, results: Results, facts: Mapping[str, Any], pixels: float) -> None:
    """Write OUT (.json), and .csv, .md and .png of the same name: everything, one number a line, the tables, recall."""
    networks = {name: plain(scores) for name, scores in results.items()}
    write_json(out, {**facts, "networks": networks})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("network", "task", "measure", "value"))
    for name, scores in networks.items():
        for (task, *measure), value in leaves(scores):
            if measure:
                table.writerow((name, task, " / ".join(measure), "" if _is_nan(value) else value))
    write_text(out.with_suffix(".csv"), text.getvalue())
    pieces = []
    for sheet in build_sheets(results, pixels):
        lines = [sheet.columns, ["---", *["---:"] * (len(sheet.columns) - 1)], *sheet.rows]
        pieces.append("\n".join([f"**{sheet.title}**", "", *("| " + " | ".join(line) + " |" for line in lines)]))
    write_text(out.with_suffix(".md"), "\n\n".join(pieces) + "\n")
    panels: dict[str, Curves] = {}
    matching = {name: s.matching.by_angle for name, s in results.items() if s.matching}
    if matching:
        panels[f"Recall of true points within {pixels:g} px"] = matching
    for end in ("10 px", "5 cm"):
        found = {
            name: {angle: values[end] for angle, values in s.correspondence.by_angle.items()}
            for name, s in results.items()
            if s.correspondence
        }
        if found:
            panels[f"Best matches right within {end}"] = found
    if panels:
        write_atomic(out.with_suffix(".png"), recall_figure(panels))


def show(results: Results, pixels: float) -> None:
    """Print all tables."""
    console = Terminal()
    for sheet in build_sheets(results, pixels):
        table = Table(title=sheet.title)
        for k, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if k else "left", overflow="fold")
        for row in sheet.rows:  # terminals are narrow
            table.add_row(*(cell.replace(" ± 0.", "\n±.").replace(" ± ", "\n±") for cell in row))
        console.print(table)


def build_sheets(results: Results, pixels: float) -> list[Sheet]:
    """Tables of what was measured, in the order of the tasks, and of how networks differ."""
    matched = []
    for name, scores in results.items():
        if not (best := scores.correspondence):
            continue
        halves = scores.intervals or {}
        parts = [("all", "recall", best.recall, best.pairs)]
        parts += [
            (f"{angle}°", f"by_angle / {angle}", values, best.pairs_by_angle[angle])
            for angle, values in best.by_angle.items()
            if best.pairs_by_angle[angle]
        ]
        for title, way, values, pairs in parts:
            cells = [
                _with_interval(value, halves.get(f"correspondence / {way} / {end}", math.nan))
                for end, value in values.items()
            ]
            matched.append([name, title, *cells, str(pairs)])
    sheets = [
        _tabulate(results, f"Recall of true points within {pixels:g} px, by angle between the views",
                  [*((f"matching / by_angle / {name}", f"{name}°") for name in ANGLE_NAMES),
                   ("matching / balanced", "bins"), ("matching / mean", "all"), ("matching / pairs", "pairs")]),
        Sheet("Recall of the best matches of a pair (probe3d)", ["network", "angle", *THRESHOLDS, "pairs"],
              matched),
        _tabulate(results, "Linear probe: depth",
                  [("depth / rmse", "RMSE, m"), ("depth / delta1", "δ < 1.25"), ("depth / delta2", "δ < 1.25²"),
                   ("depth / delta3", "δ < 1.25³")]),
        _tabulate(results, "Linear probe: surface normals",
                  [("normals / mean", "mean °"), ("normals / median", "median °"), ("normals / below_11", "< 11.25°"),
                   ("normals / below_22", "< 22.5°"), ("normals / below_30", "< 30°")]),
        _tabulate(results, "Linear probe: segmentation",
                  [("segmentation / miou", "mIoU"), ("segmentation / accuracy", "pixel accuracy")]),
    ]  # fmt: skip
    for guard in dict.fromkeys(name for scores in results.values() for name in scores.guard or ()):
        columns = [(f"guard / {guard} / {key}", title) for key, title in (("miou", "mIoU"), ("accuracy", "accuracy"))]
        sheets.append(_tabulate(results, f"Linear probe of the encoder: segmentation of {guard}", columns))
    kept = {k: s.retention for k, s in results.items() if s.retention}
    layers = max((list(score.cosine) for score in kept.values()), key=len, default=[])
    alike = []
    for name, score in kept.items():
        for measure, values in (("cosine", score.cosine), ("CKA", score.cka)):
            cells = [*map(_number, values.values())] + ["-"] * (len(layers) - len(values))
            alike.append([name, measure, *cells, _number(score.weight_change)])
    columns_of = ["network", "", *(name.partition(",")[0] for name in layers), "weight change"]
    sheets.append(Sheet("Retention: encoder against its reference", columns_of, alike))
    for name, scores in results.items():
        for other, found in (scores.differences or {}).items():
            rows = []
            guards = [key for key in found if key.startswith("guard / ") and "miou" in key]
            for key, title in (*PROBE_MEASURES, *((key, f"{key.split(' / ')[1]}, mIoU") for key in guards)):
                if key in found:
                    gap, low, high, verdict = found[key]
                    ends = "not known: too few frames" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
                    rows.append([title, f"{gap:+.3f}", ends, verdict])
            title = f"{name} compared with {other}, on the same pairs and frames"
            sheets.append(Sheet(title, ["measure", "difference", "95 % interval", ""], rows))
    return [sheet for sheet in sheets if sheet.rows]


def _tabulate(results: Results, title: str, columns: Sequence[tuple[str, str]]) -> Sheet:
    """One row a network that has these measures, with their intervals; columns are (measure, what it is called)."""
    rows = []
    for name, scores in results.items():
        values = {" / ".join(way): value for way, value in leaves(plain(scores))}
        if any(key in values for key, _ in columns):
            halves = scores.intervals or {}
            cells = [(values.get(key, math.nan), halves.get(key, math.nan)) for key, _ in columns]
            rows.append([name, *(_with_interval(value, half) for value, half in cells)])
    return Sheet(title, ["network", *(title for _, title in columns)], rows)


def _with_interval(value: float, half: float) -> str:
    if isinstance(value, int):
        return str(value)
    return _number(value) + ("" if math.isnan(half) or math.isnan(value) else f" ± {half:.3f}")


def _number(value: float) -> str:
    return "-" if _is_nan(value) else f"{value:.3f}"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)

"""What ``pri3d probe`` found, as tables of the terminal and of markdown, as CSV, and as JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from pri3d.files.atomic import write_atomic
from pri3d.networks.readout import DepthScore, NormalScore, SegmentationScore
from pri3d.probing.pairs import Correspondence, Recall
from pri3d.probing.retention import Retention
from pri3d.reporting.charts import Curves, recall_figure
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


class Sheet(NamedTuple):
    """One table; a row's first cell is the network's name."""

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
            if not isinstance(value, str):
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
    console = Terminal(markup=False)  # names may hold brackets
    for sheet in build_sheets(results, pixels):
        table = Table(title=sheet.title)
        for k, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if k else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)


def build_sheets(results: Results, pixels: float) -> list[Sheet]:
    """Tables of what was measured, in the order of the tasks."""
    matching = {k: s.matching for k, s in results.items() if s.matching}
    bins = [f"{name}°" for recall in list(matching.values())[:1] for name in recall.by_angle]
    found = {k: s.correspondence for k, s in results.items() if s.correspondence}
    best = []
    for name, matched in found.items():
        best.append([name, "all", *map(_number, matched.recall.values()), str(matched.pairs)])
        for angle, values in matched.by_angle.items():
            if matched.pairs_by_angle[angle]:
                best.append([name, f"{angle}°", *map(_number, values.values()), str(matched.pairs_by_angle[angle])])
    ends = [name for matched in list(found.values())[:1] for name in matched.recall]
    kept = {k: s.retention for k, s in results.items() if s.retention}
    layers = max((list(score.cosine) for score in kept.values()), key=len, default=[])
    alike = []
    for name, score in kept.items():
        for measure, values in (("cosine", score.cosine), ("CKA", score.cka)):
            cells = [*map(_number, values.values())] + ["-"] * (len(layers) - len(values))
            alike.append([name, measure, *cells, _number(score.weight_change)])
    sheets = [
        Sheet(
            f"Recall of true points within {pixels:g} px, by angle between the views",
            ["network", *bins, "bins", "all", "pairs"],
            [
                [name, *map(_number, [*recall.by_angle.values(), recall.balanced, recall.mean]), str(recall.pairs)]
                for name, recall in matching.items()
            ],
        ),
        Sheet("Recall of the best matches of a pair (probe3d)", ["network", "angle", *ends, "pairs"], best),
        _rows(
            "Linear probe: depth",
            ["RMSE, m", "δ < 1.25", "δ < 1.25²", "δ < 1.25³"],
            {k: s.depth[:4] for k, s in results.items() if s.depth},
        ),
        _rows(
            "Linear probe: surface normals",
            ["mean °", "median °", "< 11.25°", "< 22.5°", "< 30°"],
            {k: s.normals[:5] for k, s in results.items() if s.normals},
        ),
        _rows(
            "Linear probe: segmentation",
            ["mIoU", "pixel accuracy"],
            {k: s.segmentation[:2] for k, s in results.items() if s.segmentation},
        ),
        Sheet(
            "Retention: encoder against its reference",
            ["network", "", *(name.partition(",")[0] for name in layers), "weight change"],
            alike,
        ),
    ]
    return [sheet for sheet in sheets if sheet.rows]


def _rows(title: str, columns: list[str], values: Mapping[str, tuple[float, ...]]) -> Sheet:
    return Sheet(title, ["network", *columns], [[k, *map(_number, row)] for k, row in values.items()])


def _number(value: float) -> str:
    return "-" if _is_nan(value) else f"{value:.3f}"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)

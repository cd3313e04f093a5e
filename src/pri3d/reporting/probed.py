"""The part of a page about what ``pri3d probe`` found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pri3d.errors import DataError
from pri3d.reporting.html import Page
from pri3d.reporting.probe_figure import recall_figure
from pri3d.runs import leaves, read_json

_COLUMNS = 9  #: numbers of a table; what has more is told by the file alone


def add_probe(page: Page, path: Path) -> None:
    """Tables of each thing that was measured, and recall by angle. Raises DataError for a file of something else."""
    found = read_json(path)
    networks = found.get("networks") if isinstance(found, dict) else None
    if not isinstance(networks, dict) or not all(isinstance(scores, dict) for scores in networks.values()):
        raise DataError(f"{path}: not the results of pri3d probe. Give its .json file, or a run's folder.")
    curves = {name: _angles(scores) for name, scores in networks.items()}
    if any(curves.values()):
        page.figure(
            recall_figure({"Recall of true points": {name: of for name, of in curves.items() if of}}),
            "Share of points whose most similar place in the other view is the true one, by the angle between the "
            "views. No labels, no training.",
            "Curves of recall by viewing angle and network.",
        )
    for part in dict.fromkeys(name for scores in networks.values() for name in scores):
        rows = {name: _numbers(scores[part]) for name, scores in networks.items() if _is_table(scores.get(part))}
        columns = [name for name in dict.fromkeys(name for row in rows.values() for name in row)][:_COLUMNS]
        if columns:
            page.heading(part.capitalize(), 3)
            page.table(["", *columns], [(name, *(_number(row.get(c)) for c in columns)) for name, row in rows.items()])
    page.facts(f"What was probed: {path.name}", {key: value for key, value in found.items() if key != "networks"})


def _angles(scores: Mapping[str, Any]) -> dict[str, float]:
    """Bin of degrees -> recall, where that was measured."""
    matching = scores.get("matching")
    bins = matching.get("by_angle") if isinstance(matching, dict) else None
    known = bins.items() if isinstance(bins, dict) else ()
    return {str(name): math.nan if value is None else float(value) for name, value in known}


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _numbers(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers of a task with the way to them in words."""
    found = ((" ".join(way).replace("_", " "), value) for way, value in leaves(scores))
    return {name: value for name, value in found if value is None or isinstance(value, int | float)}


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"

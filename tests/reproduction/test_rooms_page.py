"""The published page says what the published values say."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from pri3d.intervals import mean_interval
from pri3d.reproduction.matrix import find_experiment

NUMBERS = re.compile(r"([\d.]+)(?: ± [\d.]+)?(?: \([+-][\d.]+\))?(?: \|)?")
RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("path", sorted((RESULTS / "rooms").glob("*.csv")), ids=lambda path: path.stem)
def test_page_and_values_agree(path: Path) -> None:
    title = find_experiment(path.stem.partition("-")[0]).title
    section = (RESULTS / "rooms.md").read_text().partition(f"## {title}")[2].partition("\n## ")[0]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in section.splitlines() if line.startswith("| ")}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        mean, half = mean_interval([float(value) for value in row["values"].split()])
        assert float(row["mean"]) == pytest.approx(mean, abs=0.002)
        assert float(row["half_interval_95"] or "nan") == pytest.approx(half, abs=0.005, nan_ok=True)
        printed = [NUMBERS.fullmatch(cell) for cell in lines[row["row"]].split(" | ")]
        means = [float(found[1]) for found in printed if found]
        assert any(abs(value - mean) < 0.051 for value in means), row

"""Scores of runs as a table: means, intervals and deltas by hand, the paper's own subtraction, what is missing."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from pri3d.errors import ConfigError, DataError
from pri3d.reproduction.matrix import Experiment, Matrix, PlannedRun, build_matrix, find_experiment, find_study
from pri3d.reproduction.reproduce import (
    TableEntry,
    compare_rows,
    printed_delta,
    read_entries,
    table_csv,
    table_figure,
    table_markdown,
)
from pri3d.reproduction.work import RECORD, StudyFolder, requested_options
from pri3d.runs import RunPaths, write_json, write_text

#: row, fraction of the labels -> mIoU a seed
SCORES = {
    ("Scratch", 1.0): (0.10, 0.12),
    ("Scratch", 0.2): (0.05, 0.07),
    ("Trivial Correspondences", 1.0): (0.11, 0.13),
    ("Pri3D (View+Geo)", 1.0): (0.20, 0.22),
    ("Pri3D (View+Geo)", 0.2): (0.15, 0.19),
}


@pytest.fixture
def table(tmp_path: Path) -> tuple[StudyFolder, Experiment, Matrix]:
    """Table 1 on rooms with two seeds, of which a few runs have scores."""
    experiment = find_experiment("table1")
    place = StudyFolder(tmp_path, find_study("rooms", "small"))
    matrix = build_matrix(experiment, place.study, (0, 1), (0.2, 1.0))
    runs = {run.name: run for run in matrix.runs}
    for cell in matrix.cells:
        for run, score in zip(cell.runs, SCORES.get((cell.row, cell.fraction), ()), strict=False):
            finish(place, runs[run], score)
    return place, experiment, matrix


def finish(place: StudyFolder, run: PlannedRun, score: float) -> RunPaths:
    """What a finished run leaves."""
    paths = RunPaths(place.folder(run.name))
    write_json(paths.path / RECORD, requested_options(run))
    write_json(paths.scores, {"last": {"miou": score}})
    write_text(paths.weights, "")
    return paths


def entry(entries: list[TableEntry], row: str, fraction: float) -> TableEntry:
    return next(e for e in entries if (e.row, e.fraction) == (row, fraction))


def test_means_intervals_and_deltas(table: tuple[StudyFolder, Experiment, Matrix]) -> None:
    entries = read_entries(*table)
    ours = entry(entries, "Pri3D (View+Geo)", 0.2)
    assert ours.values == pytest.approx((15, 19))
    assert (ours.mean, ours.delta) == pytest.approx((17, 11))
    assert ours.half == pytest.approx(12.7062 * 2, rel=1e-4)  # t of one degree of freedom, times sqrt(8) / sqrt(2)
    assert math.isnan(entry(entries, "Scratch", 1.0).delta)
    empty = entry(entries, "Trivial Correspondences", 0.2)
    assert empty.values == ()
    assert math.isnan(empty.mean)
    assert math.isnan(empty.delta)


def test_scores_of_a_run_that_has_not_ended_do_not_count(table: tuple[StudyFolder, Experiment, Matrix]) -> None:
    """A validation on the way has written them."""
    place, _, matrix = table
    cell = next(cell for cell in matrix.cells if (cell.row, cell.fraction) == ("Scratch", 1.0))
    RunPaths(place.folder(cell.runs[0])).weights.unlink()
    assert entry(read_entries(*table), "Scratch", 1.0).values == pytest.approx((12,))


def test_scores_of_other_options_do_not_count(table: tuple[StudyFolder, Experiment, Matrix]) -> None:
    place, experiment, matrix = table
    run = next(run for run in matrix.runs if run.name == matrix.cells[0].runs[0])
    finish(place, run._replace(options={**run.options, "fraction": 0.5}), 0.1)
    with pytest.raises(ConfigError, match=r"fraction was 0\.5"):
        read_entries(place, experiment, matrix)


def test_a_row_is_ahead_only_beyond_both_intervals() -> None:
    experiment = find_experiment("table1")
    first, second = experiment.compare[0]

    def read(ahead: tuple[float, ...], behind: tuple[float, ...]) -> str:
        rows = [TableEntry(first, 1.0, "mIoU", ahead, ()), TableEntry(second, 1.0, "mIoU", behind, ())]
        (reading,) = compare_rows(experiment, rows)
        return reading.text()

    assert ": more than both" in read((20.0, 20.1, 20.2), (15.0, 15.1, 15.2))
    assert "+5.0 points" in read((20.0, 20.1, 20.2), (15.0, 15.1, 15.2))
    assert ": not more than both" in read((20.0, 22.0), (19.0, 19.1))
    assert ": not more than both" in read((15.0, 15.1), (20.0, 20.1))
    assert "one run each" in read((20.0,), (15.0,))


def test_rows_without_runs_are_not_compared(table: tuple[StudyFolder, Experiment, Matrix]) -> None:
    said = compare_rows(table[1], read_entries(*table))
    assert [(reading.fraction, round(reading.gap, 6)) for reading in said] == [(1.0, 9.0)]


def test_the_papers_slips_are_not_repeated() -> None:
    """Table 6 prints 2.1 and 2.9 for the AP50 of View and Geo; its own columns differ by 3.1 and 3.9."""
    table6 = find_experiment("table6")
    deltas = {row: printed_delta(table6, row, "resnet50", 1.0) for row in table6.rows}
    assert deltas["Pri3D (View)"][0][1] == pytest.approx(3.1)  # type: ignore[index]
    assert deltas["Pri3D (Geo)"][0][1] == pytest.approx(3.9)  # type: ignore[index]
    assert math.isnan(deltas["ImageNet"][0][1])  # type: ignore[index]
    assert printed_delta(table6, "Scratch", "resnet18", 1.0) is None
    four = printed_delta(find_experiment("table4"), "Pri3D, PSPNet", "resnet50", 1.0)
    assert four is not None
    assert four[0][1] == pytest.approx(62.8 - 59.7)


def test_markdown_has_the_papers_rows_in_its_order(table: tuple[StudyFolder, Experiment, Matrix]) -> None:
    place, experiment, matrix = table
    text = table_markdown(place, experiment, matrix, read_entries(place, experiment, matrix))
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0].removeprefix("| ") for row in rows] == list(experiment.rows)
    cells = {row[0].removeprefix("| "): row[1:] for row in rows}
    assert cells["Pri3D (View+Geo)"][0] == "17.0 ± 25.4 (+11.0)"
    assert cells["Pri3D (View+Geo)"][2] == "61.7 (+6.0)"
    assert cells["ImageNet"][:3] == ["–", "–", "55.7"]
    assert cells["Depth Prediction"][3].startswith("–")  # the paper has no ResNet-18 of it
    assert "pri3d reproduce table1 --on rooms --scale small --seeds 0,1 --fractions 0.2,1`" in text
    assert "18 of 28 runs have no scores" in text
    assert "Not run: ImageNet; MoCoV2-IN+SN (combine)" in text


def test_csv_has_every_number(table: tuple[StudyFolder, Experiment, Matrix]) -> None:
    rows = list(csv.DictReader(io.StringIO(table_csv(table[1], read_entries(*table)))))
    found = {(row["row"], row["fraction"]): row for row in rows}
    ours = found["Pri3D (View+Geo)", "1.0"]
    assert (ours["mean"], ours["delta"], ours["runs"], ours["values"]) == ("21.000", "10.000", "2", "20.000 22.000")
    assert (ours["paper_resnet50"], ours["paper_resnet50_delta"]) == ("61.700", "6.000")
    assert found["Scratch", "1.0"]["delta"] == ""
    assert found["Scratch", "0.2"]["paper_resnet50"] == ""


@pytest.mark.parametrize("name", ["table1", "table2", "figure5"])
def test_figures_are_drawn(name: str) -> None:
    experiment = find_experiment(name)
    entries = [
        TableEntry(row, fraction, score, (10.0, 11.0), (9.0,))
        for row in experiment.rows
        for fraction in experiment.fractions
        for score in experiment.scores.values()
    ]
    assert table_figure(experiment, entries).startswith(b"\x89PNG")


def test_damaged_scores_name_the_folder(table: tuple[StudyFolder, Experiment, Matrix]) -> None:
    place, experiment, matrix = table
    run = next(cell.runs[0] for cell in matrix.cells if (cell.row, cell.fraction) in SCORES)
    write_text(RunPaths(place.folder(run)).scores, '{"best": 1}')
    with pytest.raises(DataError, match=r"scores\.json"):
        read_entries(place, experiment, matrix)

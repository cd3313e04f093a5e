"""Finished runs -> the scores of each row at each share of the labels, beside what the paper prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pri3d.errors import DataError
from pri3d.intervals import mean_interval
from pri3d.reproduction.matrix import Experiment, Matrix
from pri3d.reproduction.work import Place, finished
from pri3d.runs import RunPaths, read_json


class Entry(NamedTuple):
    """One score of one row at one share of the labels."""

    row: str
    fraction: float
    score: str  #: the paper's name
    values: tuple[float, ...]  #: in %, one a seed; fewer where runs have failed
    base: tuple[float, ...]  #: the same of the row that deltas are to; empty for that row itself

    @property
    def mean(self) -> float:
        """In %, NaN without a run."""
        return mean_interval(self.values)[0]

    @property
    def half(self) -> float:
        """Half width of the mean's 95 % interval; NaN with fewer than two runs."""
        return mean_interval(self.values)[1]

    @property
    def delta(self) -> float:
        """Points from the mean of the base row; NaN where there is none."""
        return self.mean - mean_interval(self.base)[0]


def read_entries(place: Place, experiment: Experiment, matrix: Matrix) -> list[Entry]:
    """Entries of all rows, shares and scores, in the table's order; runs that have not finished have none.

    Raises ConfigError where a folder holds a run of other options, DataError where scores are damaged.
    """
    base = place.study.base(experiment)
    there = finished(place, matrix.runs)
    found = {cell: _last(place, [run for run in cell.runs if run in there]) for cell in matrix.cells}
    bases = {(cell.network, cell.fraction): found[cell] for cell in matrix.cells if cell.start == base}
    entries = []
    for cell, runs in found.items():
        below = [] if cell.start == base else bases[cell.network, cell.fraction]
        for key, name in experiment.scores.items():
            entries.append(Entry(cell.row, cell.fraction, name, _values(runs, key), _values(below, key)))
    return entries


def printed_delta(experiment: Experiment, row: str, encoder: str, fraction: float) -> list[tuple[float, float]] | None:
    """The paper's figures of a row and our own subtraction of its base row's (NaN for that row); None without any."""
    figures = experiment.printed(row, encoder, fraction)
    if figures is None:
        return None
    network = experiment.rows[row].get("network")
    beside = [
        name
        for name, other in experiment.rows.items()
        if other["start"] == experiment.base and other.get("network") == network and name != row
    ]
    below = experiment.printed(beside[0], encoder, fraction) if beside else None
    return [(value, value - below[k] if below else math.nan) for k, value in enumerate(figures)]


class Reading(NamedTuple):
    """Whether one row is ahead of another by more than their intervals."""

    first: str
    second: str
    fraction: float
    score: str
    gap: float  #: points
    halves: float  #: sum of both rows' half intervals; NaN with fewer than two runs of one

    def text(self) -> str:
        """Say it in a sentence."""
        share = f"With {100 * self.fraction:g} % of the labels"
        ahead = f"{share}, {self.first} is {self.gap:+.1f} points of {self.score} from {self.second}"
        if math.isnan(self.halves):
            return f"{ahead}; one run each does not tell how much of it is chance."
        beyond = "more than" if self.gap > self.halves else "not more than"
        return f"{ahead}: {beyond} both 95 % intervals together ({self.halves:.1f})."


def readings(experiment: Experiment, entries: Sequence[Entry]) -> list[Reading]:
    """What the experiment compares, at every share of the labels where both rows have runs."""
    found = {(entry.row, entry.fraction, entry.score): entry for entry in entries}
    return [
        Reading(first, second, fraction, score, ahead.mean - behind.mean, ahead.half + behind.half)
        for first, second in experiment.compare
        for (row, fraction, score), ahead in found.items()
        if row == first and ahead.values and (behind := found[second, fraction, score]).values
    ]


def _last(place: Place, runs: Sequence[str]) -> list[Mapping[str, float]]:
    """Scores of the last step of finished runs."""
    scores: list[Mapping[str, float]] = []
    for file in (RunPaths(place.folder(run)).scores for run in runs):
        try:
            scores.append(dict(read_json(file)["last"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: damaged ({error!r}). Delete its folder and make the run again.") from error
    return scores


def _values(runs: Sequence[Mapping[str, float | None]], key: str) -> tuple[float, ...]:
    """A score in %; runs that have none, for no image has such an object, are left out."""
    return tuple(100 * value for run in runs if (value := run.get(key)) is not None)

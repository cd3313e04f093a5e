"""Several fine-tuning runs of one call, and the table that compares them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from pri3d.api.results import Output
from pri3d.errors import ConfigError
from pri3d.intervals import interval_text, mean_interval
from pri3d.runs import Run, RunPaths, read_json, short_names, write_json
from pri3d.terminal import Terminal

WIDTH = 140  #: characters of the table where it goes to a file


class ComparedRun(NamedTuple):
    """What one run of a comparison differs in; None is the preset's value."""

    weights: str
    network: str | None
    fraction: float | None
    seed: int


def expand(weights: str, network: str | None, fraction: float | str | None, seed: int | str) -> list[ComparedRun]:
    """Every combination of values joined by commas, seeds last. Raises ConfigError for one that is no number."""
    jobs = product(
        _several("weights", weights, str),
        _several("network", network, str),
        _several("fraction", fraction, float),
        _several("seed", seed, int),
    )
    return [ComparedRun(*values) for values in jobs]


def _several(flag: str, value: Any, kind: type) -> list[Any]:
    if not isinstance(value, str):
        return [value]
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise ConfigError(f"--{flag} {value!r}: a value is missing next to a comma.")
    try:
        values = [kind(part) for part in parts]
    except ValueError as error:
        raise ConfigError(f"--{flag} {value}: give a number, or several joined by commas.") from error
    if len(set(values)) < len(values):
        raise ConfigError(f"--{flag} {value}: contains a value twice.")
    return values


def folder_names(task: str, data: Path, jobs: Sequence[ComparedRun]) -> list[str]:
    """Name of each run's folder: of a single run all that it is, of several the values in which they differ."""
    shown = short_names([job.weights for job in jobs])
    if len(jobs) == 1:
        (job,) = jobs
        share = None if job.fraction is None else f"fraction{job.fraction:g}"
        return ["-".join(filter(None, (task, data.stem, shown[job.weights], job.network, share, str(job.seed))))]
    varied = [name for name in ComparedRun._fields if len({getattr(job, name) for job in jobs}) > 1]
    values = [[(name, getattr(job._replace(weights=shown[job.weights]), name)) for name in varied] for job in jobs]
    return ["-".join(x if isinstance(x, str) else f"{name}{x:g}" for name, x in each) for each in values]


class ComparisonRow(NamedTuple):
    """One line of the table: the runs that differ in their seed alone."""

    weights: str
    network: str | None
    fraction: float | None
    seeds: list[int]
    scores: dict[str, list[float | None]]  #: by seed
    minutes: list[float]  #: by seed, validation included

    def mean(self, name: str) -> tuple[float, float]:
        """Mean of a score and the half width of its 95 % interval (Student's t); NaN where it cannot be told."""
        return mean_interval(self.scores[name])


class Comparison(Output):
    """Several fine-tuning runs of one call, below one folder."""

    def __init__(self, path: Path, runs: Mapping[str, Run]) -> None:
        super().__init__(path)
        self.runs = dict(runs)  #: by the name of their folder

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of comparison.json: weights, network, fraction, seeds, scores and minutes by seed."""
        rows: list[dict[str, Any]] = read_json(self.path / "comparison.json")
        return rows

    def facts(self) -> list[str]:
        """How many runs."""
        return [f"{len(self.runs)} runs"]


def compare(root: Path, runs: Mapping[ComparedRun, Path], shown: Sequence[str]) -> Comparison:
    """Write ROOT/comparison.json from the runs' last scores and print the table."""
    rows: dict[tuple[Any, ...], ComparisonRow] = {}
    names = short_names(list(dict.fromkeys(job.weights for job in runs)))
    for job, path in runs.items():
        key = job[:3]
        row = rows.setdefault(
            key, ComparisonRow(names[job.weights], job.network, job.fraction, [], {name: [] for name in shown}, [])
        )
        paths = RunPaths(path)
        last = read_json(paths.scores)["last"]
        row.seeds.append(job.seed)
        for name in shown:
            row.scores[name].append(last[name])
        row.minutes.append(paths.minutes())
    write_json(root / "comparison.json", [row._asdict() for row in rows.values()])
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=WIDTH)  # a log file has no edge
    console.print(_table(list(rows.values()), shown))
    return Comparison(root, {path.name: Run(path) for path in runs.values()})


def _table(rows: Sequence[ComparisonRow], shown: Sequence[str]) -> Table:
    seeds = len(rows[0].seeds)
    what = f"mean of {seeds} seeds and 95 % interval" if seeds > 1 else "one seed"
    table = Table(title=f"scores of the last step in %, {what}")
    varied = [name for name in ("weights", "network", "fraction") if len({getattr(row, name) for row in rows}) > 1]
    for column in (*varied, *shown, "minutes"):
        table.add_column(column, justify="left" if column in varied else "right", overflow="fold")
    for row in rows:
        scores = [_percent(*row.mean(name)) for name in shown]
        table.add_row(*(str(getattr(row, name)) for name in varied), *scores, f"{np.mean(row.minutes):.1f}")
    return table


def _percent(mean: float, half: float) -> str:
    if math.isnan(mean):
        return "-"
    return interval_text(100 * mean, 100 * half)

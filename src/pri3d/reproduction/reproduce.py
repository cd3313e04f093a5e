"""``pri3d reproduce``: a table or figure of the paper from your own runs, compared with the paper's numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pri3d.api.pretrain import resolve_pretraining
from pri3d.api.reproduce import ReproduceOptions
from pri3d.errors import ConfigError, DataError, first_line
from pri3d.files.atomic import write_atomic
from pri3d.intervals import interval_text, mean_interval
from pri3d.labelled import open_labelled
from pri3d.machine import cores, limit_spinning
from pri3d.reporting import figures, gather
from pri3d.reporting.charts import bars_figure, efficiency_figure
from pri3d.reporting.sources import there
from pri3d.reproduction.matrix import (
    Experiment,
    Matrix,
    PlannedRun,
    TableCell,
    build_matrix,
    find_experiment,
    find_study,
    groups,
)
from pri3d.reproduction.planning import ExperimentPlan, Machine, show_plan, write_slurm_script
from pri3d.reproduction.work import RunHardware, StudyFolder, finished, make_parts, make_runs
from pri3d.runs import RunPaths, read_json, write_text
from pri3d.store import MANIFEST, read_manifest
from pri3d.terminal import Terminal

On = Literal["rooms", "scannet", "nyuv2"]
T = TypeVar("T")
_HOW = ("jobs", "only", "slurm", "cpus", "memory", "machine", "dry_run")  # options that do not say what the work is
IMAGES = 5  #: rows of figure 4
TITLES = {"scratch": "Scratch", "imagenet": "ImageNet"}
NETWORKS = {"resnet50": "ResNet-50", "resnet18": "ResNet-18"}


def reproduce(options: ReproduceOptions) -> Path:
    """Run, or continue, every training that a table or figure of the paper needs, and write it beside the paper's.

    See :func:`pri3d.reproduce` for the options. Raises DataError where runs have failed.
    """
    out = Path(options.out)
    scannet = None if options.scannet is None else Path(options.scannet)
    scannet_frames = None if options.scannet_frames is None else Path(options.scannet_frames)
    nyuv2 = None if options.nyuv2 is None else Path(options.nyuv2)
    imagenet = None if options.imagenet is None else Path(options.imagenet)
    slurm = None if options.slurm is None else Path(options.slurm)
    limit_spinning()
    folders = {"scannet": scannet, "scannet_frames": scannet_frames, "nyuv2": nyuv2, "imagenet": imagenet}
    place = StudyFolder(
        out, find_study(options.on, options.scale), {name: path for name, path in folders.items() if path is not None}
    )
    found = find_experiment(options.experiment)
    chosen_seeds = _split_numbers("seeds", options.seeds, int) or place.study.settings["seeds"]
    shares = _split_numbers("fractions", options.fractions, float) or found.fractions
    if not all(0 < share <= 1 for share in shares):
        raise ConfigError(f"--fractions {options.fractions}: give fractions between 0 and 1.")
    matrix = build_matrix(found, place.study, chosen_seeds, shares, place.folders, options.encoder)
    runs = []
    for run in matrix.runs:  # with what the user says of their arithmetic
        more: dict[str, Any] = {} if options.precision is None else {"precision": options.precision}
        if options.micro_batch is not None and run.verb == "pretrain":
            # A pass of MoCo is that of all processes and stays.
            alone = resolve_pretraining(str(run.options["preset"])).crops_alone
            more |= {} if alone else {"micro_batch": options.micro_batch}
        runs.append(run._replace(options={**run.options, **more}))
    matrix = matrix._replace(runs=tuple(runs))
    place.check(matrix.parts)
    plan = ExperimentPlan(place, found, matrix)
    hardware = RunHardware(options.devices, options.nodes, options.workers, options.checkpoint_minutes)
    if options.dry_run:
        show_plan(plan, options.jobs, hardware, None if options.machine is None else Machine.of(options.machine))
        return out
    if slurm is not None:
        words, given = [str(options.experiment)], options.given()
        for name, value in options.items():
            said = name in ("on", "scale", "out") or name in given
            if said and name not in ("experiment", *_HOW) and value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        return write_slurm_script(slurm, plan, options, words)
    runs = _choose_runs(plan.matrix, options.only)
    say = Terminal(stderr=True, highlight=False, soft_wrap=True).print
    if options.only in (None, "data"):
        make_parts(plan.place, plan.matrix.parts, cores(), options.max_failed, say)
    failed = make_runs(plan.place, runs, options.jobs, say, hardware)
    result = write_result(plan) if options.only in (None, "table") else plan.place.root
    if failed:
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise DataError(f"{len(failed)} of {len(runs)} runs have failed: {why}. The same command tries them again.")
    return result


def _choose_runs(matrix: Matrix, only: str | None) -> list[PlannedRun]:
    """Runs to make. Raises ConfigError where ``only`` is no part of the work."""
    if only in ("data", "table"):
        return []
    if only is None:
        return list(matrix.runs)
    parts = groups(matrix)
    if not only.isdecimal() or int(only) >= len(parts):
        raise ConfigError(f"--only {only}: give data, table, or a group from 0 to {len(parts) - 1}.")
    return parts[int(only)]


def _split_numbers(flag: str, text: str | None, kind: Callable[[str], T]) -> list[T]:
    """Values joined by commas. Raises ConfigError for one that is no number."""
    try:
        values = [kind(part) for part in (text or "").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--{flag} {text}: give numbers joined by commas.") from error
    if len(set(values)) < len(values):
        raise ConfigError(f"--{flag} {text}: contains a value twice.")
    return values


def write_result(plan: ExperimentPlan) -> Path:
    """Write OUT/results/EXPERIMENT-ON-SIZE.md, .csv and .png, or the PNG alone of a picture; return the first of them.

    Raises DataError where no run of it has finished, or the data of a picture are not there.
    """
    place, experiment, matrix = plan
    path = place.root / "results" / f"{experiment.name}-{place.study.on}-{place.study.size}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = path.with_suffix(".png")
    if experiment.kind == "matches":  # figure 3: the pair of median overlap
        pairs, _ = gather.matched_pairs(place.store("pretrain"), 1, {})
        return write_atomic(picture, figures.pair_figure(pairs[0]))
    if experiment.kind == "segmentations":  # figure 4: held-out images, and each row's first finished run
        parts, ended, data = place.study.settings["parts"], finished(place, matrix.runs), experiment.data
        runs = {cell.row: [place.folder(run) for run in cell.runs if run in ended] for cell in matrix.cells}
        apart = f"{data}-val" in parts  # else the set has a val split of its own
        folder = place.store(f"{data}-val" if apart else data)
        images = open_labelled(folder, "val", labels=parts[data].get("labels"), whole=apart)
        found = there(gather.predictions(images, runs, IMAGES, experiment.task))
        return write_atomic(picture, figures.predictions_figure(found.frames, found.class_names))
    entries = read_entries(place, experiment, matrix)
    if not any(entry.values for entry in entries):
        raise DataError(f"{place.root}: no run of {experiment.name} has scores. Run it without --only first.")
    write_text(path.with_suffix(".csv"), table_csv(experiment, entries))
    write_atomic(picture, table_figure(experiment, entries))
    write_text(path, table_markdown(place, experiment, matrix, entries) + f"\n![{experiment.title}]({picture.name})\n")
    return path


def table_markdown(place: StudyFolder, experiment: Experiment, matrix: Matrix, entries: Sequence[TableEntry]) -> str:
    """The page: what was run, our table, what it shows, the paper's table beside."""
    fractions = list(dict.fromkeys(entry.fraction for entry in entries))
    names = list(experiment.scores.values())
    columns = [(f, name) for f in fractions for name in (*names, *experiment.further.values())]
    heads = [_head(name, f, len(fractions) > 1) for f, name in columns]
    printed = [
        (encoder, f, k)
        for encoder in experiment.encoders
        for f in [f for f in fractions if any(experiment.printed(row, encoder, f) for row in experiment.rows)]
        for k in range(len(names))
    ]
    heads += [f"paper, {NETWORKS[e]}: {_head(names[k], f, f < 1)}" for e, f, k in printed]
    found = {(entry.row, entry.fraction, entry.score): entry for entry in entries}
    lines = [_line(["initialization of the encoder", *heads]), _line(["---", *["---:"] * len(heads)])]
    for row in _in_order(experiment, entries):
        cells = [row]
        for column in columns:
            ours = found.get((row, *column))
            cells.append(f"{interval_text(ours.mean, ours.half)}{_delta(ours.delta)}" if ours and ours.values else "–")
        for encoder, f, k in printed:
            paper = printed_delta(experiment, row, encoder, f) if row in experiment.rows else None
            cells.append(f"{paper[k][0]:.1f}{_delta(paper[k][1])}" if paper else "–")
        lines.append(_line(cells))
    remarks = [reading.text() for reading in compare_rows(experiment, entries)]
    for why in dict.fromkeys(matrix.left_out.values()):
        remarks.append(f"Not run: {'; '.join(row for row, of in matrix.left_out.items() if of == why)} ({why}).")
    remarks += describe_data(place, matrix)
    settings = place.study.settings
    if experiment.task == "semantic" and settings["semantic"].get("part") == "encoder":
        remarks.append("Fine-tuning uses only the pre-trained encoder; the paper also uses the decoder.")
    if min(fractions) < 1 and not settings.get("epochs"):
        remarks.append(
            "Runs on a fraction of the labels have as many steps as those on all labels, not as many epochs."
        )
    notes = settings.get("notes", {})
    remarks += [notes[start] for start in dict.fromkeys(cell.start for cell in matrix.cells) if start in notes]
    parts = [
        f"# {experiment.title}, on {place.study.on}",
        _describe_runs(place, experiment, matrix, entries),
        "\n".join(lines),
        "\n".join(f"- {remark}" for remark in remarks),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe_data(place: StudyFolder, matrix: Matrix) -> list[str]:
    """What of the data a reader must know: scans that failed, and where the surface comes from."""
    remarks = []
    for part in matrix.parts:
        store = place.store(part)
        if "images" in place.study.settings["parts"][part] or not (store / MANIFEST).is_file():
            continue
        manifest = read_manifest(store)
        scenes, failed = manifest["scenes"], manifest["failed"]
        if failed:
            whole = len(scenes) + len(failed)
            reasons = "; ".join(f"{scene} ({first_line(ValueError(why))})" for scene, why in failed.items())
            remarks.append(f"{len(failed)} of {whole} scans of {part} failed and are skipped: {reasons}.")
        fused = [scene for scene, record in scenes.items() if record.get("surface") == "depth"]
        if "recording" in place.study.settings["parts"][part] and fused:
            some = ", ".join(fused[:5]) + (" ..." if len(fused) > 5 else "")
            remarks.append(
                f"The surface of {len(fused)} of {len(scenes)} scans of {part} was fused from depth, since they have "
                f"no mesh; the paper uses ScanNet's reconstruction: {some}."
            )
    return remarks


def table_csv(experiment: Experiment, entries: Sequence[TableEntry]) -> str:
    """One line a row of the table, fraction of the labels and score; numbers in %, unknown ones empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paper = [f"paper_{encoder}{suffix}" for encoder in experiment.encoders for suffix in ("", "_delta")]
    writer.writerow(["row", "fraction", "score", "mean", "half_interval_95", "delta", "runs", "values", *paper])
    names = list(experiment.scores.values())
    for entry in entries:
        beside: list[float] = []
        for encoder in experiment.encoders:
            figures = printed_delta(experiment, entry.row, encoder, entry.fraction)
            known = figures is not None and entry.score in names
            beside += figures[names.index(entry.score)] if figures and known else (math.nan, math.nan)
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


def table_figure(experiment: Experiment, entries: Sequence[TableEntry]) -> bytes:
    """PNG: scores over the fraction of the labels where the paper's figure has several fractions, else bars."""
    found = [entry for entry in entries if entry.values]
    rows = dict.fromkeys(entry.row for entry in found)
    if len(experiment.fractions) > 1:
        curves = {row: {entry.fraction: entry.values for entry in found if entry.row == row} for row in rows}
        return efficiency_figure(curves, f"{found[0].score}, %", scale=1.0)
    several = len({entry.fraction for entry in found}) > 1
    bars = {row: {_head(e.score, e.fraction, several): e.values for e in found if e.row == row} for row in rows}
    return bars_figure(bars, f"{found[0].score if len(experiment.scores) == 1 else 'score'}, %", scale=1.0)


def _in_order(experiment: Experiment, entries: Sequence[TableEntry]) -> list[str]:
    """Rows in the paper's order; those that are ours alone in front, or behind where they are run last."""
    run = list(dict.fromkeys(entry.row for entry in entries))
    papers = max((k for k, row in enumerate(run) if row in experiment.rows), default=len(run))
    ours = {row: k > papers for k, row in enumerate(run) if row not in experiment.rows}
    return [*(row for row in ours if not ours[row]), *experiment.rows, *(row for row in ours if ours[row])]


def _describe_runs(place: StudyFolder, experiment: Experiment, matrix: Matrix, entries: Sequence[TableEntry]) -> str:
    """What the figures are, in words."""
    study, runs = place.study, sum(len(cell.runs) for cell in matrix.cells)
    missing = runs - sum(len(entry.values) for entry in entries if entry.score == entries[0].score)
    seeds = max(len(cell.runs) for cell in matrix.cells)
    mean = f"mean of {seeds} seeds and its 95 % interval (Student's t)" if seeds > 1 else "one seed"
    lost = f" {missing} of {runs} runs have no scores." if missing else ""
    call = f"pri3d reproduce {experiment.name} --on {study.on} --scale {study.size}"
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
        f"{TITLES[study.base(experiment)]}. For comparison the paper's numbers, on its own data; in brackets the "
        f"difference computed here, from {TITLES[experiment.base]}.{lost}"
    )


def _head(name: str, fraction: float, with_share: bool) -> str:
    return f"{name}, {100 * fraction:g} % of labels" if with_share else name


def _delta(points: float) -> str:
    return "" if math.isnan(points) else f" ({round(points, 1) + 0.0:+.1f})"  # no -0.0


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


class TableEntry(NamedTuple):
    """One score of one row at one fraction of the labels."""

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


def read_entries(place: StudyFolder, experiment: Experiment, matrix: Matrix) -> list[TableEntry]:
    """Entries of all rows, shares and scores, in the table's order; runs that have not finished have none.

    Raises ConfigError where a folder holds a run of other options, DataError where scores are damaged.
    """
    base = place.study.base(experiment)
    there = finished(place, matrix.runs)
    found: dict[TableCell, list[Mapping[str, float]]] = {cell: [] for cell in matrix.cells}
    for cell, scores in found.items():
        for file in (RunPaths(place.folder(run)).scores for run in cell.runs if run in there):
            try:
                scores.append(dict(read_json(file)["last"]))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{file}: damaged ({error!r}). Delete its folder and repeat the run.") from error
    bases = {(cell.network, cell.fraction): found[cell] for cell in matrix.cells if cell.start == base}
    entries = []
    for cell, runs in found.items():
        below = [] if cell.start == base else bases[cell.network, cell.fraction]
        for key, name in {**experiment.scores, **experiment.further}.items():
            entries.append(TableEntry(cell.row, cell.fraction, name, _values(runs, key), _values(below, key)))
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


class RowComparison(NamedTuple):
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
            return f"{ahead}; with one run each, random variation is unknown."
        beyond = "more than" if self.gap > self.halves else "not more than"
        return f"{ahead}: {beyond} both 95 % intervals together ({self.halves:.1f})."


def compare_rows(experiment: Experiment, entries: Sequence[TableEntry]) -> list[RowComparison]:
    """What the experiment compares, at every fraction of the labels where both rows have runs."""
    found = {(entry.row, entry.fraction, entry.score): entry for entry in entries}
    return [
        RowComparison(first, second, fraction, score, ahead.mean - behind.mean, ahead.half + behind.half)
        for first, second in experiment.compare
        for (row, fraction, score), ahead in found.items()
        if row == first and ahead.values and (behind := found[second, fraction, score]).values
    ]


def _values(runs: Sequence[Mapping[str, float | None]], key: str) -> tuple[float, ...]:
    """A score in %; runs that have none, for no image has such an object, are left out."""
    return tuple(100 * value for run in runs if (value := run.get(key)) is not None)

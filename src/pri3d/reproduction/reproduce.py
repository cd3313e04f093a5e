"""``pri3d reproduce``: a table or figure of the paper from your own runs, beside the paper's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import Console

from pri3d.api.reproduce import ReproduceOptions
from pri3d.errors import ConfigError, DataError
from pri3d.machine import cores, limit_spinning
from pri3d.reproduction.matrix import Matrix, PlannedRun, build_matrix, find_experiment, find_study, groups
from pri3d.reproduction.result import write_result
from pri3d.reproduction.work import ExperimentPlan, StudyFolder, make_parts, make_runs, show_plan, write_slurm_script

On = Literal["rooms", "scannet", "nyuv2"]
T = TypeVar("T")
_HOW = ("jobs", "only", "slurm", "dry_run")  # options that do not say what the work is


def reproduce(options: ReproduceOptions) -> Path:
    """Run, or continue, every training that a table or figure of the paper needs, and write it beside the paper's.

    See :func:`pri3d.reproduce` for the options.
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
    place.check(matrix.parts)
    plan = ExperimentPlan(place, found, matrix)
    if options.dry_run:
        show_plan(plan, options.jobs)
        return out
    if slurm is not None:
        return write_slurm_script(slurm, plan, _command_words(dict(options.items())))
    return _run_plan(plan, options.jobs, options.only)


def _run_plan(plan: ExperimentPlan, jobs: int, only: str | None) -> Path:
    """Make what ``only`` names, or everything. Raises DataError where runs have failed."""
    runs = _choose_runs(plan.matrix, only)
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    if only in (None, "data"):
        make_parts(plan.place, plan.matrix.parts, cores())
    failed = make_runs(plan.place, runs, jobs, say)
    result = write_result(plan) if only in (None, "table") else plan.place.root
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


def _command_words(given: Mapping[str, Any]) -> list[str]:
    """The call as words of the command line, without what says how it is to be done."""
    options = [
        (name, value) for name, value in given.items() if name not in ("experiment", *_HOW) and value is not None
    ]
    return [
        str(given["experiment"]),
        *(word for name, value in options for word in ("--" + name.replace("_", "-"), str(value))),
    ]


def _split_numbers(flag: str, text: str | None, kind: Callable[[str], T]) -> list[T]:
    """Values joined by commas. Raises ConfigError for one that is no number."""
    try:
        values = [kind(part) for part in (text or "").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--{flag} {text}: give numbers joined by commas.") from error
    if len(set(values)) < len(values):
        raise ConfigError(f"--{flag} {text}: names a value twice.")
    return values
